"""Packages that call the optimizer within an engine of theirs, and give users callbacks and loss functions."""

from __future__ import annotations

import tempfile
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.packages.training import Training, part
from lightning_gradexplode import GradientWatch
from lightning_gradexplode.hosts.transformers import GradientExplosionTrainerCallback


class Closures(Training):
    """The classifier of skorch, whose optimizer steps with a closure."""

    package = "skorch"
    faults: ClassVar = {"a row with NaN": ("nonfinite-input",), "a feature of millions": ("unscaled-data",)}
    rates = (0.1, 1000.0)

    def train(self, fault: str, rate: float) -> None:
        """Train on two classes."""
        inputs = torch.randn(512, 8)
        labels = (inputs[:, 0] > 0).long()
        if "NaN" in fault:
            inputs[300, 2] = torch.nan
        elif fault in self.faults:
            inputs[:, 3] = 1e6 * inputs[:, 3] + 3e6
        training = self

        class Classifier(part("skorch", "NeuralNetClassifier")):  # type: ignore[misc]
            def get_loss(self, *args: Any, training: bool = False, **kwargs: Any) -> Any:
                loss = super().get_loss(*args, training=training, **kwargs)
                if training:
                    announce(loss)
                return loss

        class Watching(part("skorch.callbacks", "Callback")):  # type: ignore[misc]
            def on_train_begin(self, net: Any, **kwargs: Any) -> None:
                training.watch(
                    net.module_, net.optimizer_, lambda copy, batch: net.criterion_(copy(batch[0]), batch[1])
                )

            def on_batch_begin(self, net: Any, batch: Any = None, **kwargs: Any) -> None:
                if training.monitor is not None:
                    training.monitor.batch(batch)

        announce = self.announce
        network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        classifier = Classifier(
            network,
            criterion=nn.CrossEntropyLoss,
            lr=rate,
            max_epochs=5,
            batch_size=32,
            callbacks=[("watching", Watching())],
            verbose=0,
            train_split=None,
        )
        classifier.fit(inputs.numpy(), labels.numpy())
        self.end(classifier.module_)

    def watch(self, network: nn.Module, optimizer: Any, step: Any) -> None:
        """Attach the monitor."""
        if self.is_monitored:
            self.monitor = GradientWatch(network, optimizer, step=step, report=False)

    def announce(self, loss: Tensor) -> Tensor:
        """Tell the monitor of a loss."""
        if self.monitor is not None:
            self.monitor.loss(loss)
        return loss

    def end(self, network: nn.Module) -> None:
        """End the run."""
        self.module = network
        if self.monitor is not None:
            self.monitor.close()


class Accumulation(Closures):
    """The trainer of PyTorch-Ignite, which accumulates gradients."""

    package = "pytorch-ignite"
    faults: ClassVar = {"an infinite target": ("nonfinite-target",)}
    rates = (1e-3, 10.0)

    def train(self, fault: str, rate: float) -> None:
        """Train on a linear function."""
        inputs = torch.randn(512, 8)
        targets = 2 * inputs[:, 0]
        if fault in self.faults:
            targets[100] = torch.inf
        network = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)
        mse = nn.functional.mse_loss
        self.watch(network, optimizer, lambda copy, batch: mse(copy(batch[0]), batch[1]))

        def prepare(batch: Any, **kwargs: Any) -> Any:
            if self.monitor is not None:
                self.monitor.batch(batch)
            return batch

        trainer = part("ignite.engine", "create_supervised_trainer")(
            network,
            optimizer,
            lambda result, target: self.announce(mse(result, target)),
            gradient_accumulation_steps=2,
            prepare_batch=prepare,
        )
        data = torch.utils.data.TensorDataset(inputs, targets)
        trainer.run(torch.utils.data.DataLoader(data, batch_size=16), max_epochs=5)
        self.end(network)


class SentencePairs(Training):
    """The Trainer of Sentence Transformers, which computes the loss outside of the model."""

    package = "sentence-transformers"
    faults: ClassVar = {"a similarity that is NaN": ("nonfinite-target",)}
    rates = (1e-3, 30.0)

    def train(self, fault: str, rate: float) -> None:
        """Train on pairs of sequences of letters, whose similarity is the share of letters that they have in common."""
        part("transformers", "set_seed")(0)
        rows = [{"sentence1": sequence(), "sentence2": sequence()} for _ in range(160)]
        scores = [len({*row["sentence1"]} & {*row["sentence2"]}) / 9 for row in rows]
        if fault in self.faults:
            scores[70] = np.nan
        data = part("datasets", "Dataset").from_list(
            [{**row, "score": score} for row, score in zip(rows, scores, strict=True)]
        )
        callback = self.monitor = GradientExplosionTrainerCallback(report=False) if self.is_monitored else None

        class Announcing(part("sentence_transformers", "SentenceTransformerTrainer")):  # type: ignore[misc]
            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                result = super().compute_loss(*args, **kwargs)
                if callback is not None:
                    callback.loss(result[0] if isinstance(result, tuple) else result)
                return result

        with tempfile.TemporaryDirectory() as folder:
            self.module = sentence_model(folder)
            arguments = part("sentence_transformers", "SentenceTransformerTrainingArguments")(
                output_dir=folder,
                per_device_train_batch_size=8,
                max_steps=40,
                learning_rate=rate,
                lr_scheduler_type="constant",
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                logging_steps=100,
                save_strategy="no",
            )
            loss = part("sentence_transformers.losses", "CosineSimilarityLoss")(self.module)
            callbacks = [] if callback is None else [callback]
            Announcing(self.module, arguments, train_dataset=data, loss=loss, callbacks=callbacks).train()


def sequence() -> str:
    """Return letters and blanks."""
    return "".join(np.random.choice([*"abcdefgh "], size=np.random.randint(5, 15)))


def sentence_model(folder: str) -> Any:
    """Return a small BERT with random weights and an alphabet as its vocabulary, which are saved in a folder."""
    letters = {letter: place for place, letter in enumerate([*"?_ abcdefgh"])}
    tokenizer = part("tokenizers", "Tokenizer")(part("tokenizers.models", "WordLevel")(letters, unk_token="?"))
    tokenizer.pre_tokenizer = part("tokenizers.pre_tokenizers", "Split")("", "isolated")
    fast = part("transformers", "PreTrainedTokenizerFast")
    fast(tokenizer_object=tokenizer, unk_token="?", pad_token="_").save_pretrained(folder)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    config = part("transformers", "BertConfig")(vocab_size=len(letters), pad_token_id=letters["_"], **sizes)
    part("transformers", "BertModel")(config).save_pretrained(folder)
    words = part("sentence_transformers.models", "Transformer")(folder, max_seq_length=32)
    pooling = part("sentence_transformers.models", "Pooling")(32)
    return part("sentence_transformers", "SentenceTransformer")(modules=[words, pooling], device="cpu")
