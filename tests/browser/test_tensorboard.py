"""What a person sees of an exploding run in TensorBoard."""

from __future__ import annotations

import itertools
import json
import re
import urllib.parse
import urllib.request
from typing import Any

import pytest

from tests.browser.conftest import STEPS, Browser

SIZES = {"layer.weight": 8, "layer.bias": 1}
HISTOGRAMS = {
    f"gradexplode/{quantity}/{name}": size
    for quantity in ("gradient", "update", "weight", "log10_gradient")
    for name, size in SIZES.items()
}


def asked(address: str, path: str, **query: str) -> Any:
    """Return the server's response."""
    with urllib.request.urlopen(f"{address}/data/plugin/{path}?{urllib.parse.urlencode(query)}", timeout=20) as answer:
        return json.load(answer)


@pytest.mark.parametrize("tag", HISTOGRAMS)
def test_the_server_has_each_histogram_of_each_step(address: str, tag: str) -> None:
    """None is missing, no bucket is inverted or overlaps the next one, and no value is lost."""
    series = asked(address, "histograms/histograms", run="exploding/run", tag=tag)
    assert len(series) >= STEPS - 2  # the first steps, before the first finding, have no histograms of updates
    for _, _, buckets in series:
        assert all(left < right for left, right, _ in buckets)
        assert all(one[1] == following[0] for one, following in itertools.pairwise(buckets))
        assert sum(count for _, _, count in buckets) == HISTOGRAMS[tag]


def points(path: str) -> list[tuple[float, float]]:
    """Read the corners of a drawn line; a number that is none is an error."""
    assert path
    assert "NaN" not in path
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.e+-]+),(-?[\d.e+-]+)", path)]


def test_the_histograms_page_draws_each_step(browser: Browser, address: str) -> None:
    """Each histogram of each step is drawn from left to right, with a hill in it."""
    browser.open(f"{address}/#histograms")
    drawn = browser.wait(
        "const loaders = all('tf-histogram-loader').map(one => [one.tag, "
        "[...one.shadowRoot.querySelector('vz-histogram-timeseries').shadowRoot.querySelectorAll('.histogram path')]"
        f".map(path => path.getAttribute('d'))]); return loaders.length == {len(HISTOGRAMS)} && "
        "loaders.every(one => one[1].length && one[1].every(path => path)) ? loaders : null"
    )
    assert drawn is not None, "histograms are missing on the page"
    assert {tag for tag, _ in drawn} == HISTOGRAMS.keys()
    for _, paths in drawn:
        assert len(paths) >= STEPS - 2
        for path in paths:
            corners = points(path)
            assert [x for x, _ in corners] == sorted(x for x, _ in corners)
            floor = corners[0][1]
            assert min(y for _, y in corners) < floor


def test_the_distributions_page_covers_all_steps(browser: Browser, address: str) -> None:
    """Each distribution's bands go over all steps, and the one of the gradients opens at the end."""
    browser.open(f"{address}/#distributions")
    drawn = browser.wait(
        "const loaders = all('tf-distribution-loader').map(one => [one.tag, "
        "[...one.shadowRoot.querySelector('vz-distribution-chart').shadowRoot.querySelectorAll('path')]"
        f".map(path => path.getAttribute('d'))]); return loaders.length == {len(HISTOGRAMS)} && "
        "loaders.every(one => one[1].length && one[1].every(path => path)) ? loaders : null"
    )
    assert drawn is not None, "distributions are missing on the page"
    assert {tag for tag, _ in drawn} == HISTOGRAMS.keys()
    for _, paths in drawn:
        assert all(len({x for x, _ in points(path)}) >= STEPS - 2 for path in paths)
    heights = [[y for _, y in points(path)] for path in dict(drawn)["gradexplode/gradient/layer.weight"]]
    assert max(max(ys) - min(ys) for ys in heights) > 20


def test_the_time_series_page(browser: Browser, address: str) -> None:
    """The filter that the README names leaves the totals on one page, with their last values."""
    browser.open(f"{address}/?tagFilter=^gradexplode%2F%5B^%2F%5D*%24#timeseries")
    titles = browser.wait(
        "const titles = all('scalar-card').map(one => one.textContent); return titles.length > 3 ? titles : null"
    )
    assert any(title.startswith("gradexplode/grad_norm") for title in titles)
    assert not [title for title in titles if title.startswith(("gradexplode/gradient/", "gradexplode/grad_norm/"))]
    assert not browser.wait("return all('histogram-card')", seconds=0)


def test_the_custom_scalars_page(browser: Browser, address: str) -> None:
    """Four charts: the norm's logarithm, norms around the clip, the update ratio in its band, the severity."""
    browser.open(f"{address}/#custom_scalars")
    charts = browser.wait(
        "const charts = all('tf-custom-scalar-multi-line-chart-card, tf-custom-scalar-margin-chart-card')"
        ".map(one => one.shadowRoot.textContent); "
        "return charts.length == 4 && charts.every(text => /gradexplode/.test(text)) ? charts : null"
    )
    assert charts is not None, "the charts are missing on the page"
    (norms,) = [text for text in charts if "grad_norm_clipped" in text]
    assert "gradexplode/clip_val" in norms
    assert any("gradexplode/log10_grad_norm" in text for text in charts)
    assert any("gradexplode/update_ratio" in text for text in charts)
    assert any("gradexplode/severity" in text for text in charts)
    assert browser.wait(
        "const charts = all('vz-line-chart2'); return charts.length == 4 && charts.every(one => "
        "[...one.shadowRoot.querySelectorAll('path')].some(path => (path.getAttribute('d') || '').length > 100))"
    ), "a chart has no curve"


def test_the_text_page_shows_diagnosis_and_findings(browser: Browser, address: str) -> None:
    """The diagnosis and the critical findings can be read, as headings and tables and not as markdown."""
    browser.open(f"{address}/#text")
    texts = browser.wait(
        "const texts = all('tf-text-loader').flatMap(one => [...one.shadowRoot.querySelectorAll('tf-markdown-view')])"
        ".map(one => one.shadowRoot.querySelector('#markdown').textContent).filter(text => text.trim()); "
        "const shown = word => texts.some(text => text.includes(word)); "  # the texts are loaded one after another
        "return texts.length > 3 && shown('Since:') && shown('CRITICAL: diverging') ? texts : null"
    )
    assert texts is not None, "texts are missing on the page"
    assert any("CRITICAL: diverging-loss in layer" in text for text in texts)
    diagnosis = next(text for text in texts if "Since:" in text)
    for heading in ("What:", "Cause 1:", "What to do:", "Where:"):
        assert heading in diagnosis
    assert not [text for text in texts if "**" in text or "###" in text]


def test_the_images_page_shows_the_heat_map(browser: Browser, address: str) -> None:
    """The heat map is there, and large enough to be read."""
    browser.open(f"{address}/#images")
    images = browser.wait(
        "const images = all('tf-image-loader').map(one => [one.tag, one.shadowRoot.querySelector('img')]); "
        "return images.length && images.every(one => one[1] && one[1].naturalWidth) ? "
        "images.map(one => [one[0], one[1].naturalWidth]) : null"
    )
    assert images is not None, "the image is missing on the page"
    ((tag, width),) = images
    assert tag == "gradexplode/gradient_norms"
    assert width > 300
