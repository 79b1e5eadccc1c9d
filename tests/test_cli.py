"""The command line."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_gradexplode import offline
from lightning_gradexplode.__main__ import main
from lightning_gradexplode.offline import find_metric
from lightning_gradexplode.report import write_report, write_steps
from lightning_gradexplode.report.terminal import report_lines
from tests.report import examples


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the terminal 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")


def metrics_of(steps: int = 200, onset: int = 150) -> list[tuple[int, float, float]]:
    """Return step, loss and gradient norm of a run that explodes from a step on."""
    rows = []
    for step in range(steps):
        grown = max(step - onset, 0)
        loss = 1 / (1 + step * 0.05) + 0.02 * (step % 7) + (1.7**grown - 1)
        rows.append((step, loss, (1 + 0.1 * (step % 5)) * 2.0**grown))
    return rows


@pytest.mark.usefixtures("narrow")
def test_show_prints_what_a_report_contains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Verdict, causes with evidence, what to do, where, since when, what was done and the curves, in 80 columns."""
    write_report(tmp_path / "version_0" / "gradexplode", examples.growing())
    assert main(["show", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    for words in (
        "diverging-loss",
        "learning-rate",
        "82%",
        "optim.SGD(params, lr=0.005)",
        "step 107: back to the state",
    ):
        assert words in text
    assert "\u2588" in text
    assert max(map(len, lines)) <= 90
    assert main(["show", str(tmp_path), "--check"]) == 3


def test_json_is_what_programs_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The diagnosis with its version, and the findings."""
    write_report(tmp_path, examples.at_once())
    assert main(["show", str(tmp_path), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["version"], plain["verdict"]) == (1, "exploding")
    assert plain["findings"][0]["value"] == "nan"


def test_report_writes_the_page_of_a_run_that_ended_abnormally(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its steps and findings alone."""
    write_steps(tmp_path, examples.half_precision())
    assert main(["report", str(tmp_path)]) == 0
    assert Path(capsys.readouterr().out.strip()) == tmp_path / "index.html"
    assert "half-precision" in (tmp_path / "index.html").read_text()


def test_compare_marks_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs next to each other, also as JSON."""
    write_report(tmp_path / "a", examples.growing())
    write_report(tmp_path / "b", examples.healthy())
    folders = [str(tmp_path / name) for name in "ab"]
    assert main(["compare", *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    (verdict,) = [line for line in lines if "Verdict" in line]
    assert verdict.startswith("*")
    assert "exploding" in verdict
    assert "healthy" in verdict
    assert main(["compare", *folders, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["Verdict"] == {"first": "exploding", "second": "healthy"}


def test_what_was_found_below_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The latest of several runs is read; standard error says which one it is, and that a log has a report."""
    folder = tmp_path / "version_0" / "gradexplode"
    write_report(folder, examples.growing())
    metrics = tmp_path / "version_0" / "metrics.csv"
    with metrics.open("w", newline="") as file:
        csv.writer(file).writerows([("step", "train/loss", "total_grad_norm"), *metrics_of()])
    assert main(["show", str(tmp_path), "--json"]) == 0
    assert capsys.readouterr().err == f"Report: {folder}\n"
    assert main(["compare", str(folder), str(tmp_path)]) == 0
    assert capsys.readouterr().err == f"Report: {folder}\n"
    assert main(["diagnose", str(tmp_path)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"Log: {metrics}",
        f"The run was monitored; gradexplode show {folder} prints its own diagnosis",
    ]
    assert main(["diagnose", str(metrics)]) == 0
    assert capsys.readouterr().err.count("\n") == 1


def test_diagnose_reads_the_logs_of_other_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A CSV file and TensorBoard event files of the same numbers have the same first critical finding."""
    steps = []
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("step", "train/loss", "total_grad_norm"), *metrics_of()])
    board = SummaryWriter(str(tmp_path / "board"))
    for step, loss, norm in metrics_of():
        board.add_scalar("train/loss", loss, step)
        board.add_scalar("total_grad_norm", norm, step)
    board.close()
    for log in ("metrics.csv", "board"):
        assert main(["diagnose", str(tmp_path / log), "--json", "--check"]) == 3
        plain = json.loads(capsys.readouterr().out)
        steps.append(next(one["step"] for one in plain["findings"] if one["severity"] == "CRITICAL"))
    assert steps[0] == steps[1]
    assert 150 < steps[0] < 165


def test_diagnose_reads_files_with_one_row_for_each_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as ``gradexplode.csv``, which plain loops without a logger write; a row without a step is left out."""
    rows = [row for step, loss, norm in metrics_of() for row in ((step, "loss", loss), (step, "g/grad_norm", norm))]
    with (tmp_path / "gradexplode.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "name", "value"), *rows, ("nan", "loss", 1.0), ("x", "loss", 1.0)])
    assert set(offline.read_metrics(tmp_path / "gradexplode.csv")) == {"loss", "g/grad_norm"}
    assert main(["diagnose", str(tmp_path), "--json", "--check"]) == 3
    critical = [one["step"] for one in json.loads(capsys.readouterr().out)["findings"] if one["severity"] == "CRITICAL"]
    assert 150 < critical[0] < 165


def test_a_healthy_log_has_no_incident(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0 with ``--check``, too."""
    with (tmp_path / "run.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "loss", "grad_norm"), *metrics_of(140)])
    assert main(["diagnose", str(tmp_path / "run.csv"), "--check"]) == 0
    assert "no incident" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["show", "."], 1, "has no report"),
        (["diagnose", "nowhere.csv"], 1, "does not exist"),
        (["diagnose", "run.csv", "--loss", "nope"], 1, "there is no metric 'nope'"),
        (["show"], 2, "Missing argument"),
        (["compare", "one", "two"], 2, "does not exist"),
        (["wandb-rules", "--project", "x", "--slack", "--webhook", "y"], 2, "cannot be combined"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    """Status 1 and the reason; status 2 for wrong arguments; never a traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.csv").write_text("step,loss\n0,1.0\n")
    assert main(arguments) == status
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert status == 2 or len(printed.splitlines()) == 1


def test_the_command_prints_versions(capsys: pytest.CaptureFixture[str]) -> None:
    """The version of the package, and the versions of what it works with."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("gradexplode, version ")
    assert main(["doctor", "--json"]) == 0
    assert {"torch", "python", "plotly", "accelerators"} <= json.loads(capsys.readouterr().out).keys()


def test_doctor_names_what_alert_rules_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where wandb is not installed, the command to install it is in place of the alert rules."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["doctor", "--json"]) == 0
    expected = 'wandb is not installed: pip install "lightning-gradexplode[wandb]"'
    assert json.loads(capsys.readouterr().out)["W&B alert rules"] == expected


def test_without_click_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and status 1."""
    monkeypatch.setitem(sys.modules, "click", None)
    monkeypatch.delitem(sys.modules, "lightning_gradexplode.cli", raising=False)
    monkeypatch.delattr("lightning_gradexplode.cli", raising=False)
    with pytest.raises(ModuleNotFoundError):
        import click  # noqa: F401
    assert main(["--version"]) == 1
    assert 'pip install "lightning-gradexplode[cli]"' in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="no such shell on Windows")
def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    """As in ``gradexplode show DIR | head -1``."""
    write_report(tmp_path, examples.growing(1000))
    command = f"{sys.executable} -m lightning_gradexplode show {tmp_path} --json | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.stdout.strip() == "{"
    assert done.stderr == ""


def test_an_encoding_without_the_blocks_of_curves_is_no_failure(tmp_path: Path) -> None:
    """As that of files and pipes on Windows; what it cannot write is a question mark."""
    write_report(tmp_path, examples.growing(200))
    command = [sys.executable, "-m", "lightning_gradexplode", "show", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"median" in done.stdout


def test_steps_are_numbered_where_a_log_has_none(tmp_path: Path) -> None:
    """The row is the step; text and empty cells are skipped."""
    (tmp_path / "run.csv").write_text("loss,note\n1.5,first\n,\nnan,last\n")
    metrics = offline.read_metrics(tmp_path / "run.csv")
    assert list(metrics) == ["loss"]
    assert metrics["loss"][0] == 1.5
    assert set(metrics["loss"]) == {0, 2}


@pytest.mark.slow
def test_the_demo_explodes_in_its_second_half_and_not_with_clipping(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It learns, then gradients grow for more than a dozen steps; a second run keeps the report of the first."""
    for version in range(2):
        assert main(["demo", "--folder", str(tmp_path)]) == 0
        out = capsys.readouterr().out
        (row,) = [line for line in out.splitlines() if line.startswith("first critical finding")]
        step, with_clipping = int(row.split()[4]), row.split()[5]
        assert 40 <= step <= 90
        assert with_clipping == "none"
        page = tmp_path / "without-clipping" / f"version_{version}" / "gradexplode" / "index.html"
        assert f"Report: {page}" in out
        assert page.exists()
    assert main(["show", str(tmp_path), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["causes"][0]["kind"] in ("learning-rate", "learning-rate-jump")
    assert max(one["step"] for one in plain["findings"]) >= plain["step"] + 12
    assert f"at step {plain['replay']['step']}" in plain["title"]


def test_help_documents_exit_status_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has a whole sentence in the list, and each status is named."""
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "..." not in out.partition("Commands:")[2]
    for words in ("0  success", "3  with --check: the run explodes", "_GRADEXPLODE_COMPLETE=bash_source"):
        assert words in out


def test_the_latest_log_below_a_folder_is_read(tmp_path: Path) -> None:
    """As in the folder of all runs of a logger; numbers may be separated by semicolons."""
    for version, loss in enumerate((1.0, 2.0)):
        folder = tmp_path / "lightning_logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step;train_loss\n0;{loss}\n")
        os.utime(folder / "metrics.csv", (version, version))
    assert offline.read_metrics(tmp_path) == {"train_loss": {0: 2.0}}


def test_the_log_of_a_plain_loop_below_a_folder_is_read(tmp_path: Path) -> None:
    """Unlike other CSV files there, which may be data."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "data.csv").write_text("step,loss\n0,9.0\n")
    (tmp_path / "a" / "gradexplode.csv").write_text("step,name,value\n0,loss,1.0\n")
    assert offline.read_metrics(tmp_path) == {"loss": {0: 1.0}}


def test_all_steps_after_the_first_nan_of_a_log_are_marked() -> None:
    """Also those at which the sign is not new any more."""
    loss = {step: 1.0 if step < 20 else math.nan for step in range(40)}
    content = offline.examine({"loss": loss}, "run", "loss", None, None)
    curve = next(line for line in report_lines(content) if "loss" in line.split()[:1])
    assert [one.step for one in content.findings] == [20]
    assert curve.count("\u00d7") == 20


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00garbage\n\x80", b"step,loss\n"])
def test_a_log_without_numbers_is_one_line(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Empty, binary, or a header alone."""
    (tmp_path / "run.csv").write_bytes(content)
    assert main(["diagnose", str(tmp_path / "run.csv")]) == 1
    assert capsys.readouterr().err == "gradexplode: run.csv contains no numbers by step\n"


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off"])
def test_a_damaged_recording_is_one_line(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As of a disk that was full."""
    (tmp_path / "steps.npz").write_bytes(content)
    assert main(["show", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gradexplode: {tmp_path / 'steps.npz'} is damaged")


@pytest.mark.parametrize("name", ["lr-SGD", "train/learning_rate"])
@pytest.mark.parametrize("further", ["", "gradexplode/update_ratio"])
def test_the_learning_rate_and_scalars_of_this_package_are_found(
    name: str, further: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the names that Lightning's and Hugging Face's loggers use."""
    lines = [f"{step},{1 + step / 100},0.{1 + step % 9},0.5" for step in range(20)]
    (tmp_path / "run.csv").write_text("\n".join([f"step,loss,{name},{further or 'other'}", *lines]))
    assert main(["diagnose", str(tmp_path / "run.csv")]) == 0
    out = capsys.readouterr().out
    assert "learning_rate" in out
    assert not further or further.partition("/")[2] in out


def test_a_log_without_updates_shows_no_outlier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether a batch or an update has made the loss jump is not known."""
    losses = [1.0] * 40 + [1e3 * 8.0**step for step in range(20)]
    lines = [f"{step},{loss},{loss}" for step, loss in enumerate(losses)]
    (tmp_path / "run.csv").write_text("\n".join(["step,loss,grad_norm", *lines]))
    assert main(["diagnose", str(tmp_path / "run.csv"), "--json"]) == 0
    causes = json.loads(capsys.readouterr().out)["causes"]
    assert "ordinary" not in json.dumps(causes)


def test_the_shortest_name_with_all_words_is_the_metric() -> None:
    """Losses of parts have longer names than the loss of the run; a name that is given has to be there."""
    metrics = {name: {0: 1.0} for name in ("train_loss_step/head", "train_loss", "grad_norm_clipped", "grad_norm")}
    assert find_metric(metrics, None, "loss") == "train_loss"
    assert find_metric(metrics, None, "grad", "norm") == "grad_norm"
    assert find_metric(metrics, None, "lr") is None
    with pytest.raises(ValueError, match="there is no metric 'val_loss'"):
        find_metric(metrics, "val_loss", "loss")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("val_loss", "train_loss"), "train_loss"),
        (("eval/loss", "train/loss_epoch"), "train/loss_epoch"),
        (("value_loss", "policy_loss"), "value_loss"),
        (("validation loss",), "validation loss"),
    ],
)
def test_a_loss_of_training_is_preferred_to_a_shorter_name(names: tuple[str, ...], found: str) -> None:
    """The loss of validation has few values; it is used only if the log has no other."""
    assert find_metric({name: {0: 1.0} for name in names}, None, "loss") == found
