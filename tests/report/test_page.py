"""The page of a report."""

from __future__ import annotations

import importlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from torch import nn

from lightning_gradexplode import GradientWatch, report
from lightning_gradexplode.records import Finding, ReportContent, Severity, UpdateFault
from lightning_gradexplode.report import page, plotly_base, write_report
from lightning_gradexplode.report.page import facts
from tests.report import examples

HOSTILE = '<script>alert("1")</script>'


class Reader(HTMLParser):
    """Collects a page's text, and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the element and its references."""
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        """Record text."""
        self.text += data


def hostile() -> ReportContent:
    """Return a report in which every text of a user is markup."""
    content = examples.at_once()
    assert content.diagnosis is not None
    diagnosis = replace(content.diagnosis, what=HOSTILE, where=HOSTILE, remedies=(HOSTILE, f"`{HOSTILE}`"))
    findings = (Finding(39, "own-sign", Severity.CRITICAL, HOSTILE, math.nan, math.inf, HOSTILE),)
    (history,) = content.evidence.history
    named = replace(history, parameters=(HOSTILE, *history.parameters[1:]))
    evidence = replace(content.evidence, history=(named,), findings=findings)
    return replace(content, run_name=HOSTILE, diagnosis=diagnosis, findings=findings, evidence=evidence)


@pytest.mark.parametrize("with_plotly", [True, False])
def test_text_of_users_is_never_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_plotly: bool) -> None:
    """Names, messages and remedies are escaped, in the page and in its figures, which need nothing from elsewhere."""
    monkeypatch.setattr(plotly_base, "script", lambda: "" if with_plotly else None)
    report = write_report(tmp_path, hostile())
    assert report.page is not None
    text = report.page.read_text()
    assert "<script>alert" not in text
    reader = Reader()
    reader.feed(text)
    assert HOSTILE in reader.text
    assert all(source.startswith("data:") for source in reader.sources)


def test_a_page_shows_the_weight_that_an_update_has_lost(tmp_path: Path) -> None:
    """It has the weight before the update, its gradient, and the optimizer's state for it."""
    content, state = examples.half_precision(), {"exp_avg_sq": 0.0, "step": 64.0}
    fault = UpdateFault("blocks.0.weight", "float16", 0, 3, math.inf, 0.125, 2e-5, state)
    write_report(tmp_path, replace(content, evidence=replace(content.evidence, update_fault=fault)))
    reader = Reader()
    reader.feed((tmp_path / "index.html").read_text())
    text = " ".join(reader.text.split())
    assert "made 3 elements of blocks.0.weight (float16) NaN or infinite" in text
    assert "Weight before0.125 Gradient2e-05 Weight afterinf exp_avg_sq0 step64" in text


def test_without_plotly_the_page_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The charts are plain SVG then, and all of them are there."""
    monkeypatch.setattr(plotly_base, "script", lambda: None)
    report = write_report(tmp_path, examples.growing())
    assert report.page is not None
    reader = Reader()
    reader.feed(report.page.read_text())
    assert 'pip install "lightning-gradexplode[report]"' in reader.text
    assert reader.tags.count("svg") == 4
    assert report.page.stat().st_size < 200_000


def test_a_page_is_smaller_than_six_megabytes(tmp_path: Path) -> None:
    """With plotly's script and a network of a thousand parameters."""
    report = write_report(tmp_path, examples.growing(1000))
    assert report.page is not None
    assert report.page.stat().st_size < 6_000_000


def test_one_bad_element_is_written_in_the_singular(tmp_path: Path) -> None:
    """And several ones in the plural."""
    (step, histogram), *_ = examples.growing().gradients
    gradients = tuple((step + place, replace(histogram, nonfinite=count)) for place, count in enumerate((1, 2)))
    write_report(tmp_path, replace(examples.growing(), gradients=gradients))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert f"At step {step}, 1 element is NaN or infinite." in page
    assert f"At step {step + 1}, 2 elements are NaN or infinite." in page


