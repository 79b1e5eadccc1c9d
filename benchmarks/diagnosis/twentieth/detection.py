"""Boxes, lanes and masks, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


def squares(count: int, seed: int, largest: int = 6) -> tuple[Tensor, Tensor]:
    """Return pictures of one bright rectangle each, and its box as center, width and height between 0 and 1."""
    generator = noise(seed)
    size = torch.randint(3, largest, (count, 2), generator=generator)
    corner = (torch.rand(count, 2, generator=generator) * (13 - size)).long()
    grid = torch.arange(12)
    x = (grid >= corner[:, :1]) & (grid < corner[:, :1] + size[:, :1])
    y = (grid >= corner[:, 1:]) & (grid < corner[:, 1:] + size[:, 1:])
    image = (y[:, :, None] & x[:, None]) + 0.2 * torch.rand(count, 12, 12, generator=generator)
    return image[:, None], torch.cat([corner + 0.5 * size, size.float()], 1) / 12


class ProposalsAtAHighRate(Case):
    """One object a picture by learned proposals that are refined in three stages, on an own dataset.

    Report: github.com/PeizeSun/SparseR-CNN/issues/21. Solved by the reporter: the boxes are NaN at rates from 0.0025 to
    0.01; that of the paper is 0.000025, and the error is gone with a lower rate.
    """

    kinds = ("learning-rate",)
    good = 0.35
    lr = 0.1
    cure = settings(lr=1e-3)
    batch_size = 16
    steps = 400

    def build(self) -> None:
        self.backbone = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1))
        self.init_proposal_boxes = nn.Parameter(torch.tensor([0.5, 0.5, 0.5, 0.5]).repeat(4, 1))
        self.init_proposal_features = nn.Parameter(torch.randn(4, 24))
        self.fcs = nn.ModuleList(nn.Sequential(nn.Linear(29, 48), nn.ReLU(), nn.Linear(48, 24)) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(3))
        self.bboxes_delta = nn.ModuleList(nn.Linear(24, 4) for _ in range(3))

    def data(self) -> dict[str, Tensor]:
        image, boxes = squares(640, 20001)
        return {"images": image, "boxes": boxes}

    def costs(self, predicted: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        l1 = (predicted - boxes[:, None]).abs().sum(2)
        low, high = predicted[..., :2] - predicted[..., 2:] / 2, predicted[..., :2] + predicted[..., 2:] / 2
        true_low, true_high = (boxes[:, :2] - boxes[:, 2:] / 2)[:, None], (boxes[:, :2] + boxes[:, 2:] / 2)[:, None]
        inter = (torch.minimum(high, true_high) - torch.maximum(low, true_low)).clamp(min=0).prod(2)
        union = predicted[..., 2:].prod(2) + boxes[:, None, 2:].prod(2) - inter
        hull = (torch.maximum(high, true_high) - torch.minimum(low, true_low)).prod(2)
        return l1, inter / union - (hull - union) / hull

    def stages(self, images: Tensor) -> list[Tensor]:
        features = self.backbone(images).flatten(2).transpose(1, 2)
        grid = (torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0)).flip(1) + 0.5) / 12
        count, stages = len(features), []
        boxes = self.init_proposal_boxes.expand(count, 4, 4)
        proposal = self.init_proposal_features.expand(count, 4, 24)
        for fc, norm, delta in zip(self.fcs, self.norms, self.bboxes_delta, strict=True):
            inside = (grid - boxes[:, :, None, :2].detach()) / boxes[:, :, None, 2:].detach()
            seen = features[..., 0].sigmoid()[:, None] * (-2 * inside.square().sum(3)).exp()
            middle = (seen[..., None] * inside).sum(2) / (seen.sum(2, keepdim=True) + 1e-3)
            spread = (seen[..., None] * inside.square()).sum(2) / (seen.sum(2, keepdim=True) + 1e-3)
            proposal = norm(proposal + fc(torch.cat([proposal, middle, spread, seen.sum(2, keepdim=True)], 2)))
            deltas = delta(proposal)
            center = boxes[..., :2] + deltas[..., :2] * boxes[..., 2:]
            stages.append(torch.cat([center, boxes[..., 2:] * deltas[..., 2:].clamp(max=8.7).exp()], 2))
            boxes = stages[-1].detach()
        return stages

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        loss = torch.zeros(())
        for boxes in self.stages(batch["images"]):
            l1, giou = self.costs(boxes, batch["boxes"])
            loss = loss + (5 * l1 + 2 * (1 - giou)).amin(1).mean()
        return loss / 3

    def score(self) -> float:
        """The error of the best box of the last stage."""
        batch = self.data()
        return float(self.costs(self.stages(batch["images"])[-1], batch["boxes"])[0].amin(1).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class OnlyClassIsTheBackground(Case):
    """Single-shot boxes of one class on a grid of anchors, whose label is zero in the own dataset.

    Report: github.com/qfgaohao/pytorch-ssd/issues/122. Solved by a reader with the same NaN in both losses: the class
    zero is the background, and the class that is detected has to be one.
    """

    kinds = ("empty-reduction", "target-out-of-range", "undefined-operation")
    places = ("div", "labels")
    host = "plain"
    good = 0.6
    first_label = 0
    cure = settings(first_label=1)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"label|class|clamp|at least|max\("
    batch_size = 16
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        self.base_net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()
        )
        self.classification_headers, self.regression_headers = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def data(self) -> dict[str, Tensor]:
        image, boxes = squares(480, 20002)
        cell = (4 * boxes[:, :2]).long().clamp(max=3)
        labels = torch.zeros(480, 16, dtype=torch.long)
        where = cell[:, 1] * 4 + cell[:, 0]
        labels[torch.arange(480), where] = self.first_label
        offset = torch.cat([(4 * boxes[:, :2] - cell - 0.5) / 0.1, (4 * boxes[:, 2:]).log() / 0.2], 1)
        return {"images": image, "boxes": offset[:, None].repeat(1, 16, 1), "labels": labels}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.base_net(batch["images"])
        confidence = self.classification_headers(x).flatten(2).transpose(1, 2)
        locations = self.regression_headers(x).flatten(2).transpose(1, 2)
        labels = batch["labels"]
        pos_mask = labels > 0
        with torch.no_grad():
            background = -confidence.log_softmax(2)[..., 0]
            background[pos_mask] = -torch.inf
            rank = background.argsort(1, descending=True).argsort(1)
            neg_mask = rank < 3 * pos_mask.sum(1, keepdim=True)
        mask = pos_mask | neg_mask
        classification_loss = functional.cross_entropy(confidence[mask], labels[mask], reduction="sum")
        smooth_l1_loss = functional.smooth_l1_loss(locations[pos_mask], batch["boxes"][pos_mask], reduction="sum")
        num_pos = pos_mask.sum()
        return smooth_l1_loss / num_pos / 4 + classification_loss / num_pos  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class NoLineInThePicture(Case):
    """Lines on a road as one cell in each row, on an own dataset, where some pictures have no line at all.

    Report: github.com/cfzd/Ultra-Fast-Lane-Detection-v2/issues/77. Found by the reporter: where a picture has no line
    all of its labels are ignored, and the loss is divided by the number of labels that are not, which is zero.
    """

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div", "sum", "mean")
    host = "plain"
    good = 0.25
    at_least = 0
    cure = settings(at_least=1)
    not_cured_by = (settings(lr=1e-5),)
    batch_size = 4
    lr = 3e-3
    steps = 400

    def build(self) -> None:
        self.model = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1))
        self.cls = nn.Sequential(nn.ReLU(), nn.Flatten(1), nn.Linear(960, 64), nn.ReLU(), nn.Linear(64, 80))

    def data(self) -> dict[str, Tensor]:
        generator = noise(20003)
        start = 7 * torch.rand(320, 1, generator=generator)
        end = 7 * torch.rand(320, 1, generator=generator)
        rows = torch.linspace(0, 1, 10)
        line = (start + (end - start) * rows).round().long().clamp(0, 7)
        image = functional.one_hot(line, 8).float()
        without = torch.rand(320, generator=generator) < 0.3
        image[without] = 0
        line[without] = -1
        image = image + 0.3 * torch.rand(320, 10, 8, generator=generator)
        return {"images": image[:, None], "labels_row": line}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.cls(self.model(batch["images"])).view(-1, 10, 8)
        label = batch["labels_row"].flatten()
        each = functional.cross_entropy(logits.flatten(0, 1), label, ignore_index=-1, reduction="none")
        return each.sum() / (label != -1).sum().clamp(min=self.at_least)  # fault

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class MasksOfOneRow(Case):
    """Depths from pictures, with a term for the size of objects, whose masks come from a segmentation before.

    Report: github.com/tensorflow/models/issues/6392. Found by a reader: the loss is infinite because of small masks;
    the height of an object is its last row minus its first, by which is divided. Masks of one row are not to be kept.
    """

    kinds = ("undefined-operation", "outlier-batch")
    places = ("div", "masks")
    rows = (58, 203, 391)
    good = 0.35
    keeps_rows = True
    cure = settings(keeps_rows=False)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"filter|remove|\bdrop\b|at least|clamp|exclude"
    batch_size = 16
    lr = 3e-3
    steps = 350

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(12), nn.Flatten())
        self.decoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1), nn.Softplus())

    def data(self) -> dict[str, Tensor]:
        image, boxes = squares(480, 20004, largest=11)
        mask = (image > 0.5).float()
        for row in (58, 203, 391):
            first = int(mask[row].amax(2).argmax())
            mask[row, :, first + 1 :] = 0
        depth = 6 / (12 * boxes[:, 3])
        kept = torch.ones(480, dtype=torch.bool)
        kept[[58, 203, 391]] = self.keeps_rows
        return {"images": image[kept], "masks": mask[kept], "depth": depth[kept]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["masks"]
        depth = self.decoder(self.encoder(torch.cat([batch["images"], mask], 1)))[:, 0]
        rows = mask[:, 0].amax(2) > 0
        first, last = rows.float().argmax(1), 11 - rows.flip(1).float().argmax(1)
        approximate = 5 / (last - first)  # fault
        size = (depth - approximate).abs().mean()
        return (depth - batch["depth"]).abs().mean() + 0.5 * size

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
