"""Forecasts of time series."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from benchmarks.packages.training import QUIET, Training, part

NAN, SPIKE, RAW = "NaN in a series", "a value of 1e9 in a series", "series of millions"


def series(fault: str) -> npt.NDArray[np.float32]:
    """Return a standardized wave with noise."""
    noise = np.random.default_rng(0).normal(size=300)
    values = (np.sin(np.arange(300) / 7) + 0.2 * noise).astype(np.float32)
    if fault == RAW:
        values = values * 5e5 + 2e6
    elif fault:
        values[150] = {NAN: np.nan, SPIKE: 1e9}.get(fault, values[150])
    return values


class _Darts(Training):
    package = "darts"
    faults: ClassVar = {
        NAN: ("nonfinite-input", "nonfinite-target"),
        SPIKE: ("outlier-batch",),
        RAW: ("unscaled-data",),
    }
    kind: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {"output_chunk_length": 6}

    def train(self, fault: str, rate: float) -> None:
        model = part("darts.models", self.kind)(
            input_chunk_length=24,
            n_epochs=4,
            batch_size=16,
            random_state=0,
            optimizer_kwargs={"lr": rate},
            pl_trainer_kwargs={**QUIET, "callbacks": self.callbacks()},
            **self.settings,
        )
        model.fit(part("darts", "TimeSeries").from_values(series(fault)), verbose=False)
        self.module = model.model


class NBeats(_Darts):
    """Blocks of fully connected layers, by darts."""

    kind = "NBEATSModel"
    settings: ClassVar = {
        "output_chunk_length": 6,
        "num_stacks": 4,
        "num_blocks": 1,
        "num_layers": 2,
        "layer_widths": 32,
    }


class TemporalConvolutions(_Darts):
    """A temporal convolutional network, by darts."""

    kind = "TCNModel"


class Lstm(_Darts):
    """A recurrent network, by darts."""

    kind = "RNNModel"
    settings: ClassVar = {"training_length": 30, "model": "LSTM"}


class Transformer(_Darts):
    """A transformer, by darts."""

    kind = "TransformerModel"


class DeepAr(Training):
    """A recurrent network with a likelihood, by GluonTS."""

    package = "gluonts"
    faults: ClassVar = {"an infinite value in a series": ("nonfinite-input", "nonfinite-target")}
    rates = (1e-3, 5.0)

    def train(self, fault: str, rate: float) -> None:
        """Train on eight series."""
        shifted = [20 + 5 * series("") + place for place in range(8)]
        if fault in self.faults:
            shifted[3][150] = np.inf
        data = part("gluonts.dataset.common", "ListDataset")
        entries = [{"target": one, "start": "2020-01-01"} for one in shifted]
        estimator = part("gluonts.torch", "DeepAREstimator")(
            freq="D",
            prediction_length=6,
            context_length=24,
            hidden_size=16,
            lr=rate,
            batch_size=16,
            num_batches_per_epoch=30,
            trainer_kwargs={**QUIET, "max_epochs": 3, "callbacks": self.callbacks()},
        )
        self.module = estimator.train_model(data(entries, freq="D")).trained_net


class TemporalFusion(Training):
    """The temporal fusion transformer, by PyTorch Forecasting."""

    package = "pytorch-forecasting"
    rates = (3e-3, 3.0)
    kind = "TemporalFusionTransformer"
    settings: ClassVar[dict[str, Any]] = {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4}

    def train(self, fault: str, rate: float) -> None:
        """Train on ten series of different sizes."""
        random = np.random.default_rng(0)
        rows = [
            {"group": str(group), "time": time, "value": size * (1.5 + np.sin(time / 5) + 0.1 * random.normal())}
            for group, size in enumerate(random.uniform(5, 50, size=10))
            for time in range(120)
        ]
        data = part("pytorch_forecasting", "TimeSeriesDataSet")(
            part("pandas", "DataFrame")(rows),
            time_idx="time",
            target="value",
            group_ids=["group"],
            min_encoder_length=24,
            max_encoder_length=24,
            min_prediction_length=6,
            max_prediction_length=6,
            time_varying_unknown_reals=["value"],
        )
        model = part("pytorch_forecasting", self.kind).from_dataset(data, learning_rate=rate, **self.settings)
        trainer = part("lightning.pytorch", "Trainer")(
            **QUIET, max_epochs=3, limit_train_batches=30, callbacks=self.callbacks(), enable_checkpointing=False
        )
        trainer.fit(model, data.to_dataloader(train=True, batch_size=32, num_workers=0))
        self.module = model


class NBeatsOfForecasting(TemporalFusion):
    """Blocks of fully connected layers, by PyTorch Forecasting."""

    kind = "NBeats"
    settings: ClassVar = {"widths": [32, 64], "backcast_loss_ratio": 0.1}
