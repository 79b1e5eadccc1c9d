"""One case of the benchmark: a small training run that fails, what is true about it, and the settings that cure it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Fields = tuple[Tensor, ...] | dict[str, Tensor]
"""The fields of a dataset or of a batch, one row a sample."""


NUMBER = r"([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?)"
"""Pattern of a positive number, as one group."""


def settings(**values: Any) -> Mapping[str, Any]:
    """Return settings of a case that cannot be changed."""
    return MappingProxyType(values)


class Case(LightningModule):
    """A training run that fails as its class stands, and trains well with the settings in `cure`.

    A subclass describes one case. Its class attributes are its settings: what is passed to the constructor replaces
    them for this instance, before `build`.

    Args:
        settings: Attributes of the class to replace.

    Raises:
        AttributeError: The class has no such attribute.
    """

    kinds: tuple[str, ...] = ()
    """The true kind of cause. More than one where each would be an honest answer; ``"unknown"`` where no evidence of a
    run can show it, or where there is none."""
    healthy = False
    """Whether the run trains well as its class stands, in spite of a spike."""
    places: tuple[str, ...] = ()
    """What the place must contain, any of them: an operation, a module, a parameter or a field. Empty: no place."""
    rows: tuple[int, ...] = ()
    """Rows of the batch, or samples of the dataset, that are at fault. Empty: none."""
    cure: Mapping[str, Any] = settings()
    """The settings of the run that trains well."""
    not_cured_by: tuple[Mapping[str, Any], ...] = ()
    """Settings that would cure other causes that seem plausible, and with which the run fails."""
    cured_by: str = ""
    """Pattern of remedies that amount to `cure`, beyond those of its kinds."""
    other_cures: Mapping[str, Mapping[str, Any]] = settings()
    """Patterns of remedies that change the run otherwise than its cure does, and the settings for each; a setting that
    is the type ``float`` takes the number in the pattern's group."""
    good: float = 0.0
    """The largest score of a run that trained well."""

    seed = 0
    steps = 120
    batch_size = 32
    shuffle = True
    lr = 1e-2
    options: Mapping[str, Any] = settings()
    """Further arguments of the Trainer, or of Fabric or the TrainingArguments."""
    host: Literal["lightning", "plain", "fabric", "transformers"] = "lightning"
    """The training loop: Lightning's Trainer, a loop of plain PyTorch or with Fabric, or the Trainer of transformers.
    Outside of Lightning the monitor is told the losses only (`optimize`), and neither batches nor a step function."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        for name, value in settings.items():
            if not hasattr(type(self), name):
                raise AttributeError(f"{type(self).__name__} has no setting {name!r}")
            setattr(self, name, value)
        self.build()

    def build(self) -> None:
        """Create the modules."""

    def data(self) -> Fields:
        """Return the whole training set."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch."""
        raise NotImplementedError

    def score(self) -> float:
        """Return how bad the trained module is, with data that are not at fault; by default its loss."""
        return float(self.loss(self.clean()))

    def clean(self) -> Any:
        """Return the data of the run that trains well."""
        with torch.enable_grad():
            return type(self)(**self.cure).data()

    def loader(self) -> DataLoader[Any]:
        """Return the batches."""
        order = torch.Generator().manual_seed(self.seed + 1) if self.shuffle else None
        return DataLoader(Rows(self.data()), self.batch_size, shuffle=self.shuffle, generator=order)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss of a batch."""
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def optimize(
        self,
        model: Any,
        batch: Any,
        optimizers: Sequence[Any],
        watch: Any,
        backward: Callable[[Tensor], Any],
    ) -> None:
        """Take a step in a loop of plain PyTorch or with Fabric.

        Args:
            model: This module, or what Fabric has made of it.
            batch: The batch.
            optimizers: The optimizers.
            watch: Takes losses before their backward pass by ``watch.loss(loss)``.
            backward: Runs the backward pass of a loss.
        """
        (optimizer,) = optimizers
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()

    def scaler_in_loop(self) -> Any:
        """Return the gradient scaler of a loop of plain PyTorch, None without one."""
        return None

    def network(self) -> nn.Module:
        """Return the network that the Trainer of transformers trains, by default the case."""
        return self

    def torch_optimizer(self, index: int = 0) -> Any:
        """Return an optimizer as Lightning wraps it in manual optimization."""
        found = self.optimizers()
        return found[index] if isinstance(found, list) else found


class Rows(Dataset[Any]):
    """A dataset of tensors whose rows are samples, as tuples or as dictionaries.

    Args:
        fields: The tensors.
    """

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def __len__(self) -> int:
        """Return the number of rows."""
        first = next(iter(self._fields.values())) if isinstance(self._fields, dict) else self._fields[0]
        return len(first)

    def __getitem__(self, row: int) -> Any:
        """Return one row."""
        if isinstance(self._fields, dict):
            return {name: field[row] for name, field in self._fields.items()}
        return tuple(field[row] for field in self._fields)


def lines_at_fault(case: type[Case]) -> tuple[str, ...]:
    """Return the places, such as ``"data.py:41"``, of the source lines of a case that end with ``# fault``."""
    lines, first = inspect.getsourcelines(case)
    file = Path(cast(str, inspect.getsourcefile(case))).name
    return tuple(f"{file}:{number}" for number, line in enumerate(lines, first) if line.rstrip().endswith("# fault"))


def noise(seed: int) -> torch.Generator:
    """Return a generator of random numbers of its own."""
    return torch.Generator().manual_seed(seed)
