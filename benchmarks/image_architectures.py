"""Findings and diagnoses of short healthy trainings of image architectures of ``timm``, with random weights.

python -m benchmarks.image_architectures [NAME ...]

One small model of each family that has one, for 12 steps of AdamW with its usual rate, on batches of eight images of
64 by 64 pixels, noise on one of ten patterns. Nothing is downloaded. One line for each: first and last loss, findings
of at least WARNING, and the diagnosis. ``pip install timm`` installs them.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator

import timm
import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gradexplode import GradientExplosionMonitor, Severity

STEPS, CLASSES, BATCH, SIZE = 12, 10, 8, 64

NAMES = (
    "mobileone_s1", "cait_xxs24_224", "coat_tiny", "convit_tiny", "test_convnext", "cpubone_nano", "csatv2",
    "cs3darknet_focus_s", "cspnext_tiny", "deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b",
    "edgenext_xx_small", "efficientformerv2_s0", "efficientnet_lite0", "efficientvim_m1", "efficientvit_b0",
    "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8", "gcvit_xxtiny", "ghostnet_050",
    "hardcorenas_b", "hgnetv2_b0", "hrnet_w18_small", "iformer_s", "inception_next_atto", "lcnetv2_small",
    "lowformer_b0", "test_mambaout", "maxvit_pico_rw_256", "poolformer_s12", "mobilenetv3_small_050", "mobilevit_xxs",
    "test_nfnet", "pit_xs_224", "pvt_v2_b0", "repghostnet_050", "repvit_m1", "resnest14d", "test_resnet",
    "resnetv2_18", "rexnet_100", "legacy_seresnet18", "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs",
    "tiny_vit_5m_224", "visformer_tiny", "vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224", "test_vit_relpos",
    "ese_vovnet19b_slim_dw", "xcit_nano_12_p8_224",
)  # fmt: skip

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """A network of ``timm`` for images.

    Args:
        name: Its name.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            self.network: nn.Module = timm.create_model(name, num_classes=CLASSES, img_size=SIZE)
        except TypeError:  # it takes images of any size
            self.network = timm.create_model(name, num_classes=CLASSES)
        self.losses: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compare the predicted classes with the true ones."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images), labels)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW with its usual rate."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def batches() -> Iterator[Batch]:
    """Yield images with noise on the pattern of their class."""
    patterns = nn.functional.interpolate(torch.randn(CLASSES, 3, 8, 8), size=(SIZE, SIZE), mode="bilinear")
    for _ in range(STEPS):
        labels = torch.randint(CLASSES, (BATCH,))
        yield patterns[labels] + 0.5 * torch.randn(BATCH, 3, SIZE, SIZE), labels


def train(name: str) -> str:
    """Train a model, and return a line about it."""
    seed_everything(0, verbose=False)
    module, monitor = Classifier(name), GradientExplosionMonitor(report=False)
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(list(batches()), batch_size=None))  # type: ignore[arg-type]
    found = [f"{one.severity.name} {one.sign}" for one in monitor.findings if one.severity >= Severity.WARNING]
    diagnosis = monitor.diagnosis()
    causes = [] if diagnosis is None else [f"{one.kind} {one.confidence:.0%}" for one in diagnosis.causes]
    losses = torch.stack(module.losses)
    return f"{name:28} {losses[0]:.3f} -> {losses[-3:].mean():.3f} {', '.join([*found, *causes]) or 'nothing'}"


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    for each in sys.argv[1:] or NAMES:
        print(train(each), flush=True)
