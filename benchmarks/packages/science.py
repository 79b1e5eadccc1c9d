"""Molecules, cells, graphs, Gaussian processes and differential equations."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from benchmarks.packages.training import QUIET, Training, part
from lightning_gradexplode import GradientWatch

MOLECULES = ("CCO", "CCN", "c1ccccc1", "CC(=O)O", "CCCC", "C1CCCCC1", "N#CC", "c1ccncc1", "CN(C)C", "OCC(O)CO")


class MessagePassing(Training):
    """A message passing network of molecules, by Chemprop."""

    package = "chemprop"
    faults: ClassVar = {
        "an infinite target": ("nonfinite-target",),
        "targets of millions": ("unscaled-data",),
        "a target of 1e9": ("outlier-batch",),
    }

    def train(self, fault: str, rate: float) -> None:
        """Train on molecules of ten kinds with tails of different lengths."""
        random, molecules = np.random.default_rng(0), []
        for place in range(400):
            smiles = MOLECULES[random.integers(len(MOLECULES))] + "C" * int(random.integers(0, 4))
            target = np.array([0.3 * len(smiles) + 0.1 * random.normal()])
            if fault == "targets of millions":
                target *= 1e6
            elif fault in self.faults and place == 130:
                target[:] = np.inf if fault == "an infinite target" else 1e9
            molecules.append(part("chemprop.data", "MoleculeDatapoint").from_smi(smiles, target))
        data = part("chemprop.data", "MoleculeDataset")(molecules)
        if fault not in self.faults:
            data.normalize_targets()
        loader = part("chemprop.data", "build_dataloader")(data, batch_size=16, num_workers=0, shuffle=False)
        parts = [part("chemprop.nn", one)() for one in ("BondMessagePassing", "MeanAggregation", "RegressionFFN")]
        rates = {"init_lr": rate / 10, "max_lr": rate, "final_lr": rate / 10, "warmup_epochs": 1}
        model = part("chemprop.models", "MPNN")(*parts, **rates)
        trainer = part("lightning.pytorch", "Trainer")(
            **QUIET, max_epochs=5, callbacks=self.callbacks(), enable_checkpointing=False
        )
        trainer.fit(model, loader)
        self.module = model


class CellCounts(Training):
    """A variational autoencoder of gene counts, by scvi-tools."""

    package = "scvi-tools"
    faults: ClassVar = {
        "a cell with negative counts": ("undefined-operation", "target-out-of-range"),
        "a cell with NaN": ("nonfinite-input",),
    }

    def train(self, fault: str, rate: float) -> None:
        """Train on counts of a thousand cells."""
        random = np.random.default_rng(0)
        rates = np.exp(0.5 * random.normal(size=(1000, 4)) @ random.normal(size=(4, 120))).clip(0, 200)
        counts = random.poisson(rates).astype(np.float32)
        if fault in self.faults:
            counts[333, 5] = np.nan if "NaN" in fault else -5
        scvi: Any = part("scvi.model", "SCVI")
        part("scvi", "settings").seed = 0
        data = part("anndata", "AnnData")(counts)
        scvi.setup_anndata(data)
        model = scvi(data, n_hidden=32)
        self.module = model.module
        quiet = {name: value for name, value in QUIET.items() if name != "accelerator"}
        model.train(
            max_epochs=12,
            batch_size=64,
            accelerator="cpu",
            plan_kwargs={"lr": rate},
            callbacks=self.callbacks(),
            check_val_every_n_epoch=None,
            **quiet,
        )


class GraphConvolutions(Training):
    """A graph convolutional network in a loop as in the tutorials of PyTorch Geometric."""

    package = "torch_geometric"
    faults: ClassVar = {"a node with NaN": ("nonfinite-input",)}
    rates = (1e-2, 30.0)

    def train(self, fault: str, rate: float) -> None:
        """Train on the whole graph at each step."""
        nodes, edges = torch.randn(300, 16), torch.randint(0, 300, (2, 1500))
        labels = (nodes[:, 0] > 0).long()
        if fault in self.faults:
            nodes[17, 3] = torch.nan
        convolution = part("torch_geometric.nn", "GCNConv")
        network = nn.ModuleList([convolution(16, 32), convolution(32, 2)])
        optimizer = torch.optim.Adam(network.parameters(), lr=rate)

        def step(layers: Any, batch: Any) -> Any:
            return nn.functional.cross_entropy(layers[1](layers[0](batch[0], edges).relu(), edges), batch[1])

        if self.is_monitored:
            self.monitor = GradientWatch(network, optimizer, step=step, report=False)
        for _ in range(60):
            optimizer.zero_grad()
            if self.monitor is not None:
                self.monitor.batch((nodes, labels))
            loss = step(network, (nodes, labels))
            if self.monitor is not None:
                self.monitor.loss(loss)
            loss.backward()
            optimizer.step()
        if self.monitor is not None:
            self.monitor.close()
        self.module = network


class VariationalProcess(Training):
    """A variational Gaussian process of GPyTorch, with natural gradients and Adam."""

    package = "gpytorch"
    faults: ClassVar = {"a point with NaN": ("nonfinite-input",)}
    rates = (0.1, 5.0)

    def train(self, fault: str, rate: float) -> None:
        """Train on a sine; the rate is that of the natural gradients."""
        points = torch.rand(400, 2)
        values = torch.sin(6 * points[:, 0]) + 0.1 * torch.randn(400)
        if fault in self.faults:
            points[200, 1] = torch.nan
        variational = part("gpytorch", "variational")

        class Process(part("gpytorch.models", "ApproximateGP")):  # type: ignore[misc]
            def __init__(self, inducing: Any) -> None:
                distribution = variational.NaturalVariationalDistribution(len(inducing))
                super().__init__(variational.VariationalStrategy(self, inducing, distribution))
                self.mean_module = part("gpytorch.means", "ConstantMean")()
                kernels = part("gpytorch", "kernels")
                self.covar_module = kernels.ScaleKernel(kernels.RBFKernel())

            def forward(self, at: Any) -> Any:
                normal = part("gpytorch.distributions", "MultivariateNormal")
                return normal(self.mean_module(at), self.covar_module(at))

        process, likelihood = Process(torch.rand(20, 2)), part("gpytorch.likelihoods", "GaussianLikelihood")()
        self.module = nn.ModuleList([process, likelihood])
        parameters = [*process.hyperparameters(), *likelihood.parameters()]
        natural = part("gpytorch.optim", "NGD")(process.variational_parameters(), num_data=400, lr=rate)
        optimizers = [natural, torch.optim.Adam(parameters, lr=0.01)]
        bound = part("gpytorch.mlls", "VariationalELBO")

        def step(both: Any, batch: Any) -> Any:
            return -bound(both[1], both[0], num_data=400)(both[0](batch[0]), batch[1])

        if self.is_monitored:
            self.monitor = GradientWatch(self.module, optimizers, step=step, report=False)
        data = torch.utils.data.TensorDataset(points, values)
        loader: Any = torch.utils.data.DataLoader(data, batch_size=40)
        for batch in [batch for _ in range(6) for batch in loader]:
            for one in optimizers:
                one.zero_grad()
            if self.monitor is not None:
                self.monitor.batch(batch)
            loss = step(self.module, batch)
            if self.monitor is not None:
                self.monitor.loss(loss)
            loss.backward()
            for one in optimizers:
                one.step()
        if self.monitor is not None:
            self.monitor.close()


class Adjoint(Training):
    """A differential equation of torchdiffeq, whose backward pass runs further ones."""

    package = "torchdiffeq"
    faults: ClassVar = {"a start with NaN": ("nonfinite-input",)}
    rates = (1e-2, 30.0)

    def train(self, fault: str, rate: float) -> None:
        """Train on spirals."""
        field = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
        times, starts = torch.linspace(0, 3, 10), torch.randn(64, 2)
        spiral = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
        paths = torch.stack([starts @ torch.matrix_exp(spiral * time).T for time in times])
        if fault in self.faults:
            starts[40, 1] = torch.nan

        class Derivative(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.field = field

            def forward(self, time: Any, state: Any) -> Any:
                return self.field(state)

        def step(derivative: Any, batch: Any) -> Any:
            path = part("torchdiffeq", "odeint_adjoint")(derivative, batch[0], times, method="rk4")
            return (path - batch[1]).abs().mean()

        network = self.module = Derivative()
        optimizer = torch.optim.RMSprop(network.parameters(), lr=rate)
        if self.is_monitored:
            self.monitor = GradientWatch(network, optimizer, step=step, report=False)
        for index in range(60):
            rows = slice(index % 4 * 16, index % 4 * 16 + 16)
            batch = (starts[rows], paths[:, rows])
            optimizer.zero_grad()
            if self.monitor is not None:
                self.monitor.batch(batch)
            loss = step(network, batch)
            if self.monitor is not None:
                self.monitor.loss(loss)
            loss.backward()
            optimizer.step()
        if self.monitor is not None:
            self.monitor.close()
