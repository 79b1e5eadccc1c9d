"""The README and the pages in ``docs/``: their code runs, their commands exist, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/*.md")])
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
COMMANDS = re.compile(r"```(?:bash|console|sh)\n(.*?)```", re.DOTALL)

every_page = pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])


def users_names() -> dict[str, Any]:
    """Return what the pages take for granted: a user's model, data, optimizer and loss."""
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import TensorBoardLogger

    class Model(pl.LightningModule):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)
            self.rate = rate

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return nn.functional.mse_loss(self.layer(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=self.rate)

    def loss_fn(network: nn.Module, batch: list[Tensor]) -> Tensor:
        return nn.functional.mse_loss(network(batch[0]), batch[1])

    inputs = torch.randn(64, 4)
    network = nn.Linear(4, 1)
    return {
        "torch": torch,
        "Trainer": pl.Trainer,
        "TensorBoardLogger": TensorBoardLogger,
        "model": Model(0.01),
        "exploding_model": Model(100.0),
        "network": network,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.01),
        "loss_fn": loss_fn,
        "train_loader": DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), 8),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@every_page
def test_code_blocks_of_pages_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run one after the other, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    document = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()]).parse(page)
    document.namespace.update(users_names())
    evaluated = 0
    for example in document.examples():
        example.evaluate()
        evaluated += 1
    assert evaluated >= page.read_text(encoding="utf-8").count("\n```python\n")


@every_page
def test_commands_in_pages_exist(page: Path) -> None:
    """Each ``gradexplode`` command that a page shows is one, with options that it has."""
    from lightning_gradexplode.cli import command as group

    for block in COMMANDS.findall(page.read_text(encoding="utf-8")):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["gradexplode"]:
                continue
            command = group.commands.get(words[1])
            assert command is not None, f"{page.name}: {line}"
            command.make_context(words[1], words[2:], resilient_parsing=True)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links and pictures of a page are files of the repository."""
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target = link.partition("#")[0]
        assert not target or (page.parent / target).exists(), f"{page.name} links to {link}"
