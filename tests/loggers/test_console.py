"""What the terminal says."""

from __future__ import annotations

import io
import logging
import math
import sys

import pytest

from lightning_gradexplode.loggers import console
from lightning_gradexplode.loggers.console import Panel, listen, say, tell, tell_panel, tell_rest
from lightning_gradexplode.records import Severity
from tests.loggers.steps import finding


@pytest.mark.parametrize(
    ("severity", "level"),
    [(Severity.INFO, logging.INFO), (Severity.WARNING, logging.WARNING), (Severity.CRITICAL, logging.ERROR)],
)
def test_a_finding_is_told_in_two_lines(severity: Severity, level: int, caplog: pytest.LogCaptureFixture) -> None:
    """One message at the level of its severity: what, where, when, value and limit, and then what to do."""
    caplog.set_level(logging.INFO, logger="lightning_gradexplode")
    tell(finding(severity), "clip the gradients")
    (told,) = caplog.records
    assert (told.name, told.levelno) == ("lightning_gradexplode", level)
    what, advice = told.getMessage().splitlines()
    for word in (severity.name, "gradient-growth", "layer.weight", "41", "123.25", "20.5"):
        assert word in what
    assert "clip the gradients" in advice


@pytest.mark.parametrize("limit", [math.inf, math.nan, 0.0])
def test_a_limit_that_says_nothing_is_left_out(limit: float, caplog: pytest.LogCaptureFixture) -> None:
    """A limit of zero or infinity is not told, nor is a place where there is none."""
    tell(finding(where=None, limit=limit), "look")
    what = caplog.records[0].getMessage().splitlines()[0]
    assert "limit" not in what
    assert "None" not in what


def test_messages_with_percent_signs(caplog: pytest.LogCaptureFixture) -> None:
    """Names and messages are not taken for formats."""
    tell(finding(where="layer%s.weight"), "at 100 % of %d")
    assert "layer%s.weight" in caplog.text
    assert "100 % of %d" in caplog.text


PANEL = Panel("the run is exploding", (("What", "gradient-growth: " + "a long sentence " * 12), ("Next", "clip [it]")))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """Put a logger in our logger's place that nobody listens to, as where logging was not set up."""
    one = logging.Logger("lightning_gradexplode")
    monkeypatch.setattr(console, "logger", one)
    return one


def said(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    """Tell the panel, and give what standard error gets."""
    monkeypatch.setattr(sys, "stderr", stream)
    tell_panel(PANEL)
    return stream.getvalue()


@pytest.mark.usefixtures("ours")
def test_a_panel_is_drawn_in_colour_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it has a frame and colours; in a file, on a dumb terminal or without rich it is plain text."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    drawn = said(monkeypatch, Terminal())
    assert "\x1b[" in drawn
    assert "\u256d" in drawn
    assert "clip [it]" in drawn
    assert said(monkeypatch, io.StringIO()) == f"{PANEL}\n"
    monkeypatch.setenv("TERM", "dumb")
    assert said(monkeypatch, Terminal()) == f"{PANEL}\n"
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert said(monkeypatch, Terminal()) == f"{PANEL}\n"


@pytest.mark.usefixtures("ours")
def test_users_who_want_no_colour_get_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable NO_COLOR takes the colours and leaves the frame."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    drawn = said(monkeypatch, Terminal())
    assert "\x1b[3" not in drawn
    assert "\u256d" in drawn


def test_a_panel_is_plain_text_in_logs(caplog: pytest.LogCaptureFixture) -> None:
    """One message of a title and a line for each heading, long ones folded under their heading, with no colours."""
    tell_panel(PANEL)
    (told,) = caplog.records
    assert told.levelno == logging.ERROR
    title, *lines = told.getMessage().splitlines()
    assert title == "the run is exploding"
    assert [line.split()[0] for line in lines if ":" in line[:8]] == ["What:", "Next:"]
    assert len(lines) == 4
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in told.getMessage()


def test_users_silence_us_through_logging(ours: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """By the logger's level, or by a handler of their own; what is only worth knowing is silent from the start."""
    say(logging.INFO, "worth knowing")
    assert capsys.readouterr().err == ""
    ours.setLevel(logging.CRITICAL)
    tell_panel(PANEL)
    assert capsys.readouterr().err == ""
    ours.setLevel(logging.INFO)
    say(logging.INFO, "worth knowing")
    assert "worth knowing" in capsys.readouterr().err
    ours.addHandler(logging.NullHandler())
    tell_panel(PANEL)
    assert capsys.readouterr().err == ""


def test_the_rest_of_an_explosion_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Every further sign with its first step, and where it all began."""
    tell_rest({"large-update": 43, "nonfinite-loss": 60}, began=41)
    (told,) = caplog.records
    assert len(told.getMessage().splitlines()) == 1
    for word in ("41", "large-update (step 43)", "nonfinite-loss (step 60)"):
        assert word in told.getMessage()


def test_what_others_in_the_package_say_is_beside_the_bars(
    ours: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a fit is listened to, a message that is only logged has a line of its own; afterwards nothing is left."""
    tqdm = pytest.importorskip("tqdm").tqdm
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    stop = listen()
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
        say(logging.WARNING, "a message")
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
        say(logging.WARNING, "a message")
        shown.refresh()
    # The display moves the cursor back over itself before a line, and draws itself again below.
    assert "\x1b[2Ka message" in terminal.getvalue()
    assert theirs.stream is terminal
