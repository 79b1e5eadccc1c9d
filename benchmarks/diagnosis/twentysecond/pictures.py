"""Pictures, masks and boxes, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.twentieth.detection import squares


class MasksWithAThirdValue(Case):
    """Masks of two classes by the binary cross-entropy and the dice loss: the sum is negative and falls for ever.

    Report: github.com/PaddlePaddle/PaddleSeg/issues/436. Found by the reporter: the labels hold values that are larger
    than the number of classes, there is a 3 in those of two classes.
    """

    kinds = ("target-out-of-range", "loss-without-floor")
    places = ("label", "labels", "binary_cross_entropy_with_logits", "bce")
    host = "plain"
    good = 0.35
    largest = 3.0
    cure = settings(largest=1.0)
    batch_size = 16
    lr = 0.1
    steps = 240

    def build(self) -> None:
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 1, 1),
        )

    def data(self) -> dict[str, Tensor]:
        image, _ = squares(480, 22301)
        label = (image > 0.6).float()
        marked = torch.rand(480, 1, 1, 1, generator=noise(22302)) < 0.3
        return {"img": image, "label": torch.where(marked, 3 * label, label).clamp(max=self.largest)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits, label = self.model(batch["img"]), batch["label"]
        probability = logits.sigmoid()
        dice = 1 - (2 * (probability * label).sum() + 1) / (probability.sum() + label.sum() + 1)
        return functional.binary_cross_entropy_with_logits(logits, label) + dice

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class GuidedFilterWithoutEpsilon(Case):
    """Pictures that are processed in low resolution, and brought to the full one by a guided filter within the model.

    Report: github.com/wuhuikai/DeepGuidedFilter/issues/7. Found by the reporter: epsilon was set to 0 in the
    constructor of the layer; the variance is divided by where the picture is flat.
    """

    kinds = ("undefined-operation",)
    places = ("div",)
    good = 0.02
    eps = 0.0
    cure = settings(eps=1e-2)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"\beps|small (?:value|number)|clamp"
    batch_size = 16
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.lr_net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(16, 16, 3, padding=1), nn.LeakyReLU(0.2)
        )
        self.out = nn.Conv2d(16, 1, 1)

    def data(self) -> dict[str, Tensor]:
        generator = noise(22303)
        wave = torch.randn(480, 1, 4, 4, generator=generator)
        image = functional.interpolate(wave, size=16, mode="bilinear", align_corners=True) + 0.5
        return {"x_hr": image.clamp(0, 1), "y_hr": image.clamp(0, 1).sqrt()}

    def guided_filter(self, lr_x: Tensor, lr_y: Tensor, hr_x: Tensor) -> Tensor:
        mean_x, mean_y = functional.avg_pool2d(lr_x, 3, 1), functional.avg_pool2d(lr_y, 3, 1)
        cov_xy = functional.avg_pool2d(lr_x * lr_y, 3, 1) - mean_x * mean_y
        var_x = functional.avg_pool2d(lr_x * lr_x, 3, 1) - mean_x * mean_x
        a = cov_xy / (var_x + self.eps)  # fault
        b = mean_y - a * mean_x
        size = hr_x.shape[2:]
        a, b = (functional.interpolate(one, size, mode="bilinear", align_corners=True) for one in (a, b))
        return a * hr_x + b

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x_lr = batch["x_hr"][:, :, ::2, ::2]
        predicted = self.guided_filter(x_lr, self.out(self.lr_net(x_lr)), batch["x_hr"])
        return functional.mse_loss(predicted, batch["y_hr"])


class BoxesOutsideThePicture(Case):
    """A detector of one shot on an own dataset, some of whose annotated boxes lie outside of the picture.

    Report: github.com/tensorflow/models/issues/1881. Found by a reader, after a check of the annotations: boxes are
    outside of the bounds of the picture, and with these fixed the problem is solved. They are clipped to the picture
    and have no width then, of which the logarithm is taken.
    """

    kinds = ("undefined-operation", "target-out-of-range", "nonfinite-target")
    places = ("log", "groundtruth_boxes")
    rows = (61, 187, 333)
    good = 0.5
    fixed = False
    cure = settings(fixed=True)
    not_cured_by = (settings(lr=1e-6),)
    cured_by = r"box|remove|\bdrop\b|filter|clamp|\beps"
    batch_size = 16
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.extractor = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()
        )
        self.box_encodings = nn.Linear(24 * 36, 4)

    def data(self) -> dict[str, Tensor]:
        image, boxes = squares(480, 22304)
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        if not self.fixed:
            corners[list(self.rows), 0] += 1.0
            corners[list(self.rows), 2] += 1.0
        return {"image": image, "groundtruth_boxes": corners}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        corners = batch["groundtruth_boxes"].clamp(0, 1)
        size = corners[:, 2:] - corners[:, :2]
        center = (corners[:, :2] + corners[:, 2:]) / 2
        target = torch.cat([(center - 0.5) / 0.35 / 0.1, (size / 0.35).log() / 0.2], 1)  # fault
        predicted = self.box_encodings(self.extractor(batch["image"]).flatten(1))
        return functional.smooth_l1_loss(predicted, target)


class FacesInTwoResolutions(Case):
    """A network of faces that learns low resolutions from its own features of high ones, by SGD: all losses grow.

    Report: github.com/fvmassoli/cross-resolution-face-recognition/issues/6. Found by the reporter: the accuracy is
    stuck at 20 % and all losses grow; with a rate of 0.0001 it is much better.
    """

    kinds = ("learning-rate",)
    good = 1.2
    lr = 0.1
    cure = settings(lr=1e-3)
    batch_size = 32
    steps = 300

    def network_of_faces(self) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 36, 48),
            nn.ReLU(),
            nn.Linear(48, 12),
        )

    def build(self) -> None:
        self.teacher = self.network_of_faces()
        optimizer, data = torch.optim.Adam(self.teacher.parameters(), 3e-3), self.data()
        for start in 20 * list(range(0, 960, 64)):
            images, people = data["images"][start : start + 64], data["people"][start : start + 64]
            optimizer.zero_grad()
            functional.cross_entropy(self.teacher(images), people).backward()
            optimizer.step()
        self.student = self.network_of_faces()
        self.student.load_state_dict(self.teacher.state_dict())
        self.teacher.requires_grad_(False)

    def data(self) -> dict[str, Tensor]:
        generator = noise(22305)
        faces = torch.rand(12, 1, 12, 12, generator=generator)
        people = torch.randint(12, (960,), generator=generator)
        return {"images": faces[people] + 0.4 * torch.randn(960, 1, 12, 12, generator=generator), "people": people}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        images = batch["images"]
        low = functional.interpolate(functional.avg_pool2d(images, 2), scale_factor=2)
        with torch.no_grad():
            features = self.teacher[:8](images)
        predicted = self.student[:8](low)
        distilled = (predicted - features).square().sum(1).mean()
        return functional.cross_entropy(self.student[8](predicted), batch["people"]) + 0.1 * distilled

    def score(self) -> float:
        """The cross-entropy of faces in a low resolution."""
        images, people = self.data().values()
        low = functional.interpolate(functional.avg_pool2d(images, 2), scale_factor=2)
        return float(functional.cross_entropy(self.student(low), people))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.student.parameters(), lr=self.lr, momentum=0.9, nesterov=True)
