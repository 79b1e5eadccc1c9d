"""Records as notebooks show them."""

from __future__ import annotations

from pathlib import Path

from lightning_gradexplode.records import Cause, Diagnosis, Finding, Report, Severity, StepRecord
from lightning_gradexplode.records.html import with_code

HOSTILE = "<script>alert(1)</script>"


def test_records_show_themselves_without_markup_of_users() -> None:
    """Finding, record and diagnosis are tables, in which names and messages are text."""
    finding = Finding(3, "large-update", Severity.WARNING, HOSTILE, 2.0, 1.0, HOSTILE)
    cause = Cause("depth", HOSTILE, (HOSTILE,), 0.8)
    diagnosis = Diagnosis(3, HOSTILE, HOSTILE, 2, (cause,), (f"Use `{HOSTILE}`",))
    record = StepRecord(7, grad_norm=1.5, loss=None)
    for one in (finding, diagnosis, record):
        html = one._repr_html_()
        assert html.startswith("<div><strong>")
        assert "<script" not in html
    assert "grad norm</th>" in record._repr_html_()
    assert "loss</th>" not in record._repr_html_()
    assert "depth" in diagnosis._repr_html_()


def test_a_report_is_shown_inline(tmp_path: Path) -> None:
    """In a frame of its own, so that its styles and scripts do not touch the notebook's."""
    page = tmp_path / "index.html"
    page.write_text('<p class="a">it grew</p>')
    assert 'srcdoc="&lt;p class=&quot;a&quot;&gt;it grew' in Report(3, tmp_path, page)._repr_html_()
    assert Report(3, tmp_path)._repr_html_() == tmp_path.name


def test_text_between_backticks_becomes_code() -> None:
    """Single ones are inline, three make a block, and one alone is text."""
    assert with_code("a `b<` c") == "a <code>b&lt;</code> c"
    assert with_code("x\n```python\ny = 1\n```") == "x\n<pre><code>y = 1</code></pre>"
    assert with_code("5` long") == "5` long"
