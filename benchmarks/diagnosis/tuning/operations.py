"""Operations without a value, reductions over nothing, and overflows in the forward pass."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class NothingToTag(Case):
    """A batch of sentences in which every token has the label that is to be ignored."""

    kinds = ("empty-reduction",)
    places = ("[1]", "nll_loss", "nll_loss_forward", "nll_loss_nd", "cross_entropy")
    good = 0.5
    ignored = True
    cure = settings(ignored=False)
    cured_by = "ignore|drop|skip|clamp"
    shuffle = False
    batch_size = 16

    def build(self) -> None:
        self.words = nn.Embedding(40, 24)
        self.tagger = nn.LSTM(24, 24, batch_first=True)
        self.tags = nn.Linear(24, 4)

    def data(self) -> tuple[Tensor, Tensor]:
        sentence = torch.randint(0, 40, (480, 9), generator=noise(21))
        tag = sentence % 4
        tag[torch.rand(480, 9, generator=noise(22)) < 0.3] = -100
        if self.ignored:
            tag[160:176] = -100
        return sentence, tag

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden, _ = self.tagger(self.words(batch[0]))
        return functional.cross_entropy(self.tags(hidden).flatten(0, 1), batch[1].flatten(), ignore_index=-100)  # fault


class AdvantageOfOne(Case):
    """Advantages are standardized within the batch, and the last batch of an epoch holds one of them."""

    kinds = ("empty-reduction",)
    places = ("std", "advantage")
    good = -0.8
    drop_last = False
    cure = settings(drop_last=True)
    cured_by = r"drop_last|unbiased|correction"
    batch_size = 32

    def build(self) -> None:
        self.policy = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))

    def data(self) -> dict[str, Tensor]:
        random = noise(23)
        state = torch.randn(577, 4, generator=random)
        action = torch.randint(0, 3, (577,), generator=random)
        reward = (state[:, :3].argmax(1) == action).float()
        rows = 576 if self.drop_last else 577
        return {"state": state[:rows], "action": action[:rows], "reward": reward[:rows]}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        reward = batch["reward"]
        advantage = (reward - reward.mean()) / reward.std()  # fault
        taken = self.policy(batch["state"]).log_softmax(1).gather(1, batch["action"][:, None])[:, 0]
        return -(taken.exp() * 3 * advantage).mean()

    def score(self) -> float:
        data = self.clean()
        chosen = self.policy(data["state"]).argmax(1)
        return -float((chosen == data["state"][:, :3].argmax(1)).float().mean())


class NoPositiveAnchor(Case):
    """The loss of boxes is divided by the number of anchors with an object, and some images have none."""

    kinds = ("empty-reduction", "undefined-operation")
    places = ("div", "anchor", "object")
    good = 0.1
    least = 0.0
    cure = settings(least=1.0)
    cured_by = r"clamp|max\(|eps|guard"
    batch_size = 2
    shuffle = True
    steps = 200

    def build(self) -> None:
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        )
        self.boxes = nn.Conv2d(8, 2, 1)

    def data(self) -> dict[str, Tensor]:
        random = noise(24)
        image = torch.rand(240, 1, 6, 6, generator=random)
        object_mask = (image[:, 0] > 0.965).float()
        return {"image": image, "object": object_mask, "box": torch.cat([image, 1 - image], 1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        error = functional.l1_loss(self.boxes(self.backbone(batch["image"])), batch["box"], reduction="none").sum(1)
        return (error * batch["object"]).sum() / batch["object"].sum().clamp(min=self.least)  # fault


class DegenerateBox(Case):
    """The logarithm of a box's width, and one annotated box ends left of where it begins."""

    kinds = ("undefined-operation", "target-out-of-range")
    places = ("log", "[1]")
    rows = (7, 423)
    good = 0.1
    least = -1e9
    cure = settings(least=1e-3)
    batch_size = 26
    shuffle = False
    lr = 0.02

    def build(self) -> None:
        self.regressor = nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 2))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(25)
        features = torch.randn(520, 10, generator=random)
        begin = features[:, 0].sigmoid()
        box = torch.stack([begin, begin + torch.exp(0.5 * features[:, 1])], 1)
        box[423] = torch.tensor([0.8, 0.6])
        return features, box

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        begin, end = batch[1].unbind(1)
        width = torch.log((end - begin).clamp(min=self.least))  # fault
        return functional.smooth_l1_loss(self.regressor(batch[0]), torch.stack([begin, width], 1))


