"""Pictures that are made, restored, matched and classified, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class LogOfOneHundredMillionth(Case):
    """Digits by a variational autoencoder, whose likelihood is written out with 1e-8 in the logarithms.

    Report: github.com/kvfrans/variational-autoencoder/issues/5. Solved by the reporter: after hundreds of epochs both
    losses are NaN, and are not with 1e-6; next to one, 1e-8 is less than the format resolves.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    host = "plain"
    good = 25.0
    epsilon = 1e-8
    cure = settings(epsilon=1e-6)
    cured_by = r"\beps|clamp|small (?:value|number)|logits"
    batch_size = 16
    lr = 1e-2
    steps = 450

    def build(self) -> None:
        self.recognition = nn.Sequential(nn.Flatten(), nn.Linear(100, 48), nn.LeakyReLU(0.2))
        self.w_mean, self.w_stddev = nn.Linear(48, 4), nn.Linear(48, 4)
        self.generation = nn.Sequential(nn.Linear(4, 48), nn.ReLU(), nn.Linear(48, 100), nn.Sigmoid())

    def data(self) -> dict[str, Tensor]:
        generator = noise(19201)
        center = 2.5 + 4 * torch.rand(640, 2, generator=generator)
        grid = torch.arange(10.0)
        y, x = (grid - center[:, :1]).square()[:, :, None], (grid - center[:, 1:]).square()[:, None]
        return {"images": ((2.5 - (y + x).sqrt()).clamp(0, 1)).flatten(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        images = batch["images"]
        hidden = self.recognition(images)
        mean, stddev = self.w_mean(hidden), self.w_stddev(hidden)
        generated = self.generation(mean + stddev * torch.randn_like(mean))
        likely = images * (self.epsilon + generated).log()
        unlikely = (1 - images) * (self.epsilon + 1 - generated).log()  # fault
        generation_loss = -(likely + unlikely).sum(1)
        latent_loss = 0.5 * (mean.square() + stddev.square() - stddev.square().log() - 1).sum(1)
        return (generation_loss + latent_loss).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class AttentionWithoutBound(Case):
    """Distances from two pictures: matches are multiplied by an attention of convolutions, in mixed precision.

    Report: github.com/XiandaGuo/OpenStereo/issues/175 and 223. Solved by a reporter: after one or two epochs the loss
    is NaN, since the attention has no bound and the values explode; a tanh after it solves it. Solved by a reader of
    the other thread: without mixed precision there is no NaN.
    """

    kinds = ("half-precision", "forward-overflow")
    places = ("mul", "attention", "conv2d", "aggregate")
    host = "plain"
    good = 0.2
    bounded = False
    cure = settings(bounded=True)
    cured_by = r"tanh|softmax|bound|sigmoid"
    other_cures = settings(**{r"float32|32-true|bfloat16|without mixed": settings(amp=False)})
    amp = True
    batch_size = 8
    lr = 1e-2
    steps = 300

    def build(self) -> None:
        self.features = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1))
        self.attention = nn.ModuleList(
            nn.Sequential(nn.Conv2d(12, 12, 5, padding=2), nn.Conv2d(12, 5, 1)) for _ in range(3)
        )
        self.aggregate = nn.ModuleList(nn.Conv2d(5, 5, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(5)
        self.scaler = torch.amp.GradScaler("cpu")

    def data(self) -> dict[str, Tensor]:
        generator = noise(19202)
        texture = 128 + 60 * torch.randn(480, 10, 20, generator=generator)
        disparity = torch.randint(5, (480,), generator=generator)
        left = texture[:, :, 4:16]
        right = torch.stack([texture[i, :, 4 + d : 16 + d] for i, d in enumerate(disparity.tolist())])
        return {"left": left[:, None] / 64, "right": right[:, None] / 64, "disparity": disparity.float()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.float16, enabled=self.amp):
            left, right = self.features(batch["left"]), self.features(batch["right"])
            cost = torch.stack([(left * right.roll(d, 3)).mean(1) for d in range(5)], 1)
            for attention, aggregate in zip(self.attention, self.aggregate, strict=True):
                weight = attention(left)
                cost = aggregate(cost * (weight.tanh() if self.bounded else weight))  # fault
        chance = self.norm(cost.float())[..., 4:].softmax(1)
        found = (chance * torch.arange(5.0)[:, None, None]).sum(1)
        return functional.smooth_l1_loss(found, batch["disparity"][:, None, None].expand_as(found))

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        (optimizer,) = optimizers
        optimizer.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(self.scaler.scale(loss))
        self.scaler.step(optimizer)
        self.scaler.update()

    def scaler_in_loop(self) -> Any:
        return self.scaler

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class FusedFeatures(Case):
    """Faces restored by a decoder that is scaled and shifted by features of the encoder, in the last stage.

    Report: github.com/sczhou/CodeFormer/issues/367. Solved by a reader: in the stage with the fusing blocks gradients
    and weights are NaN, the rate is too large, and a much smaller one solves it.
    """

    kinds = ("learning-rate",)
    good = 0.12
    lr = 0.012
    cure = settings(lr=1e-3)
    batch_size = 8
    steps = 300

    def build(self) -> None:
        def block(ins: int, outs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(ins, outs, 3, padding=1), nn.SiLU(), nn.Conv2d(outs, outs, 3, padding=1))

        self.encoder = nn.ModuleList([block(1, 12), block(12, 12), block(12, 12)])
        self.decoder = nn.ModuleList([block(12, 12), block(12, 12), block(12, 12)])
        self.encode_enc = nn.ModuleList(block(24, 12) for _ in range(3))
        self.scale, self.shift = nn.ModuleList(), nn.ModuleList()
        for _ in range(3):
            self.scale.append(nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(12, 12, 1)))
            self.shift.append(nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(12, 12, 1)))
        self.out = nn.Conv2d(12, 1, 3, padding=1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(19203)
        rows = torch.arange(12)
        slope = 0.9 * torch.rand(480, 2, 1, 1, generator=generator)
        phase = 6.28 * torch.rand(480, 1, 1, 1, generator=generator)
        clean = (slope[:, :1] * rows[:, None] + slope[:, 1:] * rows + phase).sin()
        worse = functional.avg_pool2d(clean, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return {"lq": worse + 0.1 * torch.randn(480, 1, 12, 12, generator=generator), "gt": clean}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x, kept = batch["lq"], []
        for encode in self.encoder:
            x = encode(x)
            kept.append(x)
        for i, decode in enumerate(self.decoder):
            x = x + decode(x)
            fused = self.encode_enc[i](torch.cat([kept[2 - i], x], 1))
            x = x + x * self.scale[i](fused) + self.shift[i](fused)
        return functional.l1_loss(self.out(x), batch["gt"])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class AllUnitsOff(Case):
    """Small pictures by a plain convolutional network with Adam, whose loss stays at that of a guess.

    Report: discuss.pytorch.org/t/cross-entropy-loss-is-not-decreasing/43814. Solved by a reader: the loss is 2.3 in
    every epoch, nearly all parameters are negative, and all rectified units off; a smaller rate solves it.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 0.6
    lr = 0.1
    cure = settings(lr=2e-3)
    batch_size = 16
    steps = 300

    def build(self) -> None:
        self.conv1, self.conv2 = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 24, 3)
        self.fc1, self.fc2, self.fc3 = nn.Linear(96, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def data(self) -> tuple[Tensor, Tensor]:
        generator = noise(19204)
        label = torch.randint(10, (800,), generator=generator)
        shapes = torch.rand(10, 3, 12, 12, generator=generator)
        image = shapes[label] + 0.3 * torch.randn(800, 3, 12, 12, generator=generator)
        return image.clamp(0, 1), label

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = batch
        x = functional.max_pool2d(self.conv1(inputs).relu(), 2)
        x = functional.max_pool2d(self.conv2(x).relu(), 2, stride=1)
        x = self.fc2(self.fc1(x.flatten(1)).relu()).relu()
        return functional.cross_entropy(self.fc3(x), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class PairsOfProducts(Case):
    """Pictures of things by the loss of pairs, written out as the logarithm of one and a sum of exponentials.

    Report: github.com/leeesangwon/PyTorch-Image-Retrieval/pull/16. Found by the author of the change: the loss is NaN
    in training, and is not where the largest product is subtracted before the exponential.
    """

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 0.4
    subtracts_largest = False
    cure = settings(subtracts_largest=True)
    cured_by = r"logsumexp|subtract|stable|softplus"
    batch_size = 24
    lr = 3e-3
    steps = 350

    def build(self) -> None:
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 256)
        )

    def data(self) -> dict[str, Tensor]:
        generator = noise(19205)
        shapes = 4 * torch.randn(12, 8, 8, generator=generator)
        label = torch.randint(12, (720,), generator=generator)
        images = [shapes[label] + 2.0 * torch.randn(720, 8, 8, generator=generator) for _ in range(2)]
        return {"anchor": images[0][:, None], "positive": images[1][:, None], "label": label}

    def n_pair_loss(self, anchors: Tensor, positives: Tensor, label: Tensor) -> Tensor:
        products = anchors @ positives.T
        x = products - products.diagonal()[:, None]
        negative = label[:, None] != label
        if self.subtracts_largest:
            x = functional.pad(torch.where(negative, x, -torch.inf), (1, 0))
            return x.logsumexp(1).mean()
        return (1 + (x.exp() * negative).sum(1)).log().mean()  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        anchors, positives = self.backbone(batch["anchor"]), self.backbone(batch["positive"])
        length = (anchors.square() + positives.square()).mean()
        return self.n_pair_loss(anchors, positives, batch["label"]) + 1e-3 * length

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
