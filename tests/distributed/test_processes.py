"""Runs of several real processes: the numbers of the unsharded run, agreed findings, and no deadlock."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_gradexplode import default_detectors
from lightning_gradexplode.records import BUCKET_EDGES
from tests.measure.sharding import VERSION
from tests.processes import once, run_ranks

WORKER = Path(__file__).parent / "worker.py"
STEPS = 4
PARAMETERS = 6


Seen = list[dict[str, Any]]  # what each process has seen of one run

JOBS: dict[str, dict[str, Any]] = {
    "unsharded": {"strategy": "auto", "devices": 1},
    "ddp": {"strategy": "ddp", "devices": 2},
    "ddp accumulating": {"strategy": "ddp", "devices": 2, "accumulate": 2},
    "ddp calm": {"strategy": "ddp", "devices": 2, "interval": 100},
    "ddp nan": {"strategy": "ddp", "devices": 2, "poisoned_rank": 1},
    "ddp bad row": {"strategy": "ddp", "devices": 2, "bad row": True},
    "fsdp2 bad row": {"strategy": "fsdp2", "devices": 2, "bad row": True, "on_explosion": "skip"},
    "ddp nan stop": {"strategy": "ddp", "devices": 2, "poisoned_rank": 1, "on_explosion": "stop"},
    "ddp fails measuring": {"strategy": "ddp", "devices": 2, "failing": [1, "take"]},
    "ddp fails judging": {"strategy": "ddp", "devices": 2, "failing": [1, "check_before_update"]},
    "ddp fails judging with a response": {
        "strategy": "ddp",
        "devices": 2,
        "failing": [1, "check_before_update"],
        "poisoned_rank": 1,
        "on_explosion": "skip",
    },
    "fsdp2 fails judging": {"strategy": "fsdp2", "devices": 2, "failing": [1, "check_before_update"]},
    "fsdp2 fails at the end": {"strategy": "fsdp2", "devices": 2, "failing": [1, "check_after_update"]},
    "ddp fails at the end": {"strategy": "ddp", "devices": 2, "failing": [1, "check_after_update"]},
    "forked": {"strategy": "ddp_fork", "devices": 2},
    "fsdp2": {"strategy": "fsdp2", "devices": 2},
    "fsdp2 calm": {"strategy": "fsdp2", "devices": 2, "interval": 100},
    "fsdp2 of four": {"strategy": "fsdp2", "devices": 4},
    "hybrid": {"strategy": "fsdp2-hybrid", "devices": 4},
    "ddp skip": {"strategy": "ddp", "devices": 2, "alarm": 2, "on_explosion": "skip"},
    "fsdp2 skip": {"strategy": "fsdp2", "devices": 2, "alarm": 2, "on_explosion": "skip"},
    "ddp rollback": {"strategy": "ddp", "devices": 2, "alarm": 2, "on_explosion": "rollback"},
    "fsdp2 rollback": {"strategy": "fsdp2", "devices": 2, "alarm": 2, "on_explosion": "rollback"},
    "fsdp2 checkpoint": {"strategy": "fsdp2", "devices": 2, "alarm": 2, "on_explosion": "checkpoint"},
}
ON_ONE_RANK: dict[str, dict[str, Any]] = {
    "detector fails": {"detector": "failing", "on_explosion": "skip"},
    "detector fails unheeded": {"detector": "failing"},
    "detector finds": {"detector": "partial", "on_explosion": "skip"},
    "detector finds more": {"detector": "partly critical", "on_explosion": "rollback"},
    "detector finds late": {"detector": "late", "on_explosion": "rollback"},
    "policy fails": {"clip": "failing"},
    "policy differs": {"clip": "differing"},
    "policy fails amid tensors": {"clip": "failing tensors"},
    "own detectors fail": {"failing": [1, "check"], "poisoned_rank": 1, "on_explosion": "skip"},
    "own detectors fail at a finding": {"failing": [1, "check", 2], "poisoned_rank": 0, "on_explosion": "rollback"},
    "folder is refused to a rollback": {"no folder": 1, "alarm": 2, "on_explosion": "rollback in files"},
    "folder is refused to checkpoints": {"no folder": 0, "alarm": 2, "on_explosion": "checkpoint"},
    "folder is refused to a report": {"no folder": 0, "alarm": 2, "on_explosion": "skip"},
    "response fails at the start": {"on_explosion": "failing started", "alarm": 2},
    "response fails": {"on_explosion": "failing respond", "alarm": 2},
    "response fails with gradients": {"on_explosion": "failing gradients_ready", "alarm": 2},
    "response fails with scalars": {"on_explosion": "failing scalars", "alarm": 2},
    "response fails at the end": {"on_explosion": "failing batch_ended", "alarm": 2},
}
"""Parts that fail, or decide differently, on rank 1 only."""

JOBS |= {f"ddp {name}": {"strategy": "ddp", "devices": 2, **job} for name, job in ON_ONE_RANK.items()}
JOBS |= {
    f"fsdp2 {name}": {"strategy": "fsdp2", "devices": 2, **ON_ONE_RANK[name]}
    for name in (
        "own detectors fail",
        "own detectors fail at a finding",
        "folder is refused to a rollback",
        "folder is refused to checkpoints",
    )
}
FAILS = {"interval": 100, "failing": [1, "check", 2], "poisoned_rank": 0}
NOTED: dict[str, dict[str, Any]] = {
    "ddp alone warned of": {"strategy": "ddp", **FAILS},
    **{
        f"{strategy} device {name}": {"strategy": strategy, "device": True, **FAILS, **options}
        for strategy in ("ddp", "fsdp2")
        for name, options in (
            ("warned of", {}),
            ("skipped", {"on_explosion": "skip", "fused": True}),
            ("rolled back", {"on_explosion": "rollback", "fused": True}),
        )
    },
}
"""The package's own detectors fail on rank 1 where nothing is agreed on at once."""

