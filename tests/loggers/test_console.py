"""Messages in the terminal."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_gradexplode.loggers import console
from lightning_gradexplode.loggers.console import Console, log, log_to_terminal
from lightning_gradexplode.loggers.panel import incident_panel
from lightning_gradexplode.records import Attempt, Cause, Diagnosis, Report, Severity
from lightning_gradexplode.records.log import ShieldedLogger
from tests.loggers.steps import finding

DIAGNOSIS = Diagnosis(
    41,
    "The loss rose from 0.19 to 147.3 within 8 steps. " + "It was growing before. " * 12,
    "layer.weight",
    40,
    (
        Cause("learning-rate", "layer.weight", ("A tenth of the update lowers the loss; all of it raises it.",), 0.8),
        Cause("depth", None, ("The gain per layer is 1.3.",), 0.4),
    ),
    ("Lower the learning rate to 0.005: `SGD(params, lr=0.005)`", 'Clip:\n```python\nmonitor(clip="auto")\n```'),
)
PANEL = incident_panel(DIAGNOSIS, [finding()])


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages that were logged."""
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("severity", "level"), [(Severity.INFO, logging.INFO), (Severity.WARNING, logging.WARNING)])
def test_a_finding_is_logged_in_one_line(severity: Severity, level: int, caplog: pytest.LogCaptureFixture) -> None:
    """One message at the level of its severity: what, where, when, value and limit, and what to do."""
    caplog.set_level(logging.INFO, logger="lightning_gradexplode")
    Console().finding(finding(severity), "clip the gradients")
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("lightning_gradexplode", level)
    (line,) = record.getMessage().splitlines()
    for word in (severity.name, "gradient-growth", "layer.weight", "41", "123.25", "20.5", "clip the gradients"):
        assert word in line


@pytest.mark.parametrize("limit", [math.inf, math.nan, 0.0])
def test_a_limit_without_a_meaning_is_left_out(limit: float, caplog: pytest.LogCaptureFixture) -> None:
    """A limit of zero or infinity is not logged, nor is a place where there is none."""
    Console().finding(finding(Severity.WARNING, where=None, limit=limit), "look")
    (line,) = messages(caplog)
    assert "limit" not in line
    assert "None" not in line


def test_messages_with_percent_signs(caplog: pytest.LogCaptureFixture) -> None:
    """Names and messages are not taken for formats."""
    Console().finding(finding(Severity.WARNING, where="layer%s.weight"), "at 100 % of %d")
    assert "layer%s.weight" in caplog.text
    assert "100 % of %d" in caplog.text


def test_the_path_of_the_report_is_whole_however_long_it_is() -> None:
    """It stays in one line, so that it can be copied."""
    folder = Path("runs", *["a name with  spaces, 40 characters long, " * 3] * 3)
    panel = incident_panel(DIAGNOSIS, [finding()], report=Report(41, folder, folder / "index.html"))
    assert str(panel).endswith(f"\n  Report: {folder / 'index.html'}")


def test_a_panel_can_be_written_as_json(caplog: pytest.LogCaptureFixture) -> None:
    """Formatters that write all attributes of a record as JSON, as Ray's does, can write those of a panel."""
    Console().incident(DIAGNOSIS, [finding()])
    (record,) = caplog.records
    assert "What:" in json.dumps({**vars(record), "exc_info": None})


def test_an_incident_takes_at_most_a_dozen_lines(caplog: pytest.LogCaptureFixture) -> None:
    """A warning, the panel and all that follows, however much it is, have no more lines."""
    console = Console()
    console.finding(finding(Severity.WARNING), "clip")
    console.finding(finding(Severity.CRITICAL), "clip")
    attempts = [Attempt(step, "skip", "update held back because of nonfinite-loss") for step in range(41, 60)]
    console.incident(DIAGNOSIS, [finding()], attempts, ["SkipStep"], Report(41, Path("logs"), Path("logs/index.html")))
    for step in range(42, 142):
        console.finding(replace(finding(), step=step), "clip")
    console.end_incident()
    lines = "\n".join(messages(caplog)).splitlines()
    assert len(lines) <= 12
    headings = [line.split(":")[0].strip() for line in lines if line.startswith("  ") and ":" in line[:10]]
    assert headings == ["What", "Why", "Do", "Where", "Done", "Report"]
    assert "steps 41 to 59, 19 times: update held back" in caplog.text
    assert "gradient-growth 100 times, first at step 42" in lines[-1]


