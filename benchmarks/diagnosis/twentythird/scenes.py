"""Scenes, detections and graphs, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index,union-attr,arg-type"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings
from benchmarks.diagnosis.nineteenth.language import Scaled


class TinyDetectorInHalf(Scaled):
    """A small detector in mixed precision: its outputs become NaN, and those of the larger one do not.

    Report: github.com/meituan/YOLOv6/issues/567. Found by the reporter: it is the mixed precision, without which it
    does not happen. Targets are assigned by scores and overlaps, which are in half precision as well.
    """

    kinds = ("half-precision", "undefined-operation")
    host = "plain"
    good = 0.7
    dtype = torch.float16
    cure = settings(dtype=torch.float32)
    not_cured_by = (settings(lr=1e-6),)
    batch_size = 16
    lr = 3e-3
    steps = 300

    def build(self) -> None:
        super().build()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()
        )
        self.cls_pred, self.reg_pred = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)
        nn.init.constant_(self.cls_pred.bias, -4.6)

    def data(self) -> dict[str, Tensor]:
        generator = noise(23501)
        size = 1.5 + 3.5 * torch.rand(480, 2, generator=generator)
        corner = torch.rand(480, 2, generator=generator) * (12 - size)
        box = torch.cat([corner, corner + size], 1)
        y, x = torch.arange(12.0)[:, None] + 0.5, torch.arange(12.0) + 0.5
        left, top, right, bottom = (box[:, index, None, None] for index in range(4))
        inside = (x > left) & (x < right) & (y > top) & (y < bottom)
        label = torch.randint(2, (480,), generator=generator)
        shade = torch.where(label == 0, 1.0, -1.0)[:, None, None]
        image = shade * inside + 0.1 * torch.randn(480, 12, 12, generator=generator)
        return {"image": image[:, None], "box": box, "label": label}

    def overlap(self, predicted: Tensor, box: Tensor) -> Tensor:
        low, high = torch.maximum(predicted[..., :2], box[..., :2]), torch.minimum(predicted[..., 2:], box[..., 2:])
        both = (high - low).clamp(min=0).prod(-1)
        area = (predicted[..., 2:] - predicted[..., :2]).prod(-1) + (box[..., 2:] - box[..., :2]).prod(-1)
        return both / (area - both + 1e-9)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            x = self.backbone(batch["image"])
            logits = self.cls_pred(x).flatten(2).transpose(1, 2)
            distances = functional.softplus(self.reg_pred(x)).flatten(2).transpose(1, 2)
        grid = torch.arange(1.0, 12.0, 2.0)
        scores = logits.detach().sigmoid()
        anchors = torch.cartesian_prod(grid, grid).flip(1).to(scores.dtype)
        boxes = torch.cat([anchors - distances[..., :2], anchors + distances[..., 2:]], 2)
        target_box = batch["box"][:, None].to(boxes.dtype)
        is_inside = ((anchors > target_box[..., :2]) & (anchors < target_box[..., 2:])).all(2)
        with torch.no_grad():
            overlaps = self.overlap(boxes, target_box) * is_inside
            own = scores.gather(2, batch["label"][:, None, None].expand(-1, 36, 1))[..., 0]
            metric = own * overlaps**6
            chosen = metric >= metric.topk(3, 1).values[:, -1:]
            normalized = metric * overlaps.amax(1, keepdim=True) / (metric.amax(1, keepdim=True) + 1e-9)
            assigned = (normalized * chosen * is_inside)[..., None] * functional.one_hot(batch["label"], 2)[:, None]
        scores, assigned = scores.float(), assigned.float()
        weight = assigned + 0.75 * scores**2 * (assigned == 0)
        loss_cls = functional.binary_cross_entropy_with_logits(logits.float(), assigned, weight, reduction="sum")
        weight = assigned.sum(2)
        loss_iou = ((1 - self.overlap(boxes.float(), target_box.float())) * weight).sum()
        return (loss_cls + 2 * loss_iou) / assigned.sum().clamp(min=1)

    def score(self) -> float:
        """One less the mean overlap of the boxes of the highest scores."""
        batch = self.clean()
        x = self.backbone(batch["image"])
        distances = functional.softplus(self.reg_pred(x)).flatten(2).transpose(1, 2)
        grid = torch.arange(1.0, 12.0, 2.0)
        anchors = torch.cartesian_prod(grid, grid).flip(1)
        boxes = torch.cat([anchors - distances[..., :2], anchors + distances[..., 2:]], 2)
        best = self.cls_pred(x).amax(1).flatten(1).argmax(1)
        return float(1 - self.overlap(boxes[torch.arange(len(boxes)), best], batch["box"]).mean())


class DetectorOnFewerCards(Case):
    """A detector that refines its boxes six times, on four cards instead of eight: the training diverges.

    Report: github.com/HorizonRobotics/Sparse4D/issues/109. Found by the reporter: a stronger limit of the gradients,
    5 instead of 25. The sizes of boxes are exponentials. Gradients of this run are smaller, and so is their limit.
    """

    kinds = ("learning-rate",)
    good = 0.95
    max_norm = 25.0
    cure = settings(max_norm=0.3)
    cured_by = r"clip|learning rate|\blr\b"
    batch_size = 8
    lr = 0.1
    steps = 300

    def build(self) -> None:
        self.encoder = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.refine = nn.ModuleList(nn.Sequential(nn.Linear(68, 64), nn.ReLU(), nn.Linear(64, 4)) for _ in range(6))

    def data(self) -> dict[str, Tensor]:
        generator = noise(23502)
        latent = torch.randn(960, 4, generator=generator)
        features = (latent @ torch.randn(4, 24, generator=generator)).tanh()
        return {"features": features, "center": features[:, :2], "size": (1 + features[:, 2:4]).exp()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.encoder(batch["features"])
        anchor, total = torch.zeros(len(x), 4), torch.zeros(())
        for layer in self.refine:
            anchor = anchor + layer(torch.cat([x, anchor], 1))
            centers = (anchor[:, :2] - batch["center"]).abs().mean()
            total = total + centers + (anchor[:, 2:].exp() - batch["size"]).abs().mean()
        return total / 6

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.max_norm)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class PointsNotNormalized(Case):
    """Completion of clouds of points, with own models as a further class: their loss is huge, and the score oscillates.

    Report: github.com/yuxumin/PoinTr/issues/127. Found by the reporter: the own models were not normalized.
    """

    kinds = ("unscaled-data", "outlier-batch")
    host = "plain"
    good = 0.68
    normalizes = False
    cure = settings(normalizes=True)
    cured_by = r"normali|standardi|scal|remove|filter"
    batch_size = 16
    lr = 3e-3
    steps = 500

    def build(self) -> None:
        self.point, self.shape = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64)), nn.Linear(64, 96)
        self.decoder = nn.Sequential(nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 72))

    def data(self) -> dict[str, Tensor]:
        generator = noise(23503)
        axes = 0.15 + 0.35 * torch.rand(640, 1, 3, generator=generator)
        points = functional.normalize(torch.randn(640, 24, 3, generator=generator), dim=2) * axes
        is_own = torch.arange(640) >= 610
        if not self.normalizes:
            points[is_own] = 300 * points[is_own] + torch.tensor([800.0, -400.0, 120.0])
        return {"partial": points[:, :12], "gt": points}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        coded = self.shape(self.point(batch["partial"]).amax(1))
        dense = self.decoder(coded).unflatten(1, (24, 3))
        distance = (dense[:, :, None] - batch["gt"][:, None]).square().sum(3).clamp(min=1e-12).sqrt()
        return distance.amin(1).mean() + distance.amin(2).mean()

    def score(self) -> float:
        """The distance to the points of the own models, relative to their size."""
        own = {name: field[610:] for name, field in self.data().items()}
        return float(self.loss(own) / (own["gt"] - own["gt"].mean(1, keepdim=True)).square().sum(2).mean().sqrt())


class EntitiesFromZero(Case):
    """Embeddings of entities and relations of a knowledge graph: the training has no effect.

    Report: github.com/DeepGraphLearning/graphvite/issues/6. Found and fixed by the author: the initialization is
    skipped, and the embeddings are zero.
    """

    kinds = ("initialization",)
    places = ("entity_embedding", "relation_embedding")
    good = 0.4
    initializes = False
    cure = settings(initializes=True)
    not_cured_by = (settings(lr=0.1),)
    batch_size = 64
    lr = 0.02
    steps = 400

    def build(self) -> None:
        self.entity_embedding = nn.Parameter(torch.zeros(60, 24))
        self.relation_embedding = nn.Parameter(torch.zeros(4, 24))
        if self.initializes:
            nn.init.uniform_(self.entity_embedding, -0.5, 0.5)
            nn.init.uniform_(self.relation_embedding, -0.5, 0.5)

    def data(self) -> dict[str, Tensor]:
        generator = noise(23504)
        entities, relations = torch.randn(60, 3, generator=generator), torch.randn(4, 3, generator=generator)
        every = torch.einsum("ik,rk,jk->irj", entities, relations, entities)
        head, relation, tail = (every > 2.5).nonzero().T
        chosen = torch.randperm(len(head), generator=generator)[:960]
        negative = torch.randint(60, (len(chosen),), generator=generator)
        return {"head": head[chosen], "relation": relation[chosen], "tail": tail[chosen], "negative": negative}

    def scores(self, head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
        return (self.entity_embedding[head] * self.relation_embedding[relation] * self.entity_embedding[tail]).sum(1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        positive = self.scores(batch["head"], batch["relation"], batch["tail"])
        negative = self.scores(batch["head"], batch["relation"], batch["negative"])
        return (functional.softplus(-positive).mean() + functional.softplus(negative).mean()) / 2