JOBS |= {name: {"devices": 2, **job} for name, job in NOTED.items()}
JOBS |= {
    f"{strategy} device rollback": {
        "strategy": strategy,
        "devices": 2,
        "device": True,
        "interval": 100,
        "poisoned_rank": 0,
        "on_explosion": "rollback",
        "fused": True,
    }
    for strategy in ("ddp", "fsdp2")
}
JOBS |= {f"ddp start fails on {rank}": {"strategy": "ddp", "devices": 2, "start": rank} for rank in (0, 1)}
JOBS |= {
    f"{strategy} device {kind}{' of four' if devices == 4 else ''}": {
        "strategy": strategy,
        "devices": devices,
        "device": True,
        **options,
    }
    for strategy, devices in (("ddp", 2), ("fsdp2", 2), ("fsdp2", 4))
    for kind, options in (
        ("logged", {"interval": 1}),
        ("calm", {"interval": 100}),
        ("clip", {"interval": 100, "clip": 1e-3}),
        ("skip", {"interval": 100, "on_explosion": "skip", "fused": True, "poisoned_rank": 1}),
        ("nan", {"interval": 100, "poisoned_rank": 1}),
        ("percentile", {"interval": 100, "clip": "percentile"}),
        ("score", {"interval": 100, "clip": "score"}),
        ("auto", {"interval": 100, "clip": "auto at once", "on_explosion": "skip", "fused": True}),
        ("zero gradient", {"interval": 100, "zero": True}),
        ("scaled", {"interval": 100, "scaled": True, "clip": 1e-3}),
        ("fails measuring", {"interval": 100, "failing": [1, "take"]}),
        ("fails judging", {"interval": 100, "failing": [1, "check_before_update"]}),
        ("fails at the end", {"interval": 100, "failing": [1, "check_after_update"]}),
    )
    if (devices == 2 or kind == "calm") and (strategy, kind) != ("fsdp2", "scaled")
}
JOBS |= {
    f"{strategy} {kind}": {"strategy": strategy, "devices": devices, **options}
    for strategy, devices in (("auto", 1), ("ddp", 2), ("fsdp2", 2))
    for kind, options in (
        ("penalty", {"on_explosion": "penalty"}),
        ("auto", {"clip": "auto"}),
        ("percentile", {"clip": "percentile"}),
        ("score", {"clip": "score"}),
        ("units", {"clip": "units"}),
        ("tensors", {"clip": "tensors"}),
    )
}