def test_findings_of_the_step_of_the_panel_are_no_further_ones(caplog: pytest.LogCaptureFixture) -> None:
    """What was found at the same step is part of the panel, and the line at the end names later findings only."""
    console = Console()
    console.finding(finding())
    console.finding(replace(finding(Severity.WARNING), sign="large-update"))
    console.incident(DIAGNOSIS, [finding()])
    console.finding(replace(finding(), sign="nonfinite-loss", step=45))
    console.end_incident()
    panel, last = messages(caplog)
    assert "What:" in panel
    assert last.endswith("further findings of the incident: nonfinite-loss at step 45")


def test_a_less_likely_cause_follows_the_evidence_of_the_first_one() -> None:
    """The sentence of evidence does not end before it; a faint cause is not named."""
    (why,) = (text for heading, text, _ in PANEL.sections if heading == "Why")
    assert why.endswith("A tenth of the update lowers the loss; all of it raises it; or depth (40%)")
    faint = replace(DIAGNOSIS, causes=(DIAGNOSIS.causes[0], Cause("depth", None, (), 0.1)))
    (why,) = (text for heading, text, _ in incident_panel(faint, [finding()]).sections if heading == "Why")
    assert why.endswith("all of it raises it.")


def test_warnings_that_follow_the_first_one_are_counted_without_it(caplog: pytest.LogCaptureFixture) -> None:
    """The first warning has its own line, and the line at the end names the two after it."""
    console = Console()
    for step in (41, 43, 44):
        console.finding(replace(finding(Severity.WARNING), step=step))
    console.end_incident()
    _, last = messages(caplog)
    assert last.endswith("gradient-growth 2 times, first at step 43")


def test_another_diagnosis_of_an_incident_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """The panel is not repeated; the cause that was found later, and what to do about it, are named."""
    console = Console()
    console.finding(finding())
    console.incident(DIAGNOSIS, [finding()])
    later = replace(
        DIAGNOSIS, causes=(Cause("outlier-batch", "batch", ("Row 3 is far off.",), 0.9),), remedies=("clip",)
    )
    console.incident(later, [finding()])
    last = messages(caplog)[-1]
    assert len(last.splitlines()) == 1
    assert "outlier-batch in batch (90%): Row 3 is far off." in last
    assert last.endswith("-> Clip.")


def test_a_run_of_many_incidents_logs_few_of_them(caplog: pytest.LogCaptureFixture) -> None:
    """Three of a kind in full, then the 10th, the 100th and so on, so that a long run's log does not grow with it."""
    console = Console()
    for _ in range(1000):
        console.finding(finding(Severity.WARNING))
        console.finding(finding())
        console.incident(DIAGNOSIS, [finding()])
        console.finding(replace(finding(), step=42))
        console.end_incident()
    panels = [message for message in messages(caplog) if "What:" in message]
    assert len(panels) == 6
    assert "(number 1000 of this kind)" in panels[-1]
    assert len(caplog.records) == 18


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """Replace the package's logger by one without handlers, as if logging was not configured."""
    one = logging.Logger("lightning_gradexplode")
    monkeypatch.setattr(console, "logger", ShieldedLogger(one))
    return one


