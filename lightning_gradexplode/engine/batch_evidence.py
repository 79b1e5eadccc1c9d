"""The evidence of an incident that is in its batch: facts about the fields, beside the usual ranges of batches."""

from __future__ import annotations

from typing import Any

from lightning_gradexplode.engine.collect_or_log import collect_or_log
from lightning_gradexplode.engine.step_inputs import StepInputs
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.batch_facts import collect_batch_facts, usual_batch_facts
from lightning_gradexplode.measure.batch_fields import fields_of
from lightning_gradexplode.measure.sample_indices import sample_indices
from lightning_gradexplode.measure.usual_ranges import UsualRanges
from lightning_gradexplode.records import BatchFacts, FieldFacts


class BatchEvidence:
    """Samples the usual ranges of a run's batches, and collects the facts about the batch of an incident.

    Args:
        loop: The training loop.

    Attributes:
        facts: The facts about the batch of the latest incident, None if none were collected.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._usual = UsualRanges()
        self._fields: tuple[FieldFacts, ...] = ()
        self._resumed_epoch: int | None = None
        self.facts: BatchFacts | None = None

    def start(self, batch: Any, batch_idx: int) -> None:
        """Begin with the first batch of a run.

        Args:
            batch: The batch.
            batch_idx: Its index in the epoch; above 0 if the run continues within an epoch.
        """
        self._resumed_epoch = self._loop.epoch if batch_idx else None
        fields = collect_or_log("the fields of batches", lambda: fields_of(batch))
        self._fields = tuple(FieldFacts(one.name, one.shape, one.dtype) for one in fields or ())

    def sample(self, batch: Any) -> None:
        """Include a batch in the usual ranges."""
        collect_or_log("the ranges of batches", lambda: self._usual.sample(batch, self._loop.step))

    def collect(self, step: int, inputs: StepInputs, was_critical: bool) -> None:
        """Collect the facts about a step's batch, if it is more likely at fault than the one of earlier findings.

        Args:
            step: The step.
            inputs: What the step was given.
            was_critical: Whether the incident was critical before; then only a batch with NaN or infinity replaces one.
        """
        batch = inputs.batch.batch
        # A run that goes on within an epoch may begin with the first samples again, while its batches are counted on.
        position = None if self._loop.epoch == self._resumed_epoch else inputs.batch_idx
        indices = collect_or_log(
            "the indices of samples", lambda: sample_indices(batch, self._loop.data_loader, position)
        )
        facts = collect_or_log(
            "the facts of the batch",
            lambda: collect_batch_facts(
                batch,
                self._usual.before(step),
                batch_idx=inputs.batch_idx,
                epoch=self._loop.epoch,
                is_last=inputs.is_last,
                sample_indices=indices,
            ),
        )
        self._usual.discard(step)
        if self.facts is None or _is_nonfinite(facts) or not (was_critical or _has_outliers(self.facts)):
            self.facts = facts

    @property
    def is_shared(self) -> bool:
        """Whether the facts are those of another process, which all processes have."""
        return self.facts is not None and self.facts.rank is not None

    @property
    def outlier_rows(self) -> list[int]:
        """Rows of the batch with values far above those of others, ascending."""
        return sorted({row for field in (self.facts.fields if self.facts else ()) for row in field.outlier_rows})

    def usual(self, step: int) -> BatchFacts:
        """Return the usual ranges of the batches up to a step, as facts about a batch."""
        return usual_batch_facts(BatchFacts(self._fields), self._usual.before(step + 1))


def _is_nonfinite(batch: BatchFacts | None) -> bool:
    return batch is not None and any(field.nan_count or field.inf_count for field in batch.fields)


def _has_outliers(batch: BatchFacts) -> bool:
    return _is_nonfinite(batch) or any(field.outlier_rows for field in batch.fields)
