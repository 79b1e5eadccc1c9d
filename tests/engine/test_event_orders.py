"""The engine under calls of a training loop in any order, with losses and failures of any kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradexplode import Severity
from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.engine.run import TrainingRun
from lightning_gradexplode.testing import PlainLoop, RecordingLogger
from tests.runs.optimizers import Bare, Forwarding, SharesAttributes, SharpnessAware, StepOfInstance, Wrapper

EVENTS = ("batch", "clear", "loss", "backward", "backward ended", "ready", "unknown ready", "step", "end", "flush")
FACTORS = (1.0, 1.0, 1.0, 0.0, -3.0, 1e6, 1e30, math.inf, math.nan)
OPTIMIZERS = (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop)
WRAPPERS = (Bare, Forwarding, SharesAttributes, StepOfInstance, Wrapper)
BREAKABLE = ("log_folder", "epoch", "loss_scale", "is_last_batch", "has_gradient_changes", "micro_batches")
MAX_LEAVES = 20_000
"""Numbers that the state of two optimizers may hold, however long the run was."""


class Breaking(PlainLoop):
    """A training loop of which some members raise."""

    broken: frozenset[str] = frozenset()

    def __getattribute__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "broken"):
            raise RuntimeError(f"{name} is broken")
        return super().__getattribute__(name)


class Script:
    """Plays events on a network, with or without a monitor; what is random in it comes from the events alone."""

    def __init__(self, kinds: Sequence[Any], broken: frozenset[str] = frozenset()) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.optimizers: list[Any] = [kind(self.network.parameters(), lr=0.01) for kind in kinds]
        self.stranger = torch.optim.SGD(self.network.parameters(), lr=0.01)
        self.logger = RecordingLogger()
        self.loop = Breaking(self.network, self.optimizers, lambda batch: batch, [self.logger])
        self.loop.broken = broken
        self.batch = torch.randn(4, 3)
        self.loss: Tensor | None = None

    def play(self, events: Sequence[tuple[str, float, int]], run: TrainingRun | None) -> None:
        """Make each call of a training loop, in the order of the events."""
        for name, factor, choice in events:
            optimizer = self.optimizers[choice % len(self.optimizers)]
            if name == "clear":
                self.network.zero_grad(set_to_none=choice > 1)
            elif name == "loss":
                self.loss = self.network(self.batch).square().mean() * factor
            elif name == "backward" and self.loss is not None:
                self.loss.backward()  # type: ignore[no-untyped-call]
                self.loss = None
            elif name == "step":
                optimizer.step()
                self.loss = None  # its weights have changed
            if run is not None:
                self.call(run, name, choice, optimizer)

    def call(self, run: TrainingRun, name: str, choice: int, optimizer: Any) -> None:
        """Call the engine as an adapter does at an event."""
        if name == "batch":
            run.batch_started(self.batch, choice)
        elif name == "clear":
            run.gradients_cleared()
        elif name == "loss" and self.loss is not None:
            run.loss_computed(self.loss)
        elif name == "backward ended":
            run.backward_ended()
        elif name == "ready":
            run.gradients_ready(optimizer)
        elif name == "unknown ready":
            run.gradients_ready(self.stranger)
        elif name == "end":
            run.batch_ended()
        elif name == "flush":
            run.flush()


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the plain values of a state with the path to each."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from leaves(one, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from leaves(one, path)
    else:
        yield path, value


def histories(state: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the numbers that later decisions compare with: what baselines, windows and averages hold.

    Left out are the levels of single parameters, which are NaN as long as they are unknown.
    """
    held: dict[str, list[float]] = {}
    for path, value in leaves(state.get("optimizers", [])):
        if isinstance(value, float) and any(word in path for word in ("baseline", "_values", "average")):
            held.setdefault(path, []).append(value)
    return held


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[str, float, int]]:
    """Draw events: whole batches with a few calls left out, repeated or exchanged."""
    events: list[tuple[str, float, int]] = []
    order = ("batch", "clear", "loss", "backward", "backward ended", "ready", "step", "end")
    for _ in range(draw(st.integers(1, 12))):
        factor, choice = draw(st.sampled_from(FACTORS)), draw(st.integers(0, 3))
        batch = [(name, factor, choice) for name in order]
        for _ in range(draw(st.integers(0, 3))):
            other = (draw(st.sampled_from(EVENTS)), draw(st.sampled_from(FACTORS)), draw(st.integers(0, 3)))
            batch.insert(draw(st.integers(0, len(batch))), other)
        for _ in range(draw(st.integers(0, 2))):
            batch.pop(draw(st.integers(0, len(batch) - 1)))
        events += batch
    return events


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30)
@given(
    events=scripts(),
    kinds=st.lists(st.sampled_from(OPTIMIZERS), min_size=1, max_size=2),
    broken=st.frozensets(st.sampled_from(BREAKABLE), max_size=2),
    is_aborted=st.booleans(),
)
def test_calls_in_any_order_leave_the_training_as_it_is(
    events: list[tuple[str, float, int]],
    kinds: list[type[torch.optim.Optimizer]],
    broken: frozenset[str],
    is_aborted: bool,
) -> None:
    """No exception, the same weights, finite severities, and finite histories of bounded size."""
    plain, watched = Script(kinds), Script(kinds, broken)
    plain.play(events, None)
    run = TrainingRun(Arguments.checked(report=False, diagnose=False, log_every_n_steps=1), watched.loop, {})
    watched.play(events, run)
    if is_aborted:
        run.aborted(KeyboardInterrupt())
    run.flush()
    for name, values in histories(run.state_dict()).items():
        assert all(map(math.isfinite, values)), name
    assert sum(1 for _ in leaves(run.state_dict())) < MAX_LEAVES
    assert len(run.findings) <= 1000
    assert all(isinstance(finding.severity, Severity) for finding in run.findings)
    assert all(math.isfinite(one) for _, one in watched.logger.values("gradexplode/severity"))
    run.close()
    for one, other in zip(plain.network.parameters(), watched.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    for ours, theirs in zip(watched.optimizers, plain.optimizers, strict=True):
        assert len(ours._optimizer_step_pre_hooks) == len(theirs._optimizer_step_pre_hooks) == 0


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30)
@given(
    events=scripts(),
    kinds=st.lists(st.sampled_from(OPTIMIZERS), min_size=1, max_size=2),
    responses=st.sampled_from([["skip"], ["skip", "stop"], ["reduce-lr", "skip"], ["skip", "rollback"]]),
    clip=st.sampled_from([None, 1.0, "auto"]),
)
def test_calls_in_any_order_with_responses_raise_nothing(
    events: list[tuple[str, float, int]],
    kinds: list[type[torch.optim.Optimizer]],
    responses: list[str],
    clip: Any,
) -> None:
    """Responses and clipping raise nothing either, and histories stay finite."""
    script = Script(kinds)
    arguments = Arguments.checked(report=False, diagnose=False, on_explosion=responses, clip=clip)
    run = TrainingRun(arguments, script.loop, {})
    script.play(events, run)
    run.flush()
    for name, values in histories(run.state_dict()).items():
        assert all(map(math.isfinite, values)), name
    run.close()


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=40)
@given(
    build=st.sampled_from([*OPTIMIZERS, *WRAPPERS, SharpnessAware]),
    factors=st.lists(st.sampled_from([1.0, 1.0, -3.0, 1e6, math.inf, math.nan]), min_size=2, max_size=24),
    responses=st.sampled_from([["skip"], ["reduce-lr"], ["rollback"], ["skip", "rollback"]]),
    clip=st.sampled_from([None, 1.0, "auto"]),
    is_announced=st.booleans(),
    has_closure=st.booleans(),
)
def test_no_nonfinite_update_reaches_the_weights(
    build: Any, factors: list[float], responses: list[str], clip: Any, is_announced: bool, has_closure: bool
) -> None:
    """The weights stay finite with any optimizer, whichever evaluation is not finite, announced or not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = build(network.parameters())
    loop = PlainLoop(network, [optimizer], lambda batch: batch)
    arguments = Arguments.checked(report=False, diagnose=False, on_explosion=responses, clip=clip)
    run, batch, waiting = TrainingRun(arguments, loop, {}), torch.randn(4, 3), factors[::-1]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = network(batch).square().mean() * (waiting.pop() if waiting else 1.0)
        run.loss_computed(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        run.backward_ended()
        if is_announced:
            run.gradients_ready(optimizer)
        return loss

    while waiting:
        run.batch_started(batch, loop.step)
        if has_closure or build is SharpnessAware:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        run.batch_ended()
        loop._step += 1
        assert all(bool(torch.isfinite(one).all()) for one in network.parameters())
    assert not run.failed
    run.close()
