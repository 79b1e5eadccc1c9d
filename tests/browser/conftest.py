"""A real TensorBoard on a real exploding run, and a real browser that looks at it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from lightning_gradexplode import GradientExplosionMonitor
from lightning_gradexplode.testing import ExplodingRegression
from tests.runs.probe import QUIET

STEPS = 12


class Exploding(ExplodingRegression, pl.LightningModule):
    """Grows without end: a weight of 8 elements and a bias of one."""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a network that explodes, with histograms at every step, and return the folder of its logs."""
    folder = tmp_path_factory.mktemp("logs")
    logger = TensorBoardLogger(folder, name="exploding", version="run")
    monitor = GradientExplosionMonitor(histogram_every_n_steps=1, clip=1e6)
    trainer = pl.Trainer(**{**QUIET, "max_steps": STEPS}, logger=logger, callbacks=[monitor])
    trainer.fit(Exploding())
    assert monitor.exploded
    return folder


@pytest.fixture(scope="session")
def address(run: Path) -> Iterator[str]:
    """Serve the run by TensorBoard, on a port that is free."""
    options = ["--logdir", str(run), "--port", "0", "--host", "127.0.0.1", "--load_fast", "false"]
    server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *options], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        lines = []
        for line in server.stderr:
            lines.append(line)
            found = re.search(r"TensorBoard .* at (http://\S+?)/? ", line)
            if found:
                yield found[1]
                return
        pytest.fail(f"TensorBoard did not start: {''.join(lines)}")
    finally:
        server.kill()
        server.communicate()


class Browser:
    """A browser without a window.

    Args:
        driver: What drives it.
    """

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def wait(self, script: str, seconds: float = 20.0) -> Any:
        """Return the first truthy result of a script; ``all(selector)`` also searches shadow roots."""
        all_roots = (
            "const all = selector => { const found = []; const walk = root => { for (const one of "
            "root.querySelectorAll('*')) { if (one.matches(selector)) found.push(one); "
            "if (one.shadowRoot) walk(one.shadowRoot); } }; walk(document); return found; };"
        )
        until = time.monotonic() + seconds
        while True:
            value = self.driver.execute_script(all_roots + script)
            if value or time.monotonic() > until:
                return value
            time.sleep(0.2)

    def open(self, address: str) -> None:
        """Open a page anew."""
        self.driver.get("about:blank")
        self.driver.get(address)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start Chromium by the driver that is installed with it; nothing is downloaded."""
    chromium = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("no Chromium with its chromedriver is installed (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1500,1300",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    driver.set_script_timeout(20)
    yield Browser(driver)
    driver.quit()
