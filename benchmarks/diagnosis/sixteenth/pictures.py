"""Detection, inpainting and super resolution of pictures, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class AbnormalBatch(Case):
    """A denoiser for the detection of anomalies, whose loss of noise is a mean over the normal pictures of a batch.

    Report: github.com/HuiZhang0812/DiffusionAD/issues/32 and 33. Confirmed and fixed by the author: with a small batch
    all of its pictures may be abnormal.
    """

    kinds = ("empty-reduction",)
    places = ("mean",)
    host = "plain"
    good = 0.45
    guards_empty = False
    cure = settings(guards_empty=True)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = r"empty|at least one|\bskip\b|clamp|guard"
    batch_size = 4
    lr = 2e-3
    steps = 300

    def build(self) -> None:
        self.unet = nn.Sequential(
            nn.Conv2d(2, 24, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 1, 3, padding=1),
        )
        self.segment = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(16001)
        rows = torch.arange(10)
        phase = 6.28 * torch.rand(384, 1, 1, generator=generator)
        image = ((rows[:, None] + rows) * 0.7 + phase).sin().unsqueeze(1)
        anomaly = torch.rand(384, generator=generator) < 0.4
        mask = torch.zeros(384, 1, 10, 10)
        mask[:, :, 3:6, 4:8] = 1.0
        mask = mask * anomaly[:, None, None, None]
        return {
            "image": torch.where(mask > 0, torch.rand(384, 1, 10, 10, generator=generator) * 2, image),
            "mask": mask,
            "anomaly": anomaly,
            "noise": torch.randn(384, 1, 10, 10, generator=generator),
            "t": torch.rand(384, 1, 1, 1, generator=generator),
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        t = batch["t"].clamp(0.05, 0.95)
        x_t = (1 - t).sqrt() * batch["image"] + t.sqrt() * batch["noise"]
        estimate = self.unet(torch.cat([x_t, t.expand_as(x_t)], 1))
        each = (estimate - batch["noise"]).square().mean((1, 2, 3))
        normal = each[~batch["anomaly"]]
        noise_loss = normal.sum() / max(len(normal), 1) if self.guards_empty else normal.mean()  # fault
        recon = (x_t - t.sqrt() * estimate) / (1 - t).sqrt()
        logits = self.segment(torch.cat([batch["image"], recon.detach()], 1))
        return noise_loss + functional.binary_cross_entropy_with_logits(logits, batch["mask"])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class CentersWithoutClearing(Case):
    """Objects as points of a heatmap, in a loop that was written anew for the detector.

    Report: github.com/xingyizhou/CenterNet/issues/928. Found by the reporter: from the second epoch the loss is huge
    and does not move; the call that clears the gradients was missing.
    """

    kinds = ("accumulated-gradients",)
    host = "plain"
    good = 0.5
    clears = False
    cure = settings(clears=True)
    cured_by = r"zero_grad"
    batch_size = 16
    lr = 3e-3
    steps = 390

    def build(self) -> None:
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU()
        )
        self.hm, self.wh = nn.Conv2d(24, 1, 1), nn.Conv2d(24, 2, 1)
        self.hm.bias = nn.Parameter(torch.tensor([-2.19]))

    def data(self) -> dict[str, Tensor]:
        generator = noise(16002)
        place = torch.randint(3, 11, (512, 2), generator=generator)
        size = torch.randint(1, 3, (512, 2), generator=generator)
        grid = torch.arange(14)
        y = (grid - place[:, :1]).abs()[:, :, None]
        x = (grid - place[:, 1:]).abs()[:, None]
        inside = (y <= size[:, :1, None]) & (x <= size[:, 1:, None])
        image = inside.float() + 0.2 * torch.randn(512, 14, 14, generator=generator)
        return {
            "image": image[:, None],
            "hm": torch.exp(-(y.square() + x.square()) / 2.0)[:, None],
            "wh": size.float(),
            "ind": place[:, 0] * 14 + place[:, 1],
        }

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.backbone(batch["image"])
        pred = self.hm(features).sigmoid().clamp(1e-4, 1 - 1e-4)
        gt = batch["hm"]
        positive = gt.eq(1).float()
        loss = (1 - pred).square() * pred.log() * positive
        loss = loss + pred.square() * (1 - pred).log() * (1 - gt).pow(4) * (1 - positive)
        at = batch["ind"][:, None, None].expand(-1, 2, 1)
        wh = self.wh(features).flatten(2).gather(2, at)[..., 0]
        return -loss.sum() / positive.sum() + 0.1 * functional.l1_loss(wh, batch["wh"])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()
        if self.clears:
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class HolesInHalf(Case):
    """Holes of pictures are filled by partial convolutions in float16, each divided by what it sees of the mask.

    Report: github.com/jingyuanli001/RFR-Inpainting/issues/8. Confirmed by a reader: the small number in the partial
    convolution has to be within the range of float16.
    """

    kinds = ("half-precision", "undefined-operation")
    places = ("div", "reciprocal")
    host = "plain"
    good = 0.12
    eps = 1e-8
    cure = settings(eps=1e-3)
    not_cured_by = (settings(lr=1e-3),)
    cured_by = r"float32|\beps|bfloat16"
    batch_size = 16
    lr = 0.02
    steps = 300

    def build(self) -> None:
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1).half()
        self.conv2 = nn.Conv2d(16, 1, 3, padding=1).half()

    def data(self) -> dict[str, Tensor]:
        generator = noise(16003)
        rows = torch.arange(12)
        slope = torch.rand(384, 2, 1, 1, generator=generator)
        image = (0.3 * (slope[:, :1] * rows[:, None] + slope[:, 1:] * rows)).sin()
        mask = torch.ones(384, 1, 12, 12)
        corner = torch.randint(1, 6, (384, 2), generator=generator).tolist()
        for i, (y, x) in enumerate(corner):
            mask[i, :, y : y + 1 + i % 5, x : x + 5] = 0.0
        return {"image": image.half(), "mask": mask.half()}

    def partial_conv(self, conv: nn.Conv2d, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        ones = torch.ones(1, 1, 3, 3, dtype=mask.dtype)
        seen = functional.conv2d(mask, ones, padding=1)
        new = seen.clamp(0, 1)
        ratio = 9 / (seen + self.eps) * new  # fault
        bias = conv.bias[:, None, None]
        return ((conv(x * mask) - bias) * ratio + bias) * new, new

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x, mask = self.partial_conv(self.conv1, batch["image"], batch["mask"])
        x, mask = self.partial_conv(self.conv2, x.relu(), mask)
        return ((x - batch["image"]) * mask).float().abs().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class SuperResolutionInHalf(Case):
    """Pictures are enlarged by residual blocks, in float16 as a whole, with the optimizer as it comes.

    Report: github.com/keras-team/keras/issues/11832. Solved by the reporter: in float16 the loss falls for some batches
    and then rises to infinity; with a small number of 1e-4 in place of 1e-7 it does not.
    """

    kinds = ("half-precision", "optimizer-state")
    host = "plain"
    good = 0.12
    eps = 1e-7
    cure = settings(eps=1e-4)
    cured_by = r"float32|\beps|bfloat16"
    batch_size = 16
    lr = 1e-3
    steps = 300

    def build(self) -> None:
        self.head = nn.Conv2d(1, 16, 3, padding=1).half()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)).half()
            for _ in range(3)
        )
        self.tail = nn.Sequential(nn.Conv2d(16, 4, 3, padding=1), nn.PixelShuffle(2)).half()

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(16004)
        rows = torch.arange(16)
        slope = 1.2 * torch.rand(384, 2, 1, 1, generator=generator)
        phase = 6.28 * torch.rand(384, 1, 1, 1, generator=generator)
        high = (slope[:, :1] * rows[:, None] + slope[:, 1:] * rows + phase).sin()
        return functional.avg_pool2d(high, 2).half(), high.half()

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x = self.head(batch[0])
        for block in self.blocks:
            x = x + 0.1 * block(x)
        return (self.tail(x) - batch[1]).float().abs().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr, eps=self.eps)


class EndlessWarmUp(Case):
    """A detector of faces with a warm-up counted in epochs; with the larger set it lasts longer than the training.

    Report: github.com/YunYang1994/TensorFlow2.0-Examples/issues/8. Found by the reporter, after a word of the author:
    the rate rises all the time, since the epochs of the warm-up have so many steps.
    """

    kinds = ("learning-rate", "learning-rate-jump")
    host = "plain"
    good = 0.35
    warm_up = 1600
    cure = settings(warm_up=60)
    lr = 0.6
    peak = 3e-3
    batch_size = 32
    steps = 390

    def build(self) -> None:
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(144, 64), nn.LeakyReLU(0.1), nn.Linear(64, 64))
        self.box, self.conf = nn.Linear(64, 4), nn.Linear(64, 1)
        self.taken = 0

    def data(self) -> dict[str, Tensor]:
        generator = noise(16005)
        center = torch.randint(4, 8, (1024, 2), generator=generator)
        size = torch.randint(1, 4, (1024, 2), generator=generator)
        grid = torch.arange(12)
        inside = ((grid - center[:, :1]).abs() <= size[:, :1])[:, :, None]
        inside = inside & ((grid - center[:, 1:]).abs() <= size[:, 1:])[:, None]
        has_face = torch.rand(1024, generator=generator) < 0.8
        image = inside * has_face[:, None, None] + 0.2 * torch.randn(1024, 12, 12, generator=generator)
        box = torch.cat([center + 0.5, 2.0 * size + 1], 1) / 12
        return {"image": image, "box": box, "face": has_face.float()}

    def giou(self, a: Tensor, b: Tensor) -> Tensor:
        low_a, high_a = a[:, :2] - a[:, 2:] / 2, a[:, :2] + a[:, 2:] / 2
        low_b, high_b = b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2
        inter = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(1)
        union = (high_a - low_a).prod(1) + (high_b - low_b).prod(1) - inter
        enclose = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).clamp(min=0).prod(1)
        return inter / union - (enclose - union) / enclose

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.body(batch["image"])
        raw = self.box(features)
        pred = torch.cat([raw[:, :2].sigmoid(), 0.3 * raw[:, 2:].exp()], 1)
        giou_loss = (batch["face"] * (1 - self.giou(pred, batch["box"]))).mean()
        return giou_loss + functional.binary_cross_entropy_with_logits(self.conf(features)[:, 0], batch["face"])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        self.taken += 1
        rate = self.taken / self.warm_up * self.lr if self.taken < self.warm_up else self.peak
        if self.warm_up == 60:
            rate = min(rate, self.peak)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr / self.warm_up)


class ScheduleAtResume(Case):
    """A detector by descent with momentum and a cosine per epoch, resumed with a schedule that is made anew.

    Report: github.com/ultralytics/yolov3/issues/902 and yolov5/issues/292. Found by a reader: the constructor of the
    schedule sets the initial rate, since the epoch is only set afterwards.
    """

    kinds = ("learning-rate-jump",)
    host = "plain"
    good = 0.25
    passes_epoch = False
    cure = settings(passes_epoch=True)
    cured_by = r"last_epoch|load|restore|state_dict|checkpoint"
    batch_size = 32
    lr = 0.6
    steps = 355

    def build(self) -> None:
        self.backbone = nn.Sequential(
            nn.Linear(36, 64), nn.BatchNorm1d(64), nn.LeakyReLU(0.1), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.SiLU()
        )
        self.head = nn.Linear(64, 8)
        self.taken = 0

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(16006)
        label = torch.randint(8, (960,), generator=generator)
        x = torch.randn(8, 36, generator=generator)[label] + 2.4 * torch.randn(960, 36, generator=generator)
        return x, label

    def factor(self, epoch: int) -> float:
        return (1 + torch.tensor(epoch * torch.pi / 12).cos().item()) / 2 * 0.99 + 0.01

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        epoch = self.taken // 30
        if self.taken == 0:
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)
        elif self.taken == 330:
            last = epoch - 1 if self.passes_epoch else -1
            self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor, last_epoch=last)
            self.scheduler.last_epoch = epoch
        elif self.taken % 30 == 0:
            self.scheduler.step()
        self.taken += 1
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class AllLayers(Case):
    """A detector is tuned with all of its layers, which were frozen before, at the rate of the configuration.

    Report: github.com/facebookresearch/maskrcnn-benchmark/issues/721. Confirmed by the reporter and a reader: it is the
    rate; with a tenth or a hundredth of it the loss stays finite.
    """

    kinds = ("learning-rate",)
    good = 0.35
    lr = 0.3
    cure = settings(lr=0.01)
    batch_size = 16
    steps = 350

    def build(self) -> None:
        generator = noise(16007)
        self.conv_body = nn.Sequential(
            *(layer for channels in (1, 16, 16, 16, 16) for layer in (nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()))
        )
        for layer in self.conv_body:
            if isinstance(layer, nn.Conv2d):
                fan_in = layer.weight[0].numel()
                layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
        self.cls_score, self.bbox_pred = nn.Linear(256, 4), nn.Linear(256, 2)

    def data(self) -> dict[str, Tensor]:
        generator = noise(16008)
        label = torch.randint(4, (640,), generator=generator)
        patterns = torch.randn(4, 4, 4, generator=generator)
        place = torch.randint(0, 8, (640, 2), generator=generator)
        image = 0.3 * torch.randn(640, 1, 12, 12, generator=generator)
        for i, (y, x) in enumerate(place.tolist()):
            image[i, 0, y : y + 4, x : x + 4] += patterns[label[i]]
        return {"image": image, "label": label, "box": place / 4 - 1}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        features = functional.adaptive_avg_pool2d(self.conv_body(batch["image"]), 4).flatten(1)
        boxes = functional.smooth_l1_loss(self.bbox_pred(features), batch["box"])
        return functional.cross_entropy(self.cls_score(features), batch["label"]) + boxes

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)
