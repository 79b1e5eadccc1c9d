"""Pictures and shapes, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.twentythird.pictures import faces


class ContrastAtItsStart(Case):
    """Supervised contrast of two views of pictures, on own data: the loss does not leave its first value.

    Report: github.com/HobbitLong/SupContrast/issues/42. Found by a reader: the rate has to be warmed up.
    """

    kinds = ("learning-rate",)
    host = "plain"
    good = 3.7
    lr = 0.5
    warm = False
    cure = settings(warm=True)
    cured_by = r"warm|LinearLR"
    batch_size = 32
    steps = 500

    def build(self) -> None:
        self.taken = 0
        self.encoder = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 32))

    def data(self) -> dict[str, Tensor]:
        return faces(960, 24401, 1.0)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        images, labels = batch["images"], batch["labels"].repeat(2)
        views = torch.cat([images + 0.3 * torch.randn_like(images) for _ in range(2)])
        features = functional.normalize(self.head(self.encoder(views)), dim=1)
        others = 1 - torch.eye(len(views))
        logits = features @ features.T / 0.07
        logits = logits - logits.amax(1, keepdim=True).detach()
        log_prob = logits - (logits.exp() * others).sum(1, keepdim=True).log()
        same = (labels[:, None] == labels).float() * others
        return -((same * log_prob).sum(1) / same.sum(1)).mean()

    def optimize(
        self, model: Any, batch: Any, optimizers: Sequence[Any], watch: Any, backward: Callable[[Tensor], Any]
    ) -> None:
        self.taken += 1
        if self.warm:
            for group in optimizers[0].param_groups:
                group["lr"] = 0.01 + (self.lr - 0.01) * min(1.0, self.taken / 400)
        super().optimize(model, batch, optimizers, watch, backward)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-4)


class SolidShape(Case):
    """Shapes from clouds of points, as a union of convex parts that planes bound: the first shape is solid or empty.

    Report: github.com/czq142857/BSP-NET-pytorch/issues/5. Found by the reporter: the limits between zero and one kill
    all gradients; with leaky ones it works. It depends on the numbers of planes and parts, and on the seed.
    """

    kinds = ("initialization", "undefined-operation")
    places = ("clamp",)
    host = "plain"
    good = 0.1
    leak = 0.0
    cure = settings(leak=0.02)
    not_cured_by = (settings(lr=0.05),)
    cured_by = r"leaky|clamp|slope|saturat"
    batch_size = 16
    lr = 1e-3
    steps = 500

    def build(self) -> None:
        self.point, self.encoder = nn.Sequential(nn.Linear(3, 32), nn.LeakyReLU(0.02), nn.Linear(32, 64)), nn.Linear(64, 64)
        self.planes = nn.Linear(64, 4 * 64)
        self.convex_layer_weights = nn.Parameter(0.02 * torch.randn(64, 16))
        self.concave_layer_weights = nn.Parameter(1e-5 + 0.02 * torch.randn(16, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(24402)
        half = 0.2 + 0.3 * torch.rand(320, 1, 3, generator=generator)
        cloud = (2 * torch.rand(320, 32, 3, generator=generator) - 1) * half
        points = torch.rand(320, 64, 3, generator=generator) - 0.5
        return {"cloud": cloud, "points": points, "inside": (points.abs() < half).all(2).float()}

    def limited(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1) + self.leak * (x - x.clamp(0, 1))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        code = functional.leaky_relu(self.encoder(self.point(batch["cloud"]).amax(1)), 0.02)
        planes = self.planes(code).unflatten(1, (4, 64))
        points = functional.pad(batch["points"], (0, 1), value=1.0)
        h1 = (points @ planes).relu()
        h2 = 1 - self.limited(h1 @ self.convex_layer_weights)  # fault
        h3 = self.limited(h2 @ self.concave_layer_weights)[..., 0]  # fault
        return functional.mse_loss(h3, batch["inside"])


class OneMoreLayer(Case):
    """Handwritten digits by a network of own layers, with one layer more: neither loss nor accuracy move.

    Report: github.com/yizt/numpy_neural_network/issues/1. Found by the author: the scale of the weights at the start,
    a hundredth instead of a thousandth.
    """

    kinds = ("initialization", "depth")
    good = 0.3
    weights_scale = 1e-3
    cure = settings(weights_scale=1e-2)
    not_cured_by = (settings(lr=1.0),)
    cured_by = r"scale of the weights|initiali[sz]"
    batch_size = 16
    lr = 0.05
    steps = 800

    def build(self) -> None:
        self.fc1, self.fc2, self.fc3 = nn.Linear(196, 256), nn.Linear(256, 256), nn.Linear(256, 10)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.normal_(layer.weight, std=self.weights_scale)
            nn.init.zeros_(layer.bias)

    def data(self) -> dict[str, Tensor]:
        generator = noise(24403)
        digits = (torch.rand(10, 196, generator=generator) < 0.2).float()
        label = torch.randint(10, (1600,), generator=generator)
        image = digits[label] + 0.3 * torch.randn(1600, 196, generator=generator)
        return {"image": image.clamp(0, 1), "label": label}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.fc2(self.fc1(batch["image"]).relu()).relu()
        return functional.cross_entropy(self.fc3(x), batch["label"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class TeacherThatIsTheStudent(Case):
    """Distillation of a vision transformer from its own average, without labels: its features collapse.

    Report: github.com/facebookresearch/dinov2/issues/407. Found by a reader and confirmed: the backbone of the teacher
    is that of the student, and not a copy.
    """

    kinds = ("moving-target",)
    good = 0.5
    copies = False
    cure = settings(copies=True)
    cured_by = r"copy|target network|frozen|freeze"
    batch_size = 64
    lr = 1e-3
    steps = 600

    def build(self) -> None:
        encoder = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 64))
        self.student_backbone = encoder
        self.teacher_backbone = deepcopy(encoder) if self.copies else encoder
        self.student_head = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
        self.teacher_head = deepcopy(self.student_head).requires_grad_(False)
        if self.copies:
            self.teacher_backbone.requires_grad_(False)
        self.register_buffer("center", torch.zeros(1, 32))

    def data(self) -> dict[str, Tensor]:
        return faces(1280, 24404, 0.7)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        views = [batch["images"] + 0.5 * torch.randn_like(batch["images"]) for _ in range(2)]
        with torch.no_grad():
            outputs = [self.teacher_head(self.teacher_backbone(view)) for view in views]
            targets = [((one - self.center) / 0.04).softmax(1) for one in outputs]
        students = [(self.student_head(self.student_backbone(view)) / 0.1).log_softmax(1) for view in views]
        loss = -((targets[0] * students[1]).sum(1).mean() + (targets[1] * students[0]).sum(1).mean()) / 2
        if self.training:
            self.center = 0.9 * self.center + 0.1 * torch.cat(outputs).mean(0, keepdim=True)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        with torch.no_grad():
            for student, teacher in (
                (self.student_backbone, self.teacher_backbone),
                (self.student_head, self.teacher_head),
            ):
                for new, old in zip(student.parameters(), teacher.parameters(), strict=True):
                    old.lerp_(new, 0.004)

    def score(self) -> float:
        """The mean cosine between the features of different persons."""
        batch = self.data()
        features = functional.normalize(self.student_backbone(batch["images"]), dim=1)
        other = batch["labels"][:, None] != batch["labels"]
        return float((features @ features.T)[other].mean())

    def configure_optimizers(self) -> Any:
        trained = [*self.student_backbone.parameters(), *self.student_head.parameters()]
        return torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.04)
