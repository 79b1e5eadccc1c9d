"""Build wheel and sdist, and try the wheel in an empty environment, without the source tree: ``tox run -e wheel``.

python tests/wheel.py FOLDER
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

DATA = (".typed", ".jinja", ".json", ".css", ".js")
"""Suffixes of the files that belong to the package besides modules."""

ABSENT = """
import sys
import lightning_gradexplode as package
assert package.__file__.startswith(sys.prefix), package.__file__
heavy = {"lightning", "pytorch_lightning", "wandb", "plotly", "click", "rich", "apprise", "tensorboard"}
assert not heavy & set(sys.modules), f"imported at once: {heavy & set(sys.modules)}"
from lightning_gradexplode.__main__ import main
assert main(["doctor"]) == 1, "the command line needs the extra cli, and says so"
"""

RUN = """
import torch
from torch import nn
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset
from lightning_gradexplode import GradientExplosionMonitor

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=100.0)

data = TensorDataset(torch.randn(160, 4), torch.randn(160, 1))
monitor = GradientExplosionMonitor()
pl.Trainer(max_epochs=1, callbacks=[monitor], logger=TensorBoardLogger("logs"), enable_progress_bar=False).fit(
    Model(), DataLoader(data, 8)
)
assert monitor.exploded and monitor.diagnosis() is not None and not monitor.failed
assert (monitor.report_folder / "index.html").exists()
"""


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command without the variables that would let it find the source tree, and stop if it fails."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    print("$", *command, flush=True)
    subprocess.run(list(command), cwd=cwd, env=environment, check=True)


def check_contents(dist: Path) -> Path:
    """Check what is in wheel and sdist, and return the wheel."""
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.partition("/")[0] for name in names}
    assert len(top) == 2, f"the wheel holds more than the package: {top}"
    for path in (ROOT / "lightning_gradexplode").rglob("*"):
        assert path.suffix not in DATA or path.relative_to(ROOT).as_posix() in names, path
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2].partition("/")[0] for name in archive.getnames()}
    for needed in ("lightning_gradexplode", "tests", "docs", "examples", "README.md", "LICENSE", "tox.ini"):
        assert needed in inside, f"the sdist lacks {needed}"
    return wheel


def main(folder: Path) -> None:
    """Build, install and try in a folder."""
    dist, environment, empty = folder / "dist", folder / "environment", folder / "empty"
    for path in (dist, empty):
        path.mkdir(parents=True, exist_ok=True)
    for old in dist.iterdir():
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", dist, ROOT, cwd=empty)
    wheel = check_contents(dist)
    venv.create(environment, clear=True, with_pip=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=empty)
    run(python, "-I", "-c", ABSENT, cwd=empty)
    run(python, "-I", "-c", RUN, cwd=empty)
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[cli,report]", cwd=empty)
    run(python, "-I", "-m", "lightning_gradexplode", "doctor", cwd=empty)
    run(python, "-I", "-m", "lightning_gradexplode", "demo", cwd=empty)
    print("the wheel works")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
