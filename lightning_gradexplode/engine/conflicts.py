"""Settings of a run that contradict each other or have no effect: each is one line, logged once at the start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.distributed.shard_layout import has_own_operations
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.measure.parameters import held_by, matches, plain_name
from lightning_gradexplode.respond import Response

_KNOWN = {"cpu", "cuda", "mps", "meta"}
"""Types of devices without a message; ``mps`` is imitated in the tests, ``meta`` holds no numbers yet."""


def conflicts(arguments: Arguments, loop: TrainingLoop) -> Iterator[str]:
    """Yield a line for each conflict, with what holds instead.

    Args:
        arguments: The monitor's arguments.
        loop: The training loop.
    """
    own_clip, _ = loop.clip_setting
    if arguments.clip is not None and own_clip is not None and loop.is_automatic and not loop.overrides_clipping:
        yield (
            f"the training loop clips by {own_clip:g} and clip={arguments.clip_name} is set too; "
            "gradients are clipped by clip= only, the loop's own value is restored at the end"
        )
    types = {parameter.device.type for parameter in loop.module.parameters()} - _KNOWN
    if types:
        yield (
            f"there are parameters on a device of type {', '.join(sorted(types))}, where the monitor was never tried; "
            "its numbers are read one step late there, and if a measurement fails, it is off from then on"
        )
    yield from _shared_parameters(loop)
    yield from _unmeasured(loop)
    names = [plain_name(name) for name, _ in loop.module.named_parameters()]
    if names:
        yield from _patterns(arguments, names)
    if not arguments.detectors:
        yield _nothing_is_detected(arguments)
    yield from _responses(arguments.responses)


def _unmeasured(loop: TrainingLoop) -> Iterator[str]:
    """Yield a line if gradients and changes of some parameters cannot be measured."""
    kinds = {type(one).__name__ for owner in loop.optimizers for one in held_by(owner) if has_own_operations(one)}
    if kinds:
        yield (
            f"parameters of the type {', '.join(sorted(kinds))} have operations of their own, so that their gradients "
            "and changes cannot be measured or clipped; those of the other parameters are"
        )


def _shared_parameters(loop: TrainingLoop) -> Iterator[str]:
    """Yield a line if parameters are in more than one optimizer."""
    counts = Counter(one for optimizer in loop.optimizers for one in set(map(id, held_by(optimizer))))
    shared = [plain_name(name) for name, one in loop.module.named_parameters() if counts[id(one)] > 1]
    if shared:
        others = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
        yield (
            f"{shared[0]}{others} {'are' if others else 'is'} in more than one optimizer, and each step of any of them "
            "changes it; of several networks, give each optimizer the parameters of its own"
        )


def _nothing_is_detected(arguments: Arguments) -> str:
    held_back = any(response.is_remedy for response in arguments.responses)
    acts = "; on_explosion holds back updates that are not finite, and does nothing else" if held_back else ""
    return f"there are no detectors, so nothing is found, reported or diagnosed{acts}"


def _patterns(arguments: Arguments, names: Sequence[str]) -> Iterator[str]:
    """Yield a line if no parameter is logged by itself, else one on patterns that match none."""
    include, exclude = arguments.include, arguments.exclude
    if not any(matches(name, include) and not matches(name, exclude) for name in names):
        yield f"include={list(include)} and exclude={list(exclude)} leave no parameter; only totals of all are logged"
        return
    for argument, patterns in (("include", include), ("exclude", exclude)):
        unused = [pattern for pattern in patterns if not any(matches(name, [pattern]) for name in names)]
        if unused:
            yield f"{argument} has patterns that match no parameter: {', '.join(map(repr, unused))}"


def _responses(responses: Sequence[Response]) -> Iterator[str]:
    """Yield a line on responses that are there several times, and one on those that never act."""
    names = [type(response).__name__ for response in responses]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        yield f"on_explosion has {', '.join(repeated)} more than once; a later one acts where the earlier one does not"
    end = next((place for place, response in enumerate(responses) if response.always_acts), len(responses))
    if names[end + 1 :]:
        yield f"on_explosion never gets to {', '.join(names[end + 1 :])}, since {names[end]} always acts; put it last"
