"""A run in processes that the trainer starts by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import pytorch_lightning as pl
import torch
from lightning_gradexplode import GradientExplosionMonitor
from tests.runs.models import Regression
from tests.runs.probe import QUIET


class Explodes(Regression):
    rate = 1e6

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


if __name__ == "__main__":
    monitor = GradientExplosionMonitor(report="reports")
    pl.Trainer(**QUIET, logger=False, callbacks=[monitor]).fit(Regression())
    module = Explodes()
    module.build = None
    settings = {**QUIET, "max_steps": 12, "strategy": "ddp_spawn", "devices": 2}
    trainer = pl.Trainer(**settings, logger=False, callbacks=[monitor])
    trainer.fit(module)
    print("exploded:", monitor.exploded, sorted({finding.sign for finding in monitor.findings}))
    print("diagnosed:", monitor.diagnosis().causes[0].kind, (monitor.report_folder / "index.html").exists())
    print("measured:", monitor.last.step, len(monitor.last.parameters))
    calm = Explodes()
    calm.build, calm.rate = None, 1e-3
    settings["strategy"] = "ddp_fork"  # which returns results in the same way, and need not import everything again
    trainer = pl.Trainer(**settings, logger=False, callbacks=[monitor])
    trainer.fit(calm)
    print("calm:", monitor.exploded, monitor.failed, monitor.last.step, monitor.diagnosis(), monitor.report_folder)
"""


def test_results_come_back_to_the_process_that_called_fit(tmp_path: Path) -> None:
    """After a spawned run has exploded, the user's own monitor has its results, also after another fit.

    After a later one that is calm it has nothing that an earlier one has left.
    """
    script = tmp_path / "spawned.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
        cwd=tmp_path,
    )
    assert "exploded: True" in done.stdout
    assert "diagnosed: learning-rate True" in done.stdout
    assert "measured: 11 4" in done.stdout
    assert "calm: False False 11 None None" in done.stdout