class TwinPoints(Case):
    """The distance of two embeddings as a root of squares, of pairs of which some are the same sample twice."""

    kinds = ("undefined-operation",)
    places = ("sqrt", "pow")
    good = 0.15
    eps = 0.0
    cure = settings(eps=1e-6)
    batch_size = 20

    def build(self) -> None:
        self.embed = nn.Sequential(nn.Linear(16, 32), nn.ELU(), nn.Linear(32, 4))

    def data(self) -> dict[str, Tensor]:
        random = noise(26)
        left, right = torch.randn(2, 400, 16, generator=random)
        right[::57] = left[::57]
        return {"left": left, "right": right, "distance": (left[:, :4] - right[:, :4]).abs().mean(1)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        difference = self.embed(batch["left"]) - self.embed(batch["right"])
        distance = torch.sqrt(difference.square().sum(1) + self.eps)  # fault
        return functional.mse_loss(distance, batch["distance"])

    def score(self) -> float:
        data = self.clean()
        distance = (self.embed(data["left"]) - self.embed(data["right"])).norm(dim=1)
        return float(functional.mse_loss(distance, data["distance"]))


class AngleOfTheSame(Case):
    """The angle between predicted and true direction by acos, which has no slope where they agree exactly."""

    kinds = ("undefined-operation",)
    places = ("acos",)
    good = 0.2
    bound = 1.0
    cure = settings(bound=1 - 1e-6)
    lr = 0.02

    def build(self) -> None:
        self.turn = nn.Linear(3, 3, bias=False)

    def data(self) -> tuple[Tensor, Tensor]:
        start = functional.normalize(torch.randn(512, 3, generator=noise(27)), dim=1)
        turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=noise(28)))
        return start, start @ turned

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        predicted = functional.normalize(self.turn(batch[0]), dim=1)
        cosine = (predicted * batch[1]).sum(1).clamp(-self.bound, self.bound)
        return torch.acos(cosine).mean()  # fault

    def score(self) -> float:
        start, end = self.clean()
        return 1 - float(functional.cosine_similarity(self.turn(start), end).mean())


class NobodyToAttend(Case):
    """Attention written by hand over the members of a set; one set is empty and its scores are all masked."""

    kinds = ("undefined-operation",)
    places = ("softmax", "_softmax", "pool")
    rows = (2, 218)
    good = 0.5
    fill = float("-inf")
    cure = settings(fill=-1e4)
    cured_by = "unmask|finite|-1e|mask"
    batch_size = 24
    shuffle = False
    lr = 5e-3

    def build(self) -> None:
        self.member = nn.Linear(5, 32)
        self.pool = nn.Linear(32, 1)
        self.out = nn.Linear(32, 3)

    def data(self) -> dict[str, Tensor]:
        random = noise(29)
        members = torch.randn(480, 6, 5, generator=random)
        count = torch.randint(1, 7, (480,), generator=random)
        count[218] = 0
        present = torch.arange(6) < count[:, None]
        total = (members[..., :3].relu() * present[..., None]).amax(1)
        return {"members": members, "present": present, "strongest": total.argmax(1)}

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = torch.relu(self.member(batch["members"]))
        scores = self.pool(hidden).squeeze(-1).masked_fill(~batch["present"], self.fill)
        return self.out((scores.softmax(1)[..., None] * hidden).sum(1))  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(self.logits(batch), batch["strongest"])

    def score(self) -> float:
        data = {name: field[:200] for name, field in self.clean().items()}
        return float(self.loss(data))