def test_captions_explain_only_what_is_drawn() -> None:
    """A healthy run has no line of an incident and no button that leads back to it; an explosion has both."""
    pages = {
        name: page(content) for name, content in {"ok": examples.healthy(), "bad": examples.growing(5, 195)}.items()
    }
    for text in ("the first critical finding", "responses", "around the incident"):
        assert text in pages["bad"]
        assert text not in pages["ok"]
    assert "none of them critical" not in pages["ok"]


@pytest.mark.parametrize(("width", "steps"), [(8, ["149", "150"]), (1, [])])
def test_gradient_elements_are_those_of_the_latest_incident(width: int, steps: list[str], tmp_path: Path) -> None:
    """The chart compares its step with the calm one before it; parameters of few elements have none."""
    network = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    intervals = {"log_every_n_steps": 1, "histogram_every_n_steps": 1}
    with GradientWatch(network, optimizer, log_dir=tmp_path, on_explosion="skip", **intervals) as watch:  # type: ignore[arg-type]
        for step in range(200):
            optimizer.zero_grad()
            loss = network(torch.full((8, 4), math.nan if step in (20, 150) else 1.0)).square().mean()
            watch.loss(loss)
            loss.backward()
            optimizer.step()
    text = (tmp_path / "gradexplode" / "index.html").read_text(encoding="utf-8")
    caption = re.search(r"by absolute value at step (\d+) and, with a finding, at\s+step (\d+)", text)
    assert ([] if caption is None else [*caption.groups()]) == steps
    assert ("Gradient elements of" in text) == bool(steps)


@pytest.mark.parametrize(("steps", "last", "skips"), [(100, 99, 8), (700, None, 1)])
def test_a_page_is_written_again_at_the_end_of_a_run(steps: int, last: int | None, skips: int, tmp_path: Path) -> None:
    """With all actions of the incident, as long as the recorded steps still reach back to it."""
    network = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    with GradientWatch(network, optimizer, log_dir=tmp_path, on_explosion="skip") as watch:
        for step in range(steps):
            optimizer.zero_grad()
            loss = network(torch.full((8, 4), math.nan if step % 10 == 9 and step > 20 else 1.0)).square().mean()
            watch.loss(loss)
            loss.backward()
            optimizer.step()
    text = (tmp_path / "gradexplode" / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"UTC, after step (\d+)", text) == ([] if last is None else [str(last)])
    assert "Replay of step 29" in text
    assert f"{skips} in this fit" in text


def test_the_batch_is_the_one_that_is_diagnosed() -> None:
    """With accumulation it need not be the last one of its step."""
    content = examples.at_once()
    assert content.evidence.batch is not None
    earlier = replace(content.evidence, batch=replace(content.evidence.batch, batch_idx=38))
    assert ("Batch", "index 38, 32 rows") in facts(replace(content, evidence=earlier))


def test_the_value_of_a_finding_that_is_nan_is_shown_as_such() -> None:
    """NaN is the value of a finding, and the limit of one that has none is empty."""
    content = examples.at_once()
    findings = (Finding(3, "nonfinite-loss", Severity.CRITICAL, None, math.nan, math.nan, "the loss is NaN"),)
    row = re.search(r"<td>the loss is NaN</td>(.*)</tr>", page(replace(content, findings=findings)))
    assert row is not None
    assert re.findall(r">([^<]*)</td>", row[1]) == ["NaN", ""]


def test_the_template_is_read_from_a_zip_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package need not be in a folder."""
    folder = Path(report.__file__).parent
    with ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("archived/__init__.py", "")
        for name in ("page.py", "page.html.jinja"):
            archive.write(folder / name, f"archived/{name}")
    monkeypatch.syspath_prepend(tmp_path / "archive.zip")
    archived = importlib.import_module("archived.page")
    content = examples.healthy()
    assert archived.page(content) == page(content)