def said(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    """Log the panel, and return what is written to standard error."""
    monkeypatch.setattr(sys, "stderr", stream)
    log(logging.ERROR, str(PANEL), PANEL)
    return stream.getvalue()


@pytest.mark.usefixtures("ours")
def test_a_panel_is_drawn_in_colour_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it has a bar and colours; in a file, on a dumb terminal or without rich it is plain text."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    drawn = said(monkeypatch, Terminal())
    assert "\x1b[" in drawn
    assert "\u258c" in drawn
    assert 'monitor(clip="auto")' in drawn
    assert said(monkeypatch, io.StringIO()) == f"{PANEL}\n"
    monkeypatch.setenv("TERM", "dumb")
    assert said(monkeypatch, Terminal()) == f"{PANEL}\n"
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert said(monkeypatch, Terminal()) == f"{PANEL}\n"


@pytest.mark.usefixtures("ours")
def test_colour_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable NO_COLOR takes the colours and leaves the bar."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    drawn = said(monkeypatch, Terminal())
    assert "\x1b[3" not in drawn
    assert "\u258c" in drawn


def test_a_panel_is_plain_text_in_logs(caplog: pytest.LogCaptureFixture) -> None:
    """One message of a title and a few lines for each heading, no wider than a terminal, with no colours."""
    log(logging.ERROR, str(PANEL), PANEL)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    title, *lines = record.getMessage().splitlines()
    assert title == "gradexplode CRITICAL at step 41: gradient-growth"
    assert len(lines) <= 9
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in record.getMessage()
    assert "`" not in record.getMessage()


def test_users_silence_us_through_logging(ours: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """By the logger's level, or by a handler of their own; what is only worth knowing is silent from the start."""
    log(logging.INFO, "worth knowing")
    assert capsys.readouterr().err == ""
    ours.setLevel(logging.CRITICAL)
    log(logging.ERROR, str(PANEL), PANEL)
    assert capsys.readouterr().err == ""
    ours.setLevel(logging.INFO)
    log(logging.INFO, "worth knowing")
    assert "worth knowing" in capsys.readouterr().err
    ours.addHandler(logging.NullHandler())
    log(logging.ERROR, str(PANEL), PANEL)
    assert capsys.readouterr().err == ""


def test_what_others_in_the_package_say_is_beside_the_bars(
    ours: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a fit is listened to, a message that is only logged has a line of its own; afterwards nothing is left."""
    tqdm = pytest.importorskip("tqdm").tqdm
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    stop = log_to_terminal()
    with tqdm(total=10, file=terminal, desc="Epoch 0", mininterval=0) as bar:
        bar.update(3)
        ours.warning("a message")
    stop()
    before, _ = terminal.getvalue().split("a message\n")
    assert before.split("\r")[-2].strip() == ""
    assert not ours.handlers


@pytest.mark.usefixtures("ours")
def test_a_bar_of_tqdm_is_wiped_out_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has lines of its own: the bar before it is wiped out, and drawn again below it."""
    tqdm = pytest.importorskip("tqdm").tqdm
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with tqdm(total=10, file=terminal, desc="Epoch 0", mininterval=0) as bar:
        bar.update(3)
        log(logging.WARNING, "a message")
    before, after = terminal.getvalue().split("a message\n")
    assert before.endswith("\r")
    assert before.split("\r")[-2].strip() == ""
    assert "Epoch 0" in after


@pytest.mark.parametrize("handler", [True, False])
def test_a_live_display_of_rich_stays_whole(
    ours: logging.Logger, monkeypatch: pytest.MonkeyPatch, handler: bool
) -> None:
    """The message is printed through the display, also by a handler that holds the stream from before."""
    live = pytest.importorskip("rich.live")
    rich = pytest.importorskip("rich.console")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    theirs = logging.StreamHandler(terminal)
    if handler:
        ours.addHandler(theirs)
    with live.Live("the bar", console=rich.Console(file=terminal, force_terminal=True), auto_refresh=False) as shown:
        shown.refresh()
        log(logging.WARNING, "a message")
        shown.refresh()
    # The display moves the cursor back over itself before a line, and draws itself again below.
    assert "\x1b[2Ka message" in terminal.getvalue()
    assert theirs.stream is terminal


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_without_unicode_gets_the_panel(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In characters that it has; a closed stream costs the message alone."""
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    log(logging.ERROR, str(PANEL), PANEL)
    text = written.getvalue().decode("ascii")
    assert "learning-rate in layer.weight (80%)" in text
    assert "..." in text
    stream.close()
    log(logging.ERROR, str(PANEL), PANEL)
