"""Findings and diagnoses of short healthy trainings of image architectures of ``timm``, with random weights.

python -m benchmarks.image_architectures [--others] [NAME ...]

One small model of each family that has one, for 12 steps of AdamW with its usual rate, on batches of eight images of
64 by 64 pixels, noise on one of ten patterns. With ``--others``, another model of each family, by gradient descent with
momentum: those were counted once after a rule had been changed for the first ones. Nothing is downloaded. One line for
each: first and last loss, findings of at least WARNING, and the diagnosis. ``pip install timm`` installs them.
"""

from __future__ import annotations

import argparse
import logging
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

OTHERS = (
    "repvgg_a1", "cait_xxs24_384", "coat_lite_mini", "convnext_zepto_rms", "cpubone_b1_bfrobust", "cs3darknet_m",
    "cspnext_m", "densenetblur121d", "dpn68", "edgenext_small", "efficientformerv2_s2", "mobilenetv2_140",
    "efficientvim_m2", "efficientvit_b1", "efficientvit_m2", "fasternet_t2", "fastvit_mci0", "ghostnetv2_130",
    "hardcorenas_e", "hgnetv2_b3", "hrnet_w18_small_v2", "iformer_l_distilled", "lcnetv2_large", "levit_conv_192",
    "mambaout_kobe", "gmlp_ti16_224", "mobilenetv4_conv_small_035", "mobilevit_xs", "pit_ti_224", "pvt_v2_b1",
    "repghostnet_150", "repvit_m2", "seresnext26d_32x4d", "rexnetr_130", "legacy_seresnext26_32x4d", "shvit_s3",
    "starnet_s2", "swiftformer_l1", "tiny_vit_11m_224", "ese_vovnet19b_dw", "xcit_nano_12_p16_384",
)  # fmt: skip

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """A network of ``timm`` for images.

    Args:
        name: Its name.
        is_by_descent: Whether it is trained by gradient descent with momentum, in place of AdamW.
    """

    def __init__(self, name: str, is_by_descent: bool) -> None:
        super().__init__()
        self.is_by_descent = is_by_descent
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
        """Return an optimizer with a usual rate."""
        if self.is_by_descent:
            return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def batches() -> Iterator[Batch]:
    """Yield images with noise on the pattern of their class."""
    patterns = nn.functional.interpolate(torch.randn(CLASSES, 3, 8, 8), size=(SIZE, SIZE), mode="bilinear")
    for _ in range(STEPS):
        labels = torch.randint(CLASSES, (BATCH,))
        yield patterns[labels] + 0.5 * torch.randn(BATCH, 3, SIZE, SIZE), labels


def train(name: str, is_by_descent: bool) -> str:
    """Train a model, and return a line about it."""
    seed_everything(0, verbose=False)
    module, monitor = Classifier(name, is_by_descent), GradientExplosionMonitor(report=False)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--others", action="store_true", help="another model of each family")
    parser.add_argument("names", nargs="*", help="names of models; all if not given")
    chosen = parser.parse_args()
    for each in chosen.names or (OTHERS if chosen.others else NAMES):
        print(train(each, chosen.others), flush=True)
