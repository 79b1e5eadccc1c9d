"""The monitor's arguments and their validation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from lightning_gradexplode import checks
from lightning_gradexplode.clip import AutoPolicy, ClipPolicy, ConstantClip
from lightning_gradexplode.clip.base import ALGORITHMS
from lightning_gradexplode.detect import Detector, default_detectors, known_signs
from lightning_gradexplode.records import Severity, StepRecord
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

if TYPE_CHECKING:
    from typing_extensions import Unpack

RESPONSES: dict[str, type[Response]] = {
    "warn": Warn,
    "skip": SkipStep,
    "reduce-lr": ReduceLearningRate,
    "rollback": Rollback,
    "checkpoint": SaveCheckpoint,
    "stop": StopTraining,
    "raise": RaiseError,
}
"""The responses that ``on_explosion`` accepts by name."""

ALERT_LEVELS = {"warning": Severity.WARNING, "critical": Severity.CRITICAL}

_FIELDS = frozenset(field.name for field in fields(StepRecord))


class MonitorArguments(TypedDict, total=False):
    """The arguments of the monitor as they are passed to it. `GradientExplosionMonitor` documents them."""

    log_every_n_steps: int | None
    histogram_every_n_steps: int | None
    per_parameter: bool
    include: Sequence[str]
    exclude: Sequence[str]
    detectors: Sequence[Detector] | None
    ignore: Sequence[str]
    clip: float | Literal["auto"] | ClipPolicy | None
    on_explosion: str | Response | Sequence[str | Response]
    alert_level: Literal["warning", "critical"]
    diagnose: bool
    report: bool | Literal["always"] | str | Path
    update_sample: int | None


DEFAULTS: MonitorArguments = {
    "log_every_n_steps": None,
    "histogram_every_n_steps": None,
    "per_parameter": False,
    "include": ("*",),
    "exclude": (),
    "detectors": None,
    "ignore": (),
    "clip": None,
    "on_explosion": "warn",
    "alert_level": "critical",
    "diagnose": True,
    "report": True,
    "update_sample": None,
}

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def takes_monitor_arguments(constructor: Constructor) -> Constructor:
    """List the monitor's arguments, in place of ``**arguments``, in the signature that ``help`` and notebooks show."""
    signature = inspect.signature(constructor)
    *own, _ = signature.parameters.values()
    types, keyword_only = MonitorArguments.__annotations__, inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(name, keyword_only, default=default, annotation=types[name].__forward_arg__)
        for name, default in DEFAULTS.items()
    ]
    constructor.__signature__ = signature.replace(parameters=[*own, *shared])  # type: ignore[attr-defined]
    return constructor


@dataclass(frozen=True, slots=True)
class Arguments:
    """The checked arguments of the monitor, under the same names.

    `responses` are those of ``on_explosion``. `detectors` are those whose signs are not in `ignore`, and
    `has_default_detectors` is True if the user has given none.
    """

    log_every_n_steps: int | None
    histogram_every_n_steps: int | None
    per_parameter: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    detectors: tuple[Detector, ...]
    has_default_detectors: bool
    ignore: tuple[str, ...]
    clip: ClipPolicy | None
    responses: tuple[Response, ...]
    alert_level: Severity
    diagnose: bool
    report: Path | bool | Literal["always"]
    update_sample: int | None

    @classmethod
    def checked(cls, **arguments: Unpack[MonitorArguments]) -> Arguments:
        """Check the arguments of `lightning_gradexplode.GradientExplosionMonitor`.

        Raises:
            TypeError: An argument is of a type that is not accepted, or has an unknown name.
            ValueError: An argument is out of range, or a name is unknown.
        """
        for name in arguments:
            if name not in DEFAULTS:
                raise TypeError(f"arguments of the monitor must be among {', '.join(DEFAULTS)}, got {name!r}")
        given: dict[str, Any] = {**DEFAULTS, **arguments}
        chosen = _detectors(given["detectors"])
        ignored = _ignored(given["ignore"], chosen)
        return cls(
            log_every_n_steps=_interval("log_every_n_steps", given["log_every_n_steps"]),
            histogram_every_n_steps=_interval("histogram_every_n_steps", given["histogram_every_n_steps"]),
            per_parameter=_flag("per_parameter", given["per_parameter"]),
            include=checks.patterns("include", given["include"]),
            exclude=checks.patterns("exclude", given["exclude"]),
            detectors=tuple(one for one in chosen if one.sign not in ignored),
            has_default_detectors=given["detectors"] is None,
            ignore=ignored,
            clip=_clip_policy(given["clip"]),
            responses=_responses(given["on_explosion"]),
            alert_level=ALERT_LEVELS[checks.choice("alert_level", given["alert_level"], list(ALERT_LEVELS))],
            diagnose=_flag("diagnose", given["diagnose"]),
            report=_report(given["report"]),
            update_sample=checks.limit("update_sample", given["update_sample"]),
        )

    @property
    def acts(self) -> bool:
        """Whether any response can change the run."""
        return any(not response.only_warns for response in self.responses)

    @property
    def clip_name(self) -> str | None:
        """The clip policy as the user has given it: ``"auto"``, a number, or the name of a class; None without one."""
        if type(self.clip) is ConstantClip:
            return str(self.clip.value)
        return None if self.clip is None else "auto" if type(self.clip) is AutoPolicy else type(self.clip).__name__

    def intervals(self, loop_interval: int) -> tuple[int, int]:
        """Return the intervals of scalars and histograms, in steps.

        Args:
            loop_interval: The training loop's own logging interval, which is the default.
        """
        scalars = loop_interval if self.log_every_n_steps is None else self.log_every_n_steps
        return scalars, 10 * scalars if self.histogram_every_n_steps is None else self.histogram_every_n_steps


