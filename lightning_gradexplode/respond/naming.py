"""The short names of responses and clip policies, as the monitor's arguments take them."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gradexplode.respond.automatic import AutoPolicy
from lightning_gradexplode.respond.base import Response
from lightning_gradexplode.respond.checkpoint import SaveCheckpoint
from lightning_gradexplode.respond.clipping import ClipPolicy, ConstantClip
from lightning_gradexplode.respond.learning_rate import ReduceLearningRate
from lightning_gradexplode.respond.rollback import Rollback
from lightning_gradexplode.respond.skipping import SkipStep
from lightning_gradexplode.respond.stopping import RaiseError, StopTraining, Warn

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
