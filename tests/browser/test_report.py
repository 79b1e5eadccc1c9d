"""What a person sees of a report in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_gradexplode.records import ReportContent
from lightning_gradexplode.report import plotly_base, write_report
from tests.browser.conftest import Browser
from tests.report import examples

pytest.importorskip("plotly")

CONTENTS = {
    "5 parameters": lambda: examples.growing(5),
    "1000 parameters": lambda: examples.growing(1000),
    "one step": examples.at_once,
    "negative loss": examples.negative_loss,
    "half precision": examples.half_precision,
}


@pytest.fixture(scope="module", params=CONTENTS)
def opened(
    request: pytest.FixtureRequest, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Browser, ReportContent]:
    """Open the page of a report."""
    content = CONTENTS[request.param]()
    page = write_report(tmp_path_factory.mktemp("report"), content).page
    assert page is not None
    browser.open(page.as_uri())
    assert browser.wait("return all('.main-svg').length > 2")
    return browser, content


def texts(browser: Browser, selector: str) -> list[str]:
    """Return the texts of elements."""
    found: list[str] = browser.wait(f"return all({selector!r}).map(one => one.textContent)") or []
    return found


def test_the_first_screen_says_what_why_and_what_to_do(opened: tuple[Browser, ReportContent]) -> None:
    """Verdict, the first cause and the facts are above the fold of a laptop."""
    browser, content = opened
    assert content.diagnosis is not None
    bottom: Any = browser.wait("return all('.cause, .remedies, #facts').map(one => one.getBoundingClientRect().bottom)")
    assert max(bottom) < 900
    assert content.diagnosis.causes[0].kind in texts(browser, ".cause h3")[0]


def test_the_heat_map_marks_the_row_at_fault(opened: tuple[Browser, ReportContent]) -> None:
    """Its row is named and marked, however many rows there are, and the first one executed is on top."""
    browser, content = opened
    assert content.diagnosis is not None
    rows = [text for text in texts(browser, "[id^=heatmap] .ytick text") if text]
    names = {name for history in content.evidence.history for name in history.parameters}
    assert 3 < len(rows) <= 90
    if content.diagnosis.where in names:
        (marked,) = [row for row in rows if row.startswith("\u25b6")]
        assert content.diagnosis.where.endswith(marked[-8:])


def test_axes_are_logarithmic(opened: tuple[Browser, ReportContent]) -> None:
    """The panels have the same time axis, and ticks of their own values, zero among them for a negative loss."""
    browser, content = opened
    ticks = texts(browser, "#time-0 .ytick text, #time-0 .yaxislayer-above text")
    assert len(ticks) >= 6
    if content.run_name == "gan":
        assert "0" in ticks
        assert any(tick.startswith(("-", "\u2212")) for tick in ticks)


def test_the_page_needs_nothing_from_elsewhere(opened: tuple[Browser, ReportContent]) -> None:
    """No request is made, and no part of it is wider than a phone's screen allows."""
    browser, _ = opened
    assert browser.wait(
        "return performance.getEntriesByType('resource').filter(one => !one.name.startsWith('data:')).length == 0"
    )
    assert browser.wait("return document.documentElement.scrollWidth <= window.innerWidth")


def test_plain_charts_are_drawn_too(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without plotly every curve has a length, and the heat map a picture."""
    monkeypatch.setattr(plotly_base, "script", lambda: None)
    page = write_report(tmp_path, examples.growing()).page
    assert page is not None
    browser.open(page.as_uri())
    assert (
        browser.wait("return all('.plain path').every(one => one.getTotalLength() > 50) && all('.plain path').length")
        >= 6
    )
    assert browser.wait("return all('.plain image').length == 1")
    assert any("blocks.6.layer_1.weight" in text for text in texts(browser, ".plain .marked"))


def test_curves_and_heat_map_show_the_same_steps(browser: Browser, tmp_path: Path) -> None:
    """Whichever of the two is zoomed, and whichever button is pressed."""
    page = write_report(tmp_path, examples.growing(since=295)).page
    assert page is not None
    browser.open(page.as_uri())
    assert browser.wait("return all('.main-svg').length > 2")
    ranges = (
        "const shown = ['time-0', 'heatmap-0'].map(id => document.getElementById(id).layout.xaxis.range.map(Number)); "
    )
    for zoomed, first in (("heatmap-0", 11), ("time-0", 13)):
        browser.wait(f"Plotly.relayout('{zoomed}', {{'xaxis.range': [{first}, 40]}}); return true")
        assert browser.wait(f"{ranges} return shown.every(one => one[0] == {first} && one[1] == 40)")
    browser.wait("document.querySelector('[data-all]').click(); return true")
    assert browser.wait(f"{ranges} return shown[0][0] < 0 && String(shown[0]) == String(shown[1])")


def test_code_of_a_remedy_is_copied_with_a_click(browser: Browser, tmp_path: Path) -> None:
    """The whole code and nothing else, in the middle of its sentence; names are no code that anybody copies."""
    page = write_report(tmp_path, examples.growing()).page
    assert page is not None
    browser.open(page.as_uri())
    assert browser.wait("return all('.remedies code[role=button]').length > 0")
    browser.wait("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve() }; return 1")
    browser.wait("document.querySelector('.remedies code[role=button]').click(); return true")
    first = texts(browser, ".remedies code[role=button]")[0]
    assert browser.wait("return window.copied") == first
    assert browser.wait("return all('.remedies code.copied').length == 1")
    assert browser.wait("return !document.getElementById('copy-hint').hidden")
    assert browser.wait("return all('.remedies li > button').length == 0")


def test_findings_can_be_read_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    """At 390 pixels nothing is wider than the screen, and each finding's message is within it."""
    page = write_report(tmp_path, examples.growing(1000)).page
    assert page is not None
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open(page.as_uri())
        assert browser.wait("return all('.main-svg').length > 2")
        assert browser.wait("return document.documentElement.scrollWidth <= 390")
        edges = browser.wait("return all('#findings td:nth-child(5)').map(one => one.getBoundingClientRect().right)")
        assert max(edges) <= 390
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
