"""Take the pictures in ``docs/images`` of the demo's report and of its logs in TensorBoard.

Run: ``python docs/pictures.py``. It needs the dependency group ``test``, Pillow, and Chromium with chromedriver
(Debian: ``apt-get install chromium chromium-driver``).
"""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

IMAGES = Path(__file__).with_name("images")
LOGS = "gradexplode-demo"
REPORT = f"{LOGS}/without-clipping/version_0/gradexplode/index.html"
PARTS = {"report.png": (".badge", ".first"), "report-curves.png": (".first ~ h2", "#heatmap-0 ~ figcaption")}
"""The first and the last element of the report that a picture shows."""
MARGIN = 14
"""Pixels around these."""


@contextmanager
def browser(width: int, height: int) -> Iterator[webdriver.Chrome]:
    """Start Chromium without a window, in light colors."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        yield driver
    finally:
        driver.quit()


def save(driver: webdriver.Chrome, name: str, left: float, top: float, right: float, bottom: float) -> None:
    """Write a part of the page, given by its edges, with at most 256 colors."""
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top, "scale": 1}
    png = base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})["data"])
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    picture.save(IMAGES / name, optimize=True)


def picture_report(page: Path) -> None:
    """Take the first screen of a report, and its curves with the heat map."""
    with browser(1230, 3000) as driver:
        driver.get(page.as_uri())
        time.sleep(3)
        for name, selectors in PARTS.items():
            first, last = (
                driver.execute_script(f"return document.querySelector({one!r}).getBoundingClientRect()")
                for one in selectors
            )
            save(driver, name, 0, first["top"] - MARGIN, 1230, last["bottom"] + MARGIN)


def picture_tensorboard(logs: Path) -> None:
    """Take the curves and histograms of a folder of logs in TensorBoard."""
    options = ["--logdir", str(logs), "--port", "0", "--host", "127.0.0.1", "--load_fast", "false"]
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *options], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        address = next(found[1] for line in server.stderr if (found := re.search(r"at (http://\S+?)/? ", line)))
        with browser(1400, 900) as driver:
            driver.get(f"{address}/?tagFilter=log10_grad#timeseries")
            time.sleep(10)
            driver.execute_script("document.querySelector('.settings-button').click()")  # closes the settings
            time.sleep(5)
            save(driver, "tensorboard.png", 0, 0, 1400, 900)
    finally:
        server.kill()
        server.communicate()


def main() -> None:
    """Run the demo in a temporary folder, and take the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "lightning_gradexplode", "demo"], cwd=folder, check=True)
        picture_report(Path(folder, REPORT))
        picture_tensorboard(Path(folder, LOGS))


if __name__ == "__main__":
    main()
