"""Boxes, depths, sharp pictures and stained tissue, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class SwappedCorners(Case):
    """Centres and sizes of boxes relative to an anchor; in a few annotations the upper edge is below the lower one.

    Report: github.com/zzh8829/yolov3-tf2/issues/214, the first result with a cause of "object detection training loss
    nan solved annotation". Confirmed: the edges of some annotations were swapped; training works once they are right.
    """

    kinds = ("target-out-of-range", "undefined-operation")
    places = ("log", "boxes", "size")
    rows = (27, 61, 388, 590)
    good = 1.0
    are_swapped = True
    cure = settings(are_swapped=False)
    not_cured_by = (settings(lr=1e-4),)
    cured_by = "swap|correct|remove|drop|clean|fix|sort|order"
    lr = 2e-3
    steps = 160

    def build(self) -> None:
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            nn.Linear(384, 4),
        )

    def data(self) -> dict[str, Tensor]:
        random = noise(11401)
        low = torch.rand(768, 2, generator=random) * 0.5
        boxes = torch.cat([low, low + 0.15 + 0.3 * torch.rand(768, 2, generator=random)], 1)
        grid = (torch.arange(16) + 0.5) / 16
        inside = (grid > boxes[:, 0, None]) & (grid < boxes[:, 2, None])
        down = (grid > boxes[:, 1, None]) & (grid < boxes[:, 3, None])
        image = (down[:, None, :, None] & inside[:, None, None]).float()
        image = image + 0.2 * torch.randn(768, 1, 16, 16, generator=random)
        if self.are_swapped:
            boxes[[61, 388, 590]] = boxes[[61, 388, 590]][:, [0, 3, 2, 1]]
        return {"image": image, "boxes": boxes}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        out, boxes = self.body(batch["image"]), batch["boxes"]
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        weight = 2 - size.prod(1)
        apart = (out[:, :2].sigmoid() - centre).square().sum(1)
        larger = (out[:, 2:] - (size / 0.3).log()).square().sum(1)  # fault
        return (weight * (apart + larger)).mean()


class HolesInDepth(Case):
    """Depths, between two of their quantiles, are denoised beside their picture in bfloat16; a few maps have holes.

    Report: github.com/prs-eth/Marigold/issues/111, the first result with a cause of "loss becomes nan after training
    steps cause found". Confirmed: the data held NaN.
    """

    kinds = ("nonfinite-target", "nonfinite-input")
    places = ("depth",)
    rows = (5, 203, 417)
    good = 0.5
    has_holes = True
    cure = settings(has_holes=False)
    not_cured_by = (settings(lr=1e-4),)
    options = settings(precision="bf16-mixed", accumulate_grad_batches=2)
    batch_size = 16
    lr = 2e-3
    steps = 120

    def build(self) -> None:
        self.first, self.last = nn.Conv1d(2, 32, 5, padding=2), nn.Conv1d(32, 1, 5, padding=2)
        self.when = nn.Linear(1, 32)
        self.middle = nn.Sequential(nn.SiLU(), nn.Conv1d(32, 32, 5, padding=2), nn.SiLU())

    def data(self) -> dict[str, Tensor]:
        random = noise(11402)
        depth = 4 + torch.randn(640, 32, generator=random).cumsum(1) / 3
        image = depth.diff(dim=1, prepend=depth[:, :1]) + 0.1 * torch.randn(640, 32, generator=random)
        if self.has_holes:
            depth[[203, 417], 10:14] = torch.nan
        added, when = torch.randn(640, 32, generator=random), torch.rand(640, 1, generator=random)
        return {"image": image, "depth": depth, "noise": added, "time": when}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        low, high = batch["depth"].quantile(torch.tensor([0.02, 0.98]), dim=1, keepdim=True)
        depth = ((batch["depth"] - low) / (high - low) - 0.5) * 2
        angle = batch["time"] * torch.pi / 2
        mixed = angle.cos() * depth + angle.sin() * batch["noise"]
        hidden = self.first(torch.stack([batch["image"], mixed], 1)) + self.when(batch["time"])[..., None]
        velocity = self.last(self.middle(hidden))[:, 0]
        return functional.mse_loss(velocity, angle.cos() * batch["noise"] - angle.sin() * depth)


class StainedTissue(Case):
    """An encoder of tissue whose weights are drawn at 0.2 where 0.02 was meant.

    Report: github.com/sophiajw/HistAuGAN/issues/7, the first result with a cause of "weights initialization caused loss
    explosion from first iteration, fixed initialization". Confirmed by the author: the deviation of the initial weights
    was mistyped, which led to exploding gradients.
    """

    kinds = ("initialization",)
    good = 0.5
    deviation = 0.2
    cure = settings(deviation=0.02)
    not_cured_by = (settings(lr=3e-5),)
    batch_size = 16
    lr = 3e-4
    steps = 200

    def build(self) -> None:
        self.encode = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.LeakyReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)) for _ in range(4)
        )
        self.decode = nn.Conv2d(32, 3, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, self.deviation)  # fault

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(11403)
        tissue = functional.avg_pool2d(torch.randn(320, 3, 10, 10, generator=random), 3, 1) * 2
        return tissue, tissue.roll(1, 1) * 0.8 - 0.3

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = self.encode(batch[0])
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return functional.l1_loss(self.decode(hidden), batch[1])


class SharpPictures(Case):
    """Blurred pictures are made sharp against a critic; the norm of its slope is a root, and some slopes are zero.

    Report: github.com/LeeDoYup/DeblurGAN-tf/issues/11, the second result with a cause of "GAN discriminator loss
    explodes fix". Confirmed: the root of the sum of squares, which needs a small number added.
    """

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    host = "plain"
    good = 0.25
    added = 0.0
    cure = settings(added=1e-8)
    lr = 2e-4
    steps = 200

    def build(self) -> None:
        self.generator = nn.Sequential(
            nn.Conv1d(1, 24, 5, padding=2), nn.ReLU(), nn.Conv1d(24, 24, 5, padding=2), nn.ReLU(), nn.Conv1d(24, 1, 1)
        )
        self.critic = nn.Sequential(
            nn.Conv1d(1, 12, 5, stride=2), nn.ReLU(), nn.Conv1d(12, 12, 5, stride=2), nn.ReLU(), nn.Flatten()
        )
        self.judge = nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        sharp = torch.randn(640, 1, 28, generator=noise(11404)).sign() * 0.8
        blurred = functional.avg_pool1d(functional.pad(sharp, (1, 1), mode="replicate"), 3, 1)
        return blurred, sharp

    def opinion(self, rows: Tensor) -> Tensor:
        return self.judge(self.critic(rows))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        made = self.generator(batch[0])
        return 100 * functional.l1_loss(made, batch[1]) - self.opinion(made).mean()

    def penalty(self, made: Tensor, sharp: Tensor) -> Tensor:
        share = torch.rand(len(made), 1, 1)
        between = (share * made + (1 - share) * sharp).requires_grad_()
        (slope,) = torch.autograd.grad(self.opinion(between).sum(), between, create_graph=True)
        norm = (slope.square().sum((1, 2)) + self.added).sqrt()  # fault
        return 10 * (norm - 1).square().mean()

    def score(self) -> float:
        blurred, sharp = self.clean()
        return float(functional.l1_loss(self.generator(blurred), sharp))

    def configure_optimizers(self) -> Any:
        judged = [*self.critic.parameters(), *self.judge.parameters()]
        return [
            torch.optim.Adam(self.generator.parameters(), lr=10 * self.lr, betas=(0.5, 0.9)),
            torch.optim.Adam(judged, lr=self.lr, betas=(0.5, 0.9)),
        ]

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        making, judging = optimizers
        for _ in range(2):
            judging.zero_grad()
            made = model.generator(batch[0]).detach()
            wrong = model.opinion(made).mean() - model.opinion(batch[1]).mean() + model.penalty(made, batch[1])
            watch.loss(wrong)
            backward(wrong)
            judging.step()
        making.zero_grad()
        loss = model.loss(batch)
        watch.loss(loss)
        backward(loss)
        making.step()


class BrightMasks(Case):
    """Objects are told from their background by the cross-entropy of two classes; the masks are black and white.

    Report: github.com/divamgupta/image-segmentation-keras/issues/30, the first result with a change that worked of
    "segmentation loss becomes large negative number, masks were 0 255". Confirmed: the masks hold 0 and 255.
    """

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("mask", "binary_cross_entropy_with_logits")
    good = 0.35
    white = 255.0
    cure = settings(white=1.0)
    cured_by = "255|divid|scale|binar|normal"
    not_cured_by = (settings(lr=1e-4),)
    batch_size = 16
    lr = 2e-3
    steps = 200

    def build(self) -> None:
        self.down = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.middle = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Upsample(None, 2)
        )
        self.last = nn.Conv2d(16, 1, 3, padding=1)

    def data(self) -> dict[str, Tensor]:
        random = noise(11405)
        place, size = torch.randint(3, 13, (480, 2, 1), generator=random), 3
        beside = (torch.arange(16) - place).abs() <= size
        mask = (beside[:, 0, :, None] & beside[:, 1, None]).float()[:, None]
        image = 0.8 * mask + 0.4 * torch.randn(480, 1, 16, 16, generator=random)
        return {"image": image, "mask": self.white * mask}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        scores = self.last(self.middle(self.down(batch["image"])))
        return functional.binary_cross_entropy_with_logits(scores, batch["mask"])


class PixelsThatNeverChange(Case):
    """Frames are standardized by the deviation of each pixel in the first ones, where some pixels never change.

    Report: github.com/pytorch/rl/issues/1694, the first result with a cause that no earlier set follows of "WorldModels
    NaNs in KL loss vae resolved normalize observations". Confirmed: the deviation of these pixels is zero, and one
    millionth takes its place; a usual deviation avoids it.
    """

    kinds = ("unscaled-data",)
    places = ("frames",)
    good = 0.6
    is_measured = True
    cure = settings(is_measured=False)
    cured_by = "scale|standard|normal|clip|deviation"
    not_cured_by = (settings(lr=1e-5),)
    options = settings(gradient_clip_val=100.0)
    lr = 6e-4
    steps = 250

    def build(self) -> None:
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(100, 64), nn.ELU(), nn.Linear(64, 16))
        self.decode = nn.Sequential(nn.Linear(8, 64), nn.ELU(), nn.Linear(64, 100))
        self.reward = nn.Sequential(nn.Linear(8, 32), nn.ELU(), nn.Linear(32, 1))

    def data(self) -> dict[str, Tensor]:
        random = noise(11406)
        where = torch.rand(960, 2, 1, generator=random)
        where[:40] = 0.35 + 0.3 * where[:40]
        bump = (-((torch.linspace(0, 1, 10) - where) / 0.12).square()).exp()
        frames = (bump[:, 0, :, None] * bump[:, 1, None]).mul(255).floor() / 255
        low, wide = frames[:40].mean(0), frames[:40].std(0) + 1e-6
        if not self.is_measured:
            low, wide = torch.tensor(0.5), torch.tensor(0.5)
        return {"frames": (frames - low) / wide, "reward": where[:, 0, 0] - where[:, 1, 0]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        middle, wide = self.encode(batch["frames"]).chunk(2, 1)
        wide = functional.softplus(wide) + 0.1
        code = middle + wide * torch.randn_like(wide)
        apart = (middle.square() + wide.square() - 1) / 2 - wide.log()
        seen = functional.mse_loss(self.decode(code), batch["frames"].flatten(1))
        return seen + functional.mse_loss(self.reward(code)[:, 0], batch["reward"]) + 0.01 * apart.sum(1).mean()
