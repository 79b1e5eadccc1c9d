"""The monitor's arguments, checked once, so that no other room has to ask what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_gradexplode.clip import AutoPolicy, ClipPolicy, ConstantClip
from lightning_gradexplode.detect import Detector
from lightning_gradexplode.respond import (
    RaiseError,
    ReduceLearningRate,
    Response,
    Rollback,
    SaveCheckpoint,
    SkipStep,
    StopTraining,
    Warn,
)


@dataclass(frozen=True, slots=True)
class Arguments:
    """Checked arguments of the monitor, under the same names; `responses` is what ``on_explosion`` stood for."""

    log_every_n_steps: int | None
    histogram_every_n_steps: int | None
    per_parameter: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    detectors: tuple[Detector, ...]
    clip: ClipPolicy | None
    responses: tuple[Response, ...]
    report: Path | bool
    update_sample: int | None = None

    def schedule(self, trainer_interval: int) -> LoggingIntervals:
        """Give the schedule, the trainer's ``log_every_n_steps`` standing for what was left open."""
        scalars = trainer_interval if self.log_every_n_steps is None else self.log_every_n_steps
        histograms = 10 * scalars if self.histogram_every_n_steps is None else self.histogram_every_n_steps
        return LoggingIntervals(scalars, histograms)


@dataclass(frozen=True, slots=True)
class LoggingIntervals:
    """At which steps scalars and histograms are due: every so many, in phase with Lightning's own logging.

    Args:
        scalars: Number of steps from one log to the next; 0 for never.
        histograms: The same for histograms.
    """

    scalars: int
    histograms: int

    def scalars_due(self, step: int, alert: bool) -> bool:
        """Tell whether scalars are logged at a step; while people are alert, at every one."""
        return _due(self.scalars, step, alert)

    def histograms_due(self, step: int, alert: bool) -> bool:
        """Tell whether histograms are logged at a step; while people are alert, at every one."""
        return _due(self.histograms, step, alert)

    def nodes_due(self, step: int, alert: bool, first: bool) -> bool:
        """Tell whether error gradients of nodes are measured: where histograms are due, and at the first step."""
        return _due(self.histograms, step, alert or first)


def _due(interval: int, step: int, alert: bool) -> bool:
    return interval > 0 and (alert or (step + 1) % interval == 0)


def checked_interval(name: str, value: Any) -> int | None:
    """Check a number of steps: None, 0 or more.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is negative.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} got {value!r}; it takes a whole number of steps, 0 for never, or None")
    if value < 0:
        raise ValueError(f"{name} got {value}; it takes a whole number of steps, 0 for never, or None")
    return value


def checked_sample(name: str, value: Any) -> int | None:
    """Check the size of a sample: None, or 1 and more.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is not positive.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} got {value!r}; it takes a number of weights, or None for all of them")
    if value < 1:
        raise ValueError(f"{name} got {value}; it takes a number of weights from 1 on, or None for all of them")
    return value


def checked_flag(name: str, value: Any) -> bool:
    """Check a yes or no.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} got {value!r}; it takes True or False")
    return value


def checked_patterns(name: str, value: Any) -> tuple[str, ...]:
    """Check a sequence of parameter name patterns.

    Raises:
        TypeError: It is no sequence of strings; a single string is refused, for it would be taken letter by letter.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{name} got {value!r}; it takes a sequence of parameter name patterns, such as ('*.weight',)")
    return tuple(value)


def checked_detectors(value: Any) -> tuple[Detector, ...]:
    """Check a sequence of detectors.

    Raises:
        TypeError: An entry is no detector.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, Detector) for one in value):
        raise TypeError(f"detectors got {value!r}; it takes a sequence of Detector objects, or None for the defaults")
    return tuple(value)


def checked_report(value: Any) -> Path | bool:
    """Check where reports go.

    Raises:
        TypeError: It is neither a yes or no nor a path.
    """
    if isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(value, bool):
        return value
    raise TypeError(f"report got {value!r}; it takes True, False or a folder")


_BY_NAME: dict[str, type[Response]] = {
    "warn": Warn,
    "skip": SkipStep,
    "reduce-lr": ReduceLearningRate,
    "rollback": Rollback,
    "checkpoint": SaveCheckpoint,
    "stop": StopTraining,
    "raise": RaiseError,
}


def responses(on_explosion: str | Response | Sequence[str | Response]) -> list[Response]:
    """Build the responses that the monitor's argument ``on_explosion`` names.

    Raises:
        ValueError: A name is unknown, or there is none.
        TypeError: An entry is neither a name nor a response.
    """
    if isinstance(on_explosion, (str, Response)):
        return [_response(on_explosion)]
    if not isinstance(on_explosion, Sequence):
        raise _wrong_type(on_explosion)
    if not on_explosion:
        raise ValueError("on_explosion is empty; it takes at least one of " + _names())
    return [_response(entry) for entry in on_explosion]


def _response(entry: str | Response) -> Response:
    if isinstance(entry, Response):
        return entry
    if not isinstance(entry, str):
        raise _wrong_type(entry)
    if entry not in _BY_NAME:
        raise ValueError(f"on_explosion={entry!r} is unknown; it takes {_names()}, or a Response")
    return _BY_NAME[entry]()


def _wrong_type(value: object) -> TypeError:
    return TypeError(f"on_explosion got {value!r}; it takes {_names()}, a Response, or a sequence of these")


def _names() -> str:
    return ", ".join(repr(name) for name in _BY_NAME)


def clip_policy(clip: float | str | ClipPolicy | None) -> ClipPolicy | None:
    """Build the policy that the monitor's argument ``clip`` stands for.

    Raises:
        ValueError: A number that is not positive and finite, or an unknown name.
        TypeError: Anything else.
    """
    if clip is None or isinstance(clip, ClipPolicy):
        return clip
    if isinstance(clip, str):
        if clip != "auto":
            raise ValueError(f"clip={clip!r} is unknown; it takes a number, 'auto', a ClipPolicy or None")
        return AutoPolicy()
    if isinstance(clip, bool) or not isinstance(clip, (int, float)):
        raise TypeError(f"clip got {clip!r}; it takes a number, 'auto', a ClipPolicy or None")
    return ConstantClip(clip)
