"""Steps that are judged late, so that no accelerator is waited for where nothing has to be decided before a step."""

from __future__ import annotations

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.accumulation import AccumulatedReading
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.hosts import lightning as _lightning
from lightning_gradexplode.measure.parameters import ParameterSet


class DeferredSteps:
    """Holds the step whose numbers are still on their way, until the next one is about to clear its gradients.

    By then an accelerator has the next forward pass to work on. This is for runs of a single process whose monitor does
    no more than tell: a clip value or a response has to be settled before the update, and several processes have to
    wait for each other.

    Args:
        trainer: The trainer of the run.
        settings: The monitor's arguments.
        processes: Number of processes.
    """

    def __init__(self, trainer: _lightning.Trainer, settings: Arguments, processes: int) -> None:
        tells_only = settings.clip is None and all(response.only_warns for response in settings.responses)
        self._possible = tells_only and processes == 1 and _lightning.is_automatic(trainer)
        self._waiting: list[Step] = []

    def may_wait(self, flight: Step, reading: AccumulatedReading, may_be_clipped: bool) -> bool:
        """Tell whether a step can be judged after its update.

        Args:
            flight: The step.
            reading: What is read of its gradients.
            may_be_clipped: Whether the gradients will not be there any more as they were read.
        """
        watch = flight.watch
        return (
            self._possible
            and not reading.gradients.is_there
            and not reading.has_scale  # a gradient scaler makes the device wait anyhow
            and not watch.bank.wants_start
            and flight.record.clip_algorithm != "value"  # whose share is of what is not clipped yet
            and not (flight.scalars_due and (may_be_clipped or watch.changes_gradients))
        )

    def expects(self, parameters: ParameterSet) -> bool:
        """Tell whether a step of these parameters that is not logged is likely to wait."""
        return self._possible and not parameters.on_host

    def add(self, flight: Step) -> None:
        """Let a step wait."""
        self._waiting.append(flight)

    def take(self) -> list[Step]:
        """Give the steps that wait, oldest first; they wait no longer."""
        waiting, self._waiting = self._waiting, []
        return waiting