class Runs:
    """Runs jobs at first use, all jobs of the same processes together, because starting processes takes longest."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._seen: dict[str, Seen] = {}

    def __getitem__(self, name: str) -> Seen:
        """Return what each process recorded of a job."""
        if name not in self._seen:
            ranks = range(JOBS[name]["devices"])
            files = [self.folder(name) / f"rank{rank}.json" for rank in ranks]
            self._seen[name] = [json.loads(file.read_text()) for file in files]
        return self._seen[name]

    def folder(self, name: str) -> Path:
        """Return the folder of a job."""
        job = JOBS[name]
        strategy, devices = job["strategy"].partition("-")[0], job["devices"]
        if strategy == "fsdp2" and VERSION < (2, 6):
            pytest.skip("before torch 2.6, FSDP2 needs a GPU")
        alike = [n for n, j in JOBS.items() if (j["strategy"].partition("-")[0], j["devices"]) == (strategy, devices)]

        def write(folder: Path) -> None:
            jobs = [{**JOBS[one], "out": str(folder / one)} for one in alike]
            for one in jobs:
                Path(one["out"]).mkdir()
            run_ranks(WORKER, [json.dumps(jobs)], 1 if strategy == "ddp_fork" else devices, cwd=folder)

        return once(self._factory, f"{strategy} of {devices}", write) / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All runs of this module."""
    return Runs(tmp_path_factory)


@pytest.mark.parametrize(
    "name",
    [
        "ddp",
        "ddp accumulating",
        "forked",
        "fsdp2",
        "fsdp2 of four",
        "hybrid",
        "ddp device logged",
        "fsdp2 device logged",
    ],
)
def test_every_process_measures_what_one_process_alone_would(runs: Runs, name: str) -> None:
    """Norms, maxima, ratios and histograms of a spread run equal those of the unsharded one, on each process."""
    for seen in runs[name]:
        assert len(seen["steps"]) == STEPS
        for step, truth in zip(seen["steps"], runs["unsharded"][0]["steps"], strict=True):
            for quantity in ("loss", "grad_norm", "grad_max", "update_ratio", "weight_norm"):
                assert step[quantity] == pytest.approx(truth[quantity], rel=2e-6), quantity
            assert step["each"] == pytest.approx(truth["each"], rel=5e-6)
            assert step["nonfinite_count"] == truth["nonfinite_count"] == 0
            for quantity, histograms in truth["counts"].items():
                for parameter, counts in histograms.items():
                    assert_same_buckets(step["counts"][quantity][parameter], counts)


def assert_same_buckets(counts: list[int], truth: list[int]) -> None:
    """Hold two histograms to one another, but for values that rounding has moved over a border to the next bucket."""
    assert sum(counts) == sum(truth)
    moved = np.cumsum(counts) - np.cumsum(truth)
    assert np.abs(moved).max() <= 1
    assert np.count_nonzero(moved) <= 2


@pytest.mark.parametrize(("name", "length"), [("ddp calm", 4), ("fsdp2 calm", 4 + 2 * PARAMETERS)])
def test_a_calm_step_costs_one_small_collective(runs: Runs, name: str, length: int) -> None:
    """Where nothing is due, each step has one collective of a few numbers; a look at sharded weights is one more.

    So are the modules' error gradients and, of shards, the histograms at the first step, and the agreements on whether
    the monitors could begin, and how the responses began. Where findings lead to collectives, as those of shards do,
    there is one before the update about what was found, and one after it where the weights were measured.
    """
    for seen in runs[name]:
        agreed = seen["collectives"].count(len(default_detectors()) + 2)
        assert STEPS <= agreed <= 2 * STEPS if name == "fsdp2 calm" else agreed == 0
        assert seen["collectives"].count(length) == STEPS
        looks_at_weights = seen["collectives"].count(2 * PARAMETERS)  # before the first step, then ever more seldom
        assert looks_at_weights <= STEPS
        first_step = 3 + (name == "fsdp2 calm")
        assert len(seen["collectives"]) == STEPS + looks_at_weights + first_step + agreed


