"""The Trainer of Hugging Face on real text, letter by letter, with a small GPT-2 that is trained from nothing.

Run: ``python examples/hugging_face.py``. It needs ``pip install transformers accelerate scikit-learn``.
"""

import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from lightning_gradexplode import GradientExplosionTrainerCallback

text = "".join(load().DESCR for load in (load_iris, load_wine, load_digits, load_breast_cancer))
letters = torch.tensor(list(text.encode("ascii", "replace")))
data = [{"input_ids": row, "labels": row} for row in letters[: len(letters) // 32 * 32].view(-1, 32)]


def main() -> tuple[GradientExplosionTrainerCallback, Trainer]:
    """Train for one epoch, and return the callback and the trainer."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    arguments = TrainingArguments(
        num_train_epochs=1,
        output_dir="logs/hugging_face",
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        learning_rate=3e-3,
        logging_steps=5,
        report_to=[],
        use_cpu=True,
    )
    callback = GradientExplosionTrainerCallback(on_explosion="skip")
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    return callback, trainer


if __name__ == "__main__":
    callback, trainer = main()
    print("exploded:", callback.exploded)
    print(trainer.state.log_history[-2])  # loss, Trainer's grad_norm and gradexplode/grad_norm side by side
