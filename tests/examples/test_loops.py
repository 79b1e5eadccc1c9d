"""The examples of other training loops, and of configuration files, do what their texts say."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_gradexplode import GradientExplosionMonitor, Rollback, SkipStep, ZScoreClip
from tests.examples.test_examples import EXAMPLES, load, own_world

DOCS = EXAMPLES.parent / "docs"


def test_plain_pytorch_is_stopped_before_the_weights_are_lost(tmp_path: Path) -> None:
    """The doubled rate is stopped within the epoch, named as the cause, and the scalars are in the file."""
    with own_world(tmp_path):
        watch = load("plain_pytorch").main()
    assert watch.exploded
    assert watch.last is not None
    assert watch.last.step < 112
    diagnosis = watch.diagnosis()
    assert diagnosis is not None
    assert diagnosis.causes[0].kind in ("learning-rate-jump", "learning-rate")
    with (tmp_path / "logs/plain/gradexplode.csv").open(encoding="utf-8") as file:
        assert "gradexplode/grad_norm" in {row["name"] for row in csv.DictReader(file)}
    assert (tmp_path / "logs/plain/gradexplode/index.html").exists()


@pytest.mark.filterwarnings("ignore:.*")
def test_fabric_leaves_out_the_broken_batch(tmp_path: Path) -> None:
    """One step an epoch is left out, and the loss ends far below that of a guess, 2.3."""
    pytest.importorskip("lightning")
    with own_world(tmp_path):
        watch, loss = load("fabric_digits").main()
    assert watch.last is not None
    assert watch.last.skipped_steps == 2
    diagnosis = watch.diagnosis()
    assert diagnosis is not None
    assert diagnosis.causes[0].kind == "nonfinite-input"
    assert loss < 0.5
    assert list(tmp_path.glob("logs/fabric/**/metrics.csv"))


@pytest.mark.filterwarnings("ignore:.*")
def test_hugging_face_logs_the_same_norm_as_the_trainer(tmp_path: Path) -> None:
    """Both norms stand side by side in the Trainer's log, are equal, and the loss falls."""
    pytest.importorskip("transformers")
    with own_world(tmp_path):
        callback, trainer = load("hugging_face").main()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 5
    for row in rows:
        assert row["gradexplode/grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not callback.exploded


@pytest.mark.filterwarnings("ignore:.*")
def test_the_command_line_reads_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies and responses of the file are those of the monitor, which measures the run."""
    pytest.importorskip("jsonargparse")
    with own_world(tmp_path):
        monkeypatch.setattr(sys, "argv", ["train.py"])
        cli = load("cli_config/train").main(["fit", "--config", str(EXAMPLES / "cli_config/fit.yaml")])
    callbacks = cli.trainer.callbacks
    (monitor,) = [one for one in callbacks if isinstance(one, GradientExplosionMonitor)]
    assert isinstance(monitor.arguments.clip, ZScoreClip)
    assert [type(one) for one in monitor.arguments.responses] == [SkipStep, Rollback]
    assert monitor.arguments.ignore == ("gradient-above-one",)
    assert monitor.last is not None
    assert monitor.last.step == 57


@pytest.mark.filterwarnings("ignore:.*")
def test_hydra_builds_the_trainer(tmp_path: Path) -> None:
    """Detectors, policy and responses come from the file's targets."""
    hydra = pytest.importorskip("hydra")
    from hydra.utils import instantiate

    with own_world(tmp_path):
        with hydra.initialize_config_dir(str(EXAMPLES / "cli_config"), version_base="1.3"):
            config = hydra.compose("hydra", overrides=["trainer.max_epochs=1"])
        trainer = instantiate(config.trainer)
        trainer.fit(load("cli_config/train").Digits())
    (monitor,) = [one for one in trainer.callbacks if isinstance(one, GradientExplosionMonitor)]
    assert [one.sign for one in monitor.arguments.detectors] == ["nonfinite-gradient", "gradient-spike"]
    assert [type(one) for one in monitor.arguments.responses] == [SkipStep, Rollback]
    assert monitor.arguments.exclude == ("*.bias",)
    assert monitor.last is not None


@pytest.mark.slow
def test_hydra_sweeps_over_values_of_a_policy(tmp_path: Path) -> None:
    """A multirun trains once for each value, with a monitor of its own."""
    pytest.importorskip("hydra")
    script, root = EXAMPLES / "cli_config/train_hydra.py", EXAMPLES.parent
    ended = subprocess.run(
        [sys.executable, script, "--multirun", "trainer.callbacks.0.clip.limit=2,4"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    norms = [float(norm) for norm in re.findall(r"^gradient norm: (.*)$", ended.stdout, re.MULTILINE)]
    assert len(norms) == 2
    assert all(0 < norm < 10 for norm in norms)
    assert "gradexplode" not in ended.stderr  # nothing was refused, nothing has failed


@pytest.mark.distributed
@pytest.mark.filterwarnings("ignore:.*")
def test_workers_of_ray_train_make_one_report(tmp_path: Path) -> None:
    """Both workers find the broken batches of one of them; scalars and report are written once, by global rank zero."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.train.lightning")
    with own_world(tmp_path):
        ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(EXAMPLES.parent)}})
        try:
            result = load("ray_digits").main()
        finally:
            ray.shutdown()
    assert result.error is None
    (folder,) = (tmp_path / "logs/ray/lightning_logs").iterdir()
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 29  # two epochs of 1,797 pictures in batches of 2 * 32
    assert float(rows[-1]["gradexplode/skipped_steps"]) == 2
    assert "nonfinite-loss" in (folder / "gradexplode/findings.jsonl").read_text(encoding="utf-8")
    assert (folder / "gradexplode/index.html").exists()


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("plain-pytorch.md", "plain_pytorch.py"),
        ("fabric.md", "fabric_digits.py"),
        ("hugging-face.md", "hugging_face.py"),
        ("config.md", "cli_config/fit.yaml"),
        ("config.md", "cli_config/hydra.yaml"),
        ("config.md", "cli_config/train_hydra.py"),
    ],
)
def test_the_page_shows_the_example_as_it_is(page: str, shown: str) -> None:
    """What a reader copies is what the tests run."""
    code = (EXAMPLES / shown).read_text(encoding="utf-8")
    body = code.partition('"""\n\n')[2].partition("\n\nif __name__")[0] if shown.endswith(".py") else code
    assert body.strip() in (DOCS / page).read_text(encoding="utf-8")