class TemperatureByHand(Case):
    """A softmax written as exp over its sum, of products of embeddings that are divided by a small temperature."""

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 1.2
    stable = False
    cure = settings(stable=True)
    most = float("inf")
    other_cures = settings(**{"bound the argument": settings(most=20.0)})
    batch_size = 32

    def build(self) -> None:
        self.query, self.key = nn.Linear(20, 32), nn.Linear(20, 32)

    def data(self) -> dict[str, Tensor]:
        random = noise(30)
        view = torch.randn(480, 20, generator=random)
        return {"first": view, "second": view + 0.3 * torch.randn(480, 20, generator=random)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        first, second = self.query(batch["first"]), self.key(batch["second"])
        if self.stable:
            first, second = functional.normalize(first, dim=1), functional.normalize(second, dim=1)
        similarity = torch.exp((first @ second.T / 0.05).clamp(max=self.most))  # fault
        return -torch.log(similarity.diagonal() / similarity.sum(1)).mean()

    def score(self) -> float:
        data = {name: field[:64] for name, field in self.clean().items()}
        first, second = (
            functional.normalize(self.query(data["first"])),
            functional.normalize(self.key(data["second"])),
        )
        return float(functional.cross_entropy(first @ second.T / 0.05, torch.arange(64)))


class UnboundedCoupling(Case):
    """A normalizing flow whose scales are exp of an unbounded network, in six layers."""

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 13.0
    bounded = False
    cure = settings(bounded=True)
    most = float("inf")
    other_cures = settings(**{"bound the argument": settings(most=20.0)})
    lr = 5e-3

    def build(self) -> None:
        self.couplings = nn.ModuleList(nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 4)) for _ in range(6))

    def data(self) -> tuple[Tensor]:
        points = 5 * torch.randn(512, 4, generator=noise(31))
        return (points * torch.tensor([2.0, 1.0, 0.2, 0.05]),)

    def loss(self, batch: tuple[Tensor]) -> Tensor:
        points, volume = batch[0], torch.zeros(())
        for coupling in self.couplings:
            left, right = points.chunk(2, 1)
            scale, shift = coupling(left).chunk(2, 1)
            if self.bounded:
                scale = torch.tanh(scale)
            points = torch.cat([right * torch.exp(scale.clamp(max=self.most)) + shift, left], 1)  # fault
            volume = volume + scale.sum(1)
        return (0.5 * points.square().sum(1) - volume).mean()

    def score(self) -> float:
        return float(self.loss(self.clean()))


class SoftplusByHand(Case):
    """A margin loss with log(1 + exp(x)) written out, and a scale of 64 on its logits."""

    kinds = ("forward-overflow",)
    places = ("exp",)
    good = 0.05
    stable = False
    cure = settings(stable=True)
    cured_by = "logaddexp"
    most = float("inf")
    other_cures = settings(**{"bound the argument": settings(most=20.0)})
    lr = 5e-3

    def build(self) -> None:
        self.net = nn.Sequential(nn.Linear(10, 48), nn.GELU(), nn.Linear(48, 1))

    def data(self) -> tuple[Tensor, Tensor]:
        random = noise(32)
        inputs = torch.randn(640, 10, generator=random)
        sign = torch.sign(inputs[:, 0] + inputs[:, 1] * inputs[:, 2])
        return 2 * inputs, sign

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        margin = -64 * batch[1] * (self.net(batch[0]).squeeze(1) - 0.05 * batch[1])
        if self.stable:
            return functional.softplus(margin).mean() / 64
        wrong = torch.log(1 + torch.exp(margin.clamp(max=self.most)))  # fault
        return wrong.mean() / 64

    def score(self) -> float:
        inputs, sign = self.clean()
        return float(functional.softplus(-64 * sign * self.net(inputs).squeeze(1)).mean() / 64)
