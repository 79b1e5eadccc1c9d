"""Steps that are judged late, so that no accelerator is waited for where nothing has to be decided before a step."""

from __future__ import annotations

from lightning_gradexplode import _lightning
from lightning_gradexplode.flight import StepInFlight
from lightning_gradexplode.measure.parameters import ParameterSet
from lightning_gradexplode.settings import Settings
from lightning_gradexplode.window import WindowReading


class LateSteps:
    """Holds the step whose numbers are still on their way, until the next one is about to clear its gradients.

    By then an accelerator has the next forward pass to work on. This is for runs of a single process whose monitor does
    no more than tell: a clip value or a response has to be settled before the update, and several processes have to
    wait for each other.

    Args:
        trainer: The trainer of the run.
        settings: The monitor's arguments.
        processes: Number of processes.
    """

    def __init__(self, trainer: _lightning.Trainer, settings: Settings, processes: int) -> None:
        tells_only = settings.clip is None and all(response.only_speaks for response in settings.responses)
        self._possible = tells_only and processes == 1 and _lightning.is_automatic(trainer)
        self._waiting: list[StepInFlight] = []

    def may_wait(self, flight: StepInFlight, reading: WindowReading, may_be_clipped: bool) -> bool:
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

    def add(self, flight: StepInFlight) -> None:
        """Let a step wait."""
        self._waiting.append(flight)

    def take(self) -> list[StepInFlight]:
        """Give the steps that wait, oldest first; they wait no longer."""
        waiting, self._waiting = self._waiting, []
        return waiting