def _interval(name: str, value: Any) -> int | None:
    return None if value is None else checks.count(name, value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def _detectors(value: Any) -> tuple[Detector, ...]:
    if value is None:
        return tuple(default_detectors())
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, Detector) for one in value):
        raise TypeError(f"detectors must be a sequence of Detector objects or None, got {value!r}")
    for detector in value:
        _check_detector(detector)
    return tuple(value)


def _check_detector(detector: Detector) -> None:
    sign, reads, name = getattr(detector, "sign", None), getattr(detector, "reads", None), type(detector).__name__
    if not isinstance(sign, str) or not sign:
        raise TypeError(f"sign of {name} must be a name such as 'stalled-loss', got {sign!r}")
    if not isinstance(reads, (tuple, list)) or not all(field in _FIELDS for field in reads):
        raise TypeError(f"reads of {name} must be names of fields of StepRecord, got {reads!r}")


def _ignored(value: Any, detectors: Sequence[Detector]) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
        raise TypeError(f'ignore must be a sequence of signs such as ("stalled-loss",), got {value!r}')
    known = sorted(known_signs(detectors))
    for sign in value:
        if sign not in known:
            raise ValueError(f"ignore must contain signs out of {', '.join(known)}, got {sign!r}")
    return tuple(value)


def _clip_policy(value: Any) -> ClipPolicy | None:
    if value is None:
        return None
    if isinstance(value, ClipPolicy):
        checks.choice(f"algorithm of {type(value).__name__}", value.algorithm, ALGORITHMS)
        return value
    message = f'clip must be a positive number, "auto" or a ClipPolicy, got {value!r}'
    if isinstance(value, str):
        if value != "auto":
            raise ValueError(message)
        return AutoPolicy()
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number:
        raise TypeError(message)
    try:
        return ConstantClip(value)
    except ValueError:
        raise ValueError(message) from None


def _responses(value: Any) -> tuple[Response, ...]:
    if isinstance(value, (str, Response)):
        return (_response(value),)
    if not isinstance(value, Sequence):
        raise TypeError(_responses_message(value))
    if not value:
        raise ValueError(_responses_message(value))
    return tuple(_response(entry) for entry in value)


def _response(entry: Any) -> Response:
    if isinstance(entry, Response):
        for name in ("only_warns", "is_remedy"):
            _flag(f"{name} of {type(entry).__name__}", getattr(entry, name))
        return entry
    if not isinstance(entry, str):
        raise TypeError(_responses_message(entry))
    if entry not in RESPONSES:
        raise ValueError(_responses_message(entry))
    return RESPONSES[entry]()


def _responses_message(value: Any) -> str:
    names = ", ".join(f'"{name}"' for name in RESPONSES)
    return f"on_explosion must be one of {names}, a Response, or a sequence of these, got {value!r}"


def _report(value: Any) -> Path | bool | Literal["always"]:
    if isinstance(value, bool):
        return value
    if value == "always":
        return "always"
    if isinstance(value, (str, Path)) and str(value):
        return checks.folder("report", value)
    raise TypeError(f'report must be True, False, "always" or a folder, got {value!r}')