def test_a_logged_step_costs_few_collectives(runs: Runs) -> None:
    """Of shards, details of gradients are one, norms of the weights and their change one, and each kind of histogram.

    The weights before the first step are one more.
    """
    for seen in runs["fsdp2"]:
        lengths: Counter[int] = Counter(seen["collectives"])
        assert lengths[4 + 2 * PARAMETERS] == lengths[6 * PARAMETERS] == STEPS
        assert lengths[2 * PARAMETERS] == STEPS + 1
        buckets = len(BUCKET_EDGES) - 1
        assert lengths[(buckets + 1) * PARAMETERS] == 3 * STEPS  # and how many values are in none


@pytest.mark.parametrize(("name", "weights_are_lost"), [("ddp nan", True), ("ddp nan stop", False)])
def test_a_loss_that_is_nan_on_one_rank_is_found_and_named_by_all(
    runs: Runs, name: str, weights_are_lost: bool
) -> None:
    """All ranks come to the same findings, with the rank and the batch of the bad loss, and stop together."""
    both = runs[name]
    assert both[0]["findings"] == both[1]["findings"]
    found = {finding["sign"]: finding for finding in both[0]["findings"]}
    assert found["nonfinite-loss"]["step"] == 2
    assert "batch 2 of rank 1" in found["nonfinite-loss"]["message"]
    assert ("nonfinite-weight" in found) == weights_are_lost
    assert [seen["broken"] for seen in both] == [False, False]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_bad_row_of_another_process_is_named_by_all(runs: Runs, strategy: str) -> None:
    """Sample 37 is row 2 of the third batch of rank 1; all processes name it, and agree on the rest."""
    both = runs[f"{strategy} bad row"]
    assert both[0]["diagnosis"] == both[1]["diagnosis"]
    diagnosis = both[0]["diagnosis"]
    assert "batch 2 of epoch 0 of rank 1" in diagnosis["what"]
    first = diagnosis["causes"][0]
    assert (first["kind"], first["where"]) == ("nonfinite-input", "batch[0], row 2")
    assert any("index 37" in sentence for sentence in first["evidence"])
    assert [seen["broken"] for seen in both] == [False, False]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("response", "earlier"), [("skip", 1), ("rollback", 0)])
def test_responses_act_on_all_processes_alike(runs: Runs, strategy: str, response: str, earlier: int) -> None:
    """A skipped step changes no bit of weights and momentum on any process; a rollback brings back those of before."""
    for seen in runs[f"{strategy} {response}"]:
        states = seen["states"]
        assert states[2] == states[earlier]
        assert states[1] != states[0]
        assert states[3] != states[2]
        assert not seen["broken"]
    if strategy == "ddp":
        both = runs[f"ddp {response}"]
        assert both[0]["states"] == both[1]["states"]


