"""Nodes of graphs and atoms of molecules, after public reports."""
# ruff: noqa: D102
# mypy: disable-error-code="no-any-return,no-untyped-call,operator,index"

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.case import Case, noise, settings


class NodesWithoutProperties(Case):
    """Embeddings of nodes from the mean of sampled neighbors, each of length one; few nodes have no property.

    Report: github.com/neo4j/graph-data-science/issues/94. Confirmed by a developer: a few of the embeddings are NaN,
    since they are divided by their length, which is zero where all properties of a node and its neighbors are.
    """

    kinds = ("undefined-operation",)
    places = ("div",)
    good = 0.6
    guards_zero = False
    cure = settings(guards_zero=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"clamp|\beps|small (?:value|number)|\bwhere\b"
    batch_size = 32
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.layers = nn.ModuleList([nn.Linear(8, 24, bias=False), nn.Linear(24, 16, bias=False)])

    def data(self) -> dict[str, Tensor]:
        generator = noise(19001)
        center = 1.5 * torch.randn(6, 8, generator=generator)
        community = torch.randint(6, (900,), generator=generator)
        other = (community + torch.randint(1, 6, (900,), generator=generator)) % 6
        fields = {}
        for name, of in {"nodes": community, "positive": community, "negative": other}.items():
            fields[name] = center[of][:, None] + 0.5 * torch.randn(900, 5, 8, generator=generator)
        fields["nodes"][torch.randperm(900, generator=generator)[:5]] = 0.0
        return fields

    def embed(self, properties: Tensor) -> Tensor:
        """The node comes first, its sampled neighbors follow."""
        neighbors = self.layers[0](properties).relu()
        combined = torch.cat([neighbors[:, :1], neighbors.mean(1, keepdim=True)], 1).mean(1)
        embedding = self.layers[1](combined)
        length = embedding.square().sum(1, keepdim=True).sqrt()
        if self.guards_zero:
            return functional.normalize(embedding, dim=1)
        return embedding / length  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        nodes = self.embed(batch["nodes"])
        affinity = 5 * (nodes * self.embed(batch["positive"])).sum(1)
        away = 5 * (nodes * self.embed(batch["negative"])).sum(1)
        return functional.softplus(-affinity).mean() + functional.softplus(away).mean()


class ForcesOfPaddedMolecules(Case):
    """Energies of molecules and the forces on their atoms, which are the slope of the energy; short ones are padded.

    Report: github.com/atomistic-machine-learning/schnetpack/issues/5, fixed by pull request 6. Confirmed by the
    author: with molecules of unequal size the distances that are padding are roots of zero, and the loss is NaN.
    """

    kinds = ("undefined-operation",)
    places = ("sqrt",)
    good = 0.25
    masks_neighbors = False
    cure = settings(masks_neighbors=True)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"mask|clamp|\beps|small (?:value|number)|\bwhere\b"
    batch_size = 16
    lr = 5e-3
    steps = 250

    def build(self) -> None:
        self.embedding = nn.Embedding(3, 16)
        self.filter = nn.Sequential(nn.Linear(8, 24), nn.Softplus(), nn.Linear(24, 16))
        self.atomwise = nn.Sequential(nn.Linear(16, 24), nn.Softplus(), nn.Linear(24, 1))

    def data(self) -> dict[str, Tensor]:
        generator = noise(19002)
        corners = torch.tensor([[0.0, 0, 0], [1.2, 0, 0], [0, 1.2, 0], [0, 0, 1.2], [1.2, 1.2, 0]])
        positions = corners + 0.15 * torch.randn(480, 5, 3, generator=generator)
        present = torch.ones(480, 5)
        present[torch.randperm(480, generator=generator)[:24], 3:] = 0.0
        positions = positions * present[..., None]
        pairs = present[:, :, None] * present[:, None] * (1 - torch.eye(5))
        positions.requires_grad_()
        squared = (positions[:, :, None] - positions[:, None]).square().sum(-1)
        length = torch.where(pairs > 0, squared, 1.0).sqrt()
        energy = (0.5 * pairs * (length - 1.5).square()).sum((1, 2))
        (slope,) = torch.autograd.grad(energy.sum(), positions)
        return {
            "atomic_numbers": torch.tensor([0, 1, 1, 2, 2]) * torch.ones(480, 1, dtype=torch.long),
            "positions": positions.detach(),
            "neighbor_mask": pairs,
            "energy": energy.detach(),
            "forces": -slope,
        }

    def distances(self, positions: Tensor, mask: Tensor) -> Tensor:
        far = positions[:, :, None] - positions[:, None] + torch.eye(5)[..., None]
        squared = far.square().sum(-1)
        if self.masks_neighbors:
            squared = torch.where(mask > 0, squared, 1.0)
        return squared.sqrt()  # fault

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        mask, size = batch["neighbor_mask"], batch["neighbor_mask"].amax(2)
        with torch.enable_grad():
            positions = batch["positions"].clone().requires_grad_()
            length = self.distances(positions, mask)
            waves = (-4 * (length[..., None] - torch.linspace(0.5, 2.5, 8)).square()).exp()
            features = self.embedding(batch["atomic_numbers"])
            hidden = (self.filter(waves) * features[:, None] * mask[..., None]).sum(2)
            energy = (self.atomwise(features + hidden)[..., 0] * size).sum(1)
            (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return functional.mse_loss(energy, batch["energy"]) + (slope + batch["forces"]).square().mean()


class NodesInOnePlace(Case):
    """Links between nodes from the logarithm of the distance of their embeddings, and a mass of each node.

    Report: github.com/deezer/gravity_graph_autoencoders/issues/4. Confirmed by the author: for some graphs two nodes
    get the same embedding, and the logarithm of their distance spreads NaN; a number is added to the distance.
    """

    kinds = ("undefined-operation",)
    places = ("log",)
    good = 0.6
    epsilon = 0.0
    cure = settings(epsilon=0.01)
    not_cured_by = (settings(lr=1e-5),)
    cured_by = r"clamp|\beps|small (?:value|number)"
    batch_size = 16
    lr = 5e-3
    steps = 300

    def build(self) -> None:
        self.hidden = nn.Linear(6, 32)
        self.z_mean = nn.Linear(32, 9)

    def data(self) -> dict[str, Tensor]:
        generator = noise(19023)
        side = torch.randint(2, (480, 18), generator=generator)
        features = torch.randn(480, 18, 6, generator=generator)
        features[..., :2] += 2.0 * functional.one_hot(side, 2)
        same = side[:, :, None] == side[:, None]
        chance = torch.rand(480, 18, 18, generator=generator)
        links = (chance < torch.where(same, 0.65, 0.2)).triu(1).float()
        return {"features": features, "adj": links + links.mT + torch.eye(18)}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        adj = batch["adj"]
        norm = adj / adj.sum(2, keepdim=True)
        hidden = (norm @ self.hidden(batch["features"])).relu()
        z = norm @ self.z_mean(hidden)
        mass, place = z[..., 8], z[..., :8]
        first, second = torch.triu_indices(18, 18, 1)
        squared = (place[:, first] - place[:, second]).square().sum(2)
        logits = mass[:, second] - (squared + self.epsilon).log()  # fault
        return functional.binary_cross_entropy_with_logits(logits, adj[:, first, second])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
