"""Findings and diagnoses of short healthy trainings of usual architectures of ``transformers``, with random weights.

python -m benchmarks.architectures [NAME ...]

Each trains for 40 steps on data made here: sequences that count in threes, or noise with the label in its mean. Nothing
is downloaded. One line for each: first and last loss, findings of at least WARNING, and the diagnosis.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor

from lightning_gradexplode import GradientExplosionTrainerCallback, Severity

Rows = list[dict[str, Tensor]]

TEXT: Mapping[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"vocab_size": 40, "n_embd": 64, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**TEXT, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 16}
SIDES = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
         (("layers", 3), ("ffn_dim", 128), ("attention_heads", 4))}  # fmt: skip
START = {"decoder_start_token_id": 2}
PATCHES = {**{name: TEXT[name] for name in list(TEXT)[1:5]}, "image_size": 32, "patch_size": 8}
CONVOLUTIONS = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]}

MODELS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "GPT2": ("LMHeadModel", "text", GPT),
    "GPTJ": ("ForCausalLM", "text", {**GPT, "rotary_dim": 8}),
    "GPTNeoX": ("ForCausalLM", "text", TEXT),
    "Llama": ("ForCausalLM", "text", GROUPED),
    "Mistral": ("ForCausalLM", "text", GROUPED),
    "Mixtral": ("ForCausalLM", "text", {**GROUPED, "num_local_experts": 2}),
    "Qwen2": ("ForCausalLM", "text", GROUPED),
    "Qwen3": ("ForCausalLM", "text", HEADS),
    "Gemma": ("ForCausalLM", "text", HEADS),
    "Gemma2": ("ForCausalLM", "text", HEADS),
    "Phi": ("ForCausalLM", "text", TEXT),
    "OPT": ("ForCausalLM", "text", {**TEXT, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "Bloom": ("ForCausalLM", "text", {**TEXT, "n_head": 4, "n_layer": 3}),
    "Falcon": ("ForCausalLM", "text", TEXT),
    "Olmo2": ("ForCausalLM", "text", GROUPED),
    "Cohere": ("ForCausalLM", "text", GROUPED),
    "Granite": ("ForCausalLM", "text", GROUPED),
    "StableLm": ("ForCausalLM", "text", GROUPED),
    "Starcoder2": ("ForCausalLM", "text", GROUPED),
    "Mamba": ("ForCausalLM", "text", {**TEXT, "state_size": 8}),
    "Bert": ("ForMaskedLM", "masked", TEXT),
    "Roberta": ("ForMaskedLM", "masked", TEXT),
    "DistilBert": ("ForSequenceClassification", "class", {**TEXT, "dim": 64, "hidden_dim": 128, "n_layers": 3}),
    "Albert": ("ForSequenceClassification", "class", {**TEXT, "embedding_size": 32}),
    "Electra": ("ForSequenceClassification", "class", {**TEXT, "embedding_size": 32}),
    "DebertaV2": ("ForSequenceClassification", "class", TEXT),
    "ModernBert": ("ForSequenceClassification", "class", TEXT),
    "T5": (
        "ForConditionalGeneration",
        "reversed",
        {**TEXT, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, **START},
    ),
    "Bart": ("ForConditionalGeneration", "reversed", {**TEXT, **SIDES, **START, "d_model": 64}),
    "ViT": ("ForImageClassification", "image", PATCHES),
    "DeiT": ("ForImageClassification", "image", PATCHES),
    "Beit": ("ForImageClassification", "image", PATCHES),
    "Swin": (
        "ForImageClassification",
        "image",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "ConvNext": ("ForImageClassification", "image", CONVOLUTIONS),
    "ResNet": ("ForImageClassification", "image", {**CONVOLUTIONS, "embedding_size": 16}),
    "MobileNetV2": ("ForImageClassification", "image", {"depth_multiplier": 0.35}),
}
"""Class of the model, kind of the data, and arguments of the configuration."""


def data(kind: str, count: int = 256) -> Rows:
    """Return the rows of a data set.

    Args:
        kind: ``"text"``, ``"masked"``, ``"class"``, ``"reversed"`` or ``"image"``.
        count: Number of rows.
    """
    if kind == "image":
        labels = torch.randint(0, 2, (count,))
        images = torch.randn(count, 3, 32, 32)
        images[:, 0] += labels[:, None, None]
        return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    text = (torch.randint(0, 35, (count, 1)) + 3 * torch.arange(12)) % 35 + 5
    if kind == "masked":
        hidden = torch.rand(text.shape) < 0.2
        hidden[:, 3] = True
        inputs, labels = text.masked_fill(hidden, 4), text.masked_fill(~hidden, -100)
    else:
        inputs = text
        labels = {"text": text, "class": (text[:, 0] > 20).long(), "reversed": text.flip(1)}[kind]
    return [{"input_ids": one, "labels": label} for one, label in zip(inputs, labels, strict=True)]


def train(name: str, steps: int = 40) -> str:
    """Train a model, and return a line about it."""
    torch.manual_seed(0)
    kind, rows, config = MODELS[name]
    model = getattr(transformers, name + kind)(getattr(transformers, f"{name}Config")(**config))
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            warmup_steps=5,
            logging_steps=5,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        )
        callback = GradientExplosionTrainerCallback()
        trainer: Any = transformers.Trainer(model, arguments, train_dataset=data(rows), callbacks=[callback])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found = [f"{one.severity.name} {one.sign}" for one in callback.findings if one.severity >= Severity.WARNING]
    diagnosis = callback.diagnosis()
    causes = [] if diagnosis is None else [f"{one.kind} {one.confidence:.0%}" for one in diagnosis.causes]
    failed = " the monitor failed" if callback.failed else ""
    return f"{name:12} {losses[0]:.3f} -> {losses[-1]:.3f} {', '.join([*found, *causes]) or 'nothing'}{failed}"


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    transformers.logging.set_verbosity_error()
    for each in sys.argv[1:] or MODELS:
        print(train(each), flush=True)