def test_sharded_states_are_saved_as_checkpoints(runs: Runs) -> None:
    """Saving the good state and the bad one leaves the sharded run as it was."""
    for seen, plain in zip(runs["fsdp2 checkpoint"], runs["fsdp2"], strict=True):
        assert seen["states"] == plain["states"]
        assert not seen["broken"]
    saved = [file.name for file in (runs.folder("fsdp2 checkpoint") / "gradexplode").glob("*.ckpt")]
    assert sorted(saved) == ["bad-step=2.ckpt", "good-start.ckpt"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", ["penalty", "auto", "units", "tensors"])
def test_penalties_and_clipping_are_those_of_one_process_alone(runs: Runs, strategy: str, kind: str) -> None:
    """Gradient norms before and after clipping, and weights, are those of the unsharded run."""
    for seen in runs[f"{strategy} {kind}"]:
        assert not seen["broken"]
        for step, truth in zip(seen["steps"], runs[f"auto {kind}"][0]["steps"], strict=True):
            for quantity in ("grad_norm", "grad_norm_clipped", "weight_norm"):
                assert step[quantity] == pytest.approx(truth[quantity], rel=1e-5), quantity
    if kind in ("units", "tensors"):
        steps = runs[f"auto {kind}"][0]["steps"]
        assert all(step["grad_norm_clipped"] < 0.9 * step["grad_norm"] for step in steps[1:])


@pytest.mark.parametrize(
    "name",
    [
        "ddp fails measuring",
        "ddp fails judging",
        "ddp fails at the end",
        "ddp fails judging with a response",
        "fsdp2 fails judging",
        "fsdp2 fails at the end",
        "ddp device fails measuring",
        "ddp device fails judging",
        "ddp device fails at the end",
        "fsdp2 device fails measuring",
        "fsdp2 device fails judging",
        "fsdp2 device fails at the end",
    ],
)
def test_a_monitor_that_fails_on_one_rank_ends_no_run(runs: Runs, name: str) -> None:
    """The other ranks' monitors stand down at the next exchange instead of waiting for ever, and training goes on."""
    both = runs[name]
    assert [seen["trained_steps"] for seen in both] == [STEPS, STEPS]
    assert [seen["broken"] for seen in both] == [True, True]


@pytest.mark.parametrize("name", ["ddp device calm", "fsdp2 device calm", "fsdp2 device calm of four"])
def test_processes_on_devices_exchange_one_message_and_do_not_wait(runs: Runs, name: str) -> None:
    """Each step has one collective, packed on the device, and from the second step on no read before the update.

    The message holds four numbers, and of shards a norm for each parameter, whatever the number of processes is. At the
    end of an epoch, where no exchange follows soon, there is one more of a single number.
    """
    shards = PARAMETERS if name.startswith("fsdp2") else 0
    for seen in runs[name]:
        assert seen["collectives"].count(4 + shards) == STEPS
        looks_at_weights = seen["collectives"].count(2 * PARAMETERS)
        agreed = seen["collectives"].count(len(default_detectors()) + 2)  # at the first step, which is read at once
        assert agreed <= 2 * (shards > 0)
        assert len(seen["collectives"]) == STEPS + looks_at_weights + 4 + (shards > 0) + agreed
        assert seen["reads"][1:] == [0] * (STEPS - 1)
        truth = {step["step"]: step for step in runs["unsharded"][0]["steps"]}
        assert seen["steps"][-1]["step"] == STEPS - 1  # at the end of an epoch nothing is late any more
        for step in seen["steps"]:
            assert step["grad_norm"] == pytest.approx(truth[step["step"]]["grad_norm"], rel=2e-6)
            assert step["loss"] == pytest.approx(truth[step["step"]]["loss"], rel=2e-6)
            assert step["each"] == pytest.approx(truth[step["step"]]["each"], rel=5e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_known_clip_value_does_not_make_processes_wait(runs: Runs, strategy: str) -> None:
    """The processes clip on their devices, and hold the same weights where these are not sharded."""
    both = runs[f"{strategy} device clip"]
    for seen in both:
        assert seen["reads"][1:] == [0] * (STEPS - 1)
        assert not seen["broken"]
        assert seen["states"] != runs[f"{strategy} device calm"][0]["states"]
    if strategy == "ddp":
        assert both[0]["states"] == both[1]["states"]


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"{strategy} device {kind}"
            for strategy in ("ddp", "fsdp2")
            for kind in ("percentile", "score", "zero gradient")
        ),
        "ddp device auto",
        "fsdp2 device auto",
        "ddp device scaled",
    ],
)
def test_whatever_is_configured_processes_exchange_one_message_and_do_not_wait(runs: Runs, name: str) -> None:
    """No read before the update, one collective a step, and one transfer, or two where weights are looked at."""
    both = runs[name]
    shards = PARAMETERS if name.startswith("fsdp2") else 0
    first = 2 if "auto" in name else 1  # the first step tells how large gradients are, the second how far it went
    for seen in both:
        assert not seen["broken"]
        assert seen["trained_steps"] == STEPS
        assert seen["collectives"].count(4 + shards) == STEPS
        assert seen["reads"][first:] == [0] * (STEPS - first)
        assert max(seen["transfers"][first + 1 :]) <= 2
    assert both[0]["findings"] == both[1]["findings"]
    assert (both[0]["states"] == both[1]["states"]) == (not shards)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", ["percentile", "score"])
