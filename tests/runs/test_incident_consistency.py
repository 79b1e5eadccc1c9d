"""Everything that is shown of one incident agrees: the onset, the place, the numbers and the first cause."""

from __future__ import annotations

import html
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from lightning_gradexplode import GradientExplosionMonitor, GradientWatch


class Classifier(LightningModule):
    """A classifier by gradient descent at a rate that it does not bear; it remembers the loss of each step."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
        self.rate = rate
        self.losses: list[float] = []

    def error(self, batch: list[Tensor]) -> Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.error(batch)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)


class Regression(Classifier):
    """A regression whose inputs hold NaN in one batch."""

    def error(self, batch: list[Tensor]) -> Tensor:
        return mse_loss(self.net(batch[0])[:, 0], batch[1].float())


def _data(kind: str) -> TensorDataset:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(480, 8, generator=random)
    labels = inputs[:, :3].argmax(1)
    if kind == "nonfinite-input":
        inputs[200:203, 4] = float("nan")
    return TensorDataset(inputs, labels)


@pytest.fixture(scope="module", params=["learning-rate", "nonfinite-input"])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Train one run with TensorBoard and an offline W&B, and collect what each place says of its incident."""
    folder, kind = tmp_path_factory.mktemp("story"), request.param
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    own = logging.getLogger("lightning_gradexplode")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
            patch.setenv(name, str(folder))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        wandb.teardown()  # it keeps the environment that an earlier test of this process had
        seed_everything(0, verbose=False)
        module = Classifier(5.0) if kind == "learning-rate" else Regression(0.01)
        monitor = GradientExplosionMonitor()
        board, cloud = TensorBoardLogger(folder), WandbLogger(save_dir=folder, offline=True)
        trainer = Trainer(
            max_steps=30,
            max_epochs=-1,
            accelerator="cpu",
            callbacks=[monitor],
            logger=[board, cloud],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        own.addHandler(handler)
        try:
            trainer.fit(module, DataLoader(_data(kind), 24))
        finally:
            own.removeHandler(handler)
        summary = dict(cloud.experiment.summary["gradexplode/diagnosis"])
        cloud.experiment.finish()
    report = monitor.report_folder
    assert report is not None
    events = EventAccumulator(board.log_dir, size_guidance={"tensors": 0})
    events.Reload()
    (tag,) = (one for one in events.Tags()["tensors"] if one.startswith("gradexplode/diagnosis"))
    return {
        "kind": kind,
        "losses": module.losses,
        "diagnosis": monitor.diagnosis(),
        "json": json.loads((report / "diagnosis.json").read_text(encoding="utf-8")),
        "page": _plain(html.unescape(re.sub(r"<[^>]+>", " ", (report / "index.html").read_text(encoding="utf-8")))),
        "board": events.Tensors(tag)[-1].tensor_proto.string_val[0].decode(),
        "wandb": summary,
        "console": _plain("\n".join(lines)),
        "files": sorted(one.name for one in Path(report).iterdir()),
    }


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("`", ""))


def test_all_places_name_the_same_first_cause_and_place(story: dict[str, Any]) -> None:
    """Console, page, TensorBoard, W&B and file name the first cause, and its place, that `diagnosis()` returns."""
    cause = story["diagnosis"].causes[0]
    assert cause.kind == story["kind"]
    assert story["json"]["causes"][0] == cause.as_dict()
    assert f"**Cause 1:** {cause.kind}" in story["board"]
    assert story["wandb"]["causes"][0].startswith(cause.kind)
    assert f"Why: {cause.kind}" in story["console"]
    assert cause.kind in story["page"]
    where = story["diagnosis"].where
    assert story["json"]["where"] == story["wandb"]["where"] == where
    shown = "no single place stands out" if where is None else _plain(where)
    assert shown in story["console"]
    assert shown in story["page"]
    assert f"**Where:** {shown}" in _plain(story["board"])


def test_all_places_name_the_same_onset(story: dict[str, Any]) -> None:
    """The step at which the incident began is one and the same."""
    step = story["diagnosis"].step
    assert story["json"]["step"] == story["wandb"]["step"] == step
    assert story["json"]["since"] == story["wandb"]["since"] == story["diagnosis"].since
    assert f"CRITICAL at step {step}:" in story["console"]
    assert f"CRITICAL at step {step}:" in story["page"]
    assert f"**Since:** step {step if story['diagnosis'].since is None else story['diagnosis'].since}" in story["board"]


def test_all_places_have_the_same_sentence_with_the_same_numbers(story: dict[str, Any]) -> None:
    """What happened and the evidence are in the same words everywhere; the console may cut them short."""
    diagnosis = story["diagnosis"]
    assert story["json"]["what"] == story["wandb"]["what"] == diagnosis.what
    assert _plain(diagnosis.what) in _plain(story["board"])
    assert _plain(diagnosis.what) in story["page"]
    assert _plain(diagnosis.what)[:60] in story["console"]
    for sentence in diagnosis.causes[0].evidence:
        assert _plain(sentence) in _plain(story["board"])
        assert _plain(sentence) in story["page"]


def test_the_loss_is_that_of_the_step_that_is_named(story: dict[str, Any]) -> None:
    """The number that is called the loss of a step is what the module computed at that step."""
    named = re.search(r"[Aa]t step (\d+)[^.]*? the loss is ([-+.\de]+|NaN)", story["diagnosis"].what)
    assert named is not None
    loss = story["losses"][int(named[1])]
    assert named[2].rstrip(".") == (f"{loss:.4g}" if loss == loss else "NaN")


def test_a_long_rest_of_nan_does_not_change_the_diagnosis() -> None:
    """The steps of the incident are kept when later ones have taken all of the memory for steps."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(4)]
    network = nn.Sequential(*layers, nn.Linear(16, 4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    inputs, labels = torch.randn(32, 16), torch.randint(4, (32,))
    watch = GradientWatch(network, optimizer, report=False)
    seen = []
    for step in range(800):
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = 0.1 if step < 60 else 20.0
        loss = cross_entropy(network(inputs), labels)
        watch.loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in (150, 799):
            seen.append(watch.diagnosis())
    watch.close()
    early, late = seen
    assert early is not None
    assert early.causes[0].kind == "learning-rate-jump"
    assert late == early