def test_processes_clip_on_their_devices_as_one_that_reads(runs: Runs, strategy: str, kind: str) -> None:
    """Weights and norms after each step are those of the unsharded run whose host computes the clip value."""
    for seen in runs[f"{strategy} device {kind}"]:
        truth = {step["step"]: step for step in runs[f"auto {kind}"][0]["steps"]}
        for step in seen["steps"]:
            assert step["grad_norm"] == pytest.approx(truth[step["step"]]["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_all_processes_leave_out_an_update_on_their_devices(runs: Runs, strategy: str) -> None:
    """A loss that is NaN on one process changes no bit of weights and momentum on any, and nobody reads for that."""
    for seen in runs[f"{strategy} device skip"]:
        assert not seen["broken"]
        assert seen["reads"][1:3] == [0, 0]
        assert seen["states"][2] == seen["states"][1]
        assert seen["states"][1] != seen["states"][0]
        assert seen["states"][3] != seen["states"][2]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_what_is_not_finite_on_a_device_is_found_by_all(runs: Runs, strategy: str) -> None:
    """The findings are those of runs that read at once: the same signs, steps and counts, on every process."""
    both = runs[f"{strategy} device nan"]
    assert both[0]["findings"] == both[1]["findings"]
    found = {finding["sign"]: finding for finding in both[0]["findings"]}
    assert found["nonfinite-loss"]["step"] == found["nonfinite-gradient"]["step"] == 2
    assert "rank 1" in found["nonfinite-loss"]["message"]
    assert not both[0]["broken"]
    assert not both[1]["broken"]


@pytest.mark.parametrize("name", ON_ONE_RANK)
def test_a_part_that_differs_on_one_rank_parts_no_replicas(runs: Runs, name: str) -> None:
    """All ranks take the same steps to the same weights with the same findings, and the monitor goes on."""
    both = runs[f"ddp {name}"]
    assert [seen["trained_steps"] for seen in both] == [STEPS, STEPS]
    assert both[0]["states"] == both[1]["states"]
    assert both[0]["findings"] == both[1]["findings"]
    assert [seen["broken"] for seen in both] == [False, False]
    if name == "detector finds":
        assert not any(finding["sign"] == "own" for finding in both[0]["findings"])


@pytest.mark.parametrize("name", NOTED)
def test_a_built_in_detector_that_fails_on_one_rank_makes_no_other_wait(runs: Runs, name: str) -> None:
    """The next exchange tells the others, which then use it no more either; the run and the monitor go on."""
    both = runs[name]
    assert [seen["trained_steps"] for seen in both] == [STEPS, STEPS]
    assert [seen["broken"] for seen in both] == [False, False]
    assert both[0]["collectives"] == both[1]["collectives"]
    if name.startswith("ddp"):
        assert json.dumps(both[0]["states"]) == json.dumps(both[1]["states"])
    if "device" in name:
        assert both[0]["findings"] == both[1]["findings"] == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_processes_on_devices_roll_back_alike(runs: Runs, strategy: str) -> None:
    """What is found after an update is responded to by all before the next one, and the weights stay finite."""
    both = runs[f"{strategy} device rollback"]
    assert both[0]["findings"] == both[1]["findings"]
    for seen in both:
        assert (seen["broken"], seen["trained_steps"]) == (False, STEPS)
        assert {finding["sign"] for finding in seen["findings"]} == {"nonfinite-loss", "nonfinite-gradient"}
        assert all(np.isfinite(state).all() for state in seen["states"])
    if strategy == "ddp":
        assert both[0]["states"] == both[1]["states"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_monitor_that_cannot_begin_on_one_rank_begins_on_none(runs: Runs, rank: int) -> None:
    """All of them stand down together, and the training goes on."""
    both = runs[f"ddp start fails on {rank}"]
    assert [seen["trained_steps"] for seen in both] == [STEPS, STEPS]
    assert [seen["broken"] for seen in both] == [True, True]
    assert both[0]["states"] == both[1]["states"]
