"""Training runs, one after the other, in each of several processes, which write what they have seen into files.

Run as ``python worker.py JOBS``: a JSON list of objects with strategy, devices, out (a folder), and what `main` reads.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_gradexplode import (
    AdaptiveGradientClip,
    AdaptiveTensorClip,
    ClipPolicy,
    Detector,
    Finding,
    GradientExplosionMonitor,
    PercentileClip,
    Response,
    Rollback,
    Severity,
    StepRecord,
    WeightPenalty,
    ZScoreClip,
    default_detectors,
)
from lightning_gradexplode.clip import AutoPolicy
from lightning_gradexplode.detect import NonFiniteGradient, NonFiniteLoss, NonFiniteWeight
from lightning_gradexplode.detect.detector_set import DetectorSet
from lightning_gradexplode.distributed.process_group import ConnectedProcesses
from lightning_gradexplode.engine import components
from lightning_gradexplode.engine.evidence import EvidenceCollector
from lightning_gradexplode.measure import gradients as measure
from lightning_gradexplode.measure import reading

STEPS = 4
MONKEY = pytest.MonkeyPatch()
BATCH = 16


class Net(pl.LightningModule):
    """A small network of odd sizes, so that shards come out uneven, and empty on some processes."""

    def __init__(self, poisoned_rank: int | None = None, poisoned_batch: int = 2, hybrid: bool = False) -> None:
        super().__init__()
        self.hybrid = hybrid
        self.fused = self.is_zero = self.has_bad_row = False
        self.poisoned = (poisoned_rank, poisoned_batch)
        torch.manual_seed(1)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(6, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)
        )

    def configure_model(self) -> None:
        """Shard the layers, where the strategy says over which mesh."""
        mesh = getattr(self, "device_mesh", None)
        if mesh is None:
            return
        from torch.distributed.fsdp import fully_shard

        if self.hybrid:
            mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
        else:
            mesh = mesh["data_parallel"]
        for layer in (self.net[0], self.net[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Compute a mean squared error; NaN on the poisoned process."""
        x, y = batch
        if self.is_zero:  # so that the first layer's weights get a gradient of zero
            x = x * 0.0
        loss = ((self.net(x) - y) ** 2).mean()
        if self.poisoned == (self.global_rank, batch_idx):
            loss = loss * torch.nan
        return torch.as_tensor(loss)

    def train_dataloader(self) -> DataLoader[Any]:
        """Deal the examples out in order, so that a step sees the same ones over any number of processes."""
        torch.manual_seed(0)
        x = torch.randn(STEPS * BATCH, 6)
        world = self.trainer.world_size
        if self.has_bad_row:
            x[37, 4] = torch.nan
        dataset = TensorDataset(x, x.sum(dim=1, keepdim=True) * 2)
        sampler: DistributedSampler[Any] = DistributedSampler(dataset, world, self.global_rank, shuffle=False)
        size = BATCH // world // self.trainer.accumulate_grad_batches
        return DataLoader(dataset, batch_size=size, sampler=sampler)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build SGD with momentum, or AdamW where it is to be fused: fused SGD takes no shards."""
        if self.fused:
            return torch.optim.AdamW(self.parameters(), lr=0.05, fused=True)
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Witness(pl.Callback):
    """Notes, after each step, what the monitor has measured, and writes it into a file at the end."""

    def __init__(self, monitor: GradientExplosionMonitor, counted: list[int], out: str) -> None:
        self.monitor, self.counted, self.out = monitor, counted, out
        self.steps: list[dict[str, Any]] = []
        self.states: list[list[float]] = []
        self.reads: DeviceReads | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Record the step, and the weights and optimizer state of this process."""
        (optimizer,) = trainer.optimizers
        names = ("momentum_buffer", "exp_avg", "exp_avg_sq")
        buffers = [state[name] for state in optimizer.state.values() for name in names if name in state]
        held = [one.to_local() if hasattr(one, "to_local") else one for one in (*pl_module.parameters(), *buffers)]
        self.states.append([number for one in held for number in one.detach().flatten().tolist()])
        record = self.monitor.last
        if record is None or (self.steps and self.steps[-1]["step"] == record.step):
            return
        self.steps.append(
            {
                "step": record.step,
                "loss": record.loss,
                "grad_norm": record.grad_norm,
                "grad_norm_clipped": record.grad_norm_clipped,
                "grad_max": record.grad_max,
                "update_ratio": record.update_ratio,
                "weight_norm": record.weight_norm,
                "nonfinite_count": record.nonfinite_count,
                "each": record.per_parameter["grad_norm"].tolist(),
                "counts": {
                    quantity: {name: one.counts.tolist() for name, one in histograms.items()}
                    for quantity, histograms in record.histograms.items()
                },
            }
        )

    def on_fit_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Write what was noted."""
        diagnosis = self.monitor.diagnosis()
        seen = {
            "steps": self.steps,
            "states": self.states,
            "findings": [finding.as_dict() for finding in self.monitor.findings],
            "diagnosis": None if diagnosis is None else diagnosis.as_dict(),
            "collectives": self.counted,
            "trained_steps": trainer.global_step,
            "broken": self.monitor.failed,
            "reads": None if self.reads is None else self.reads.before_update,
            "transfers": None if self.reads is None else self.reads.of_each,
        }
        (Path(self.out) / f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))


class DeviceReads(pl.Callback):
    """Makes the monitor believe that tensors lie on an accelerator, and counts its reads before each update.

    Attributes:
        before_update: Number of reads from the beginning of each backward pass to the update.
        of_each: Number of reads from each update to the next.
        in_all: Number of all reads.
    """

    def __init__(self) -> None:
        self.before_update: list[int] = []
        self.of_each: list[int] = []
        self.in_all = 0
        to_host = reading.to_host

        def counted(numbers: torch.Tensor) -> Any:
            self.in_all += 1
            return to_host(numbers)

        MONKEY.setattr(reading, "to_host", counted)
        MONKEY.setattr(reading, "is_on_host", lambda tensor: False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Register a hook for the update."""
        trainer.optimizers[0].register_step_post_hook(self._updated)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Begin to count."""
        self._began = self.in_all

    def _updated(self, *args: Any) -> None:
        self.before_update.append(self.in_all - self._began)
        self.of_each.append(self.in_all - sum(self.of_each))


class AlarmAt(Detector):
    """A critical finding at one step."""

    sign = "alarm"
    reads = ("grad_norm",)

    def __init__(self, step: int) -> None:
        self.step = step

    def check(self, record: StepRecord) -> Finding | None:
        """Alarm, or not."""
        return self.finding(record, Severity.CRITICAL, 1.0, 0.0, "on purpose") if record.step == self.step else None


class OnOneRank:
    """Fails, or acts, on one process only: rank 1, from the second call on."""

    batches = 0

    def is_there(self) -> bool:
        """Count the calls, and return whether this is one that differs."""
        self.batches += 1
        return torch.distributed.get_rank() == 1 and self.batches > 1


class FailingDetector(OnOneRank, Detector):
    """Finds something critical at step 2, but has failed on rank 1 before."""

    sign = "own"
    reads = ("grad_norm",)

    def check(self, record: StepRecord) -> Finding | None:
        """Fail on one process."""
        if self.is_there():
            raise RuntimeError("on purpose")
        return self.finding(record, Severity.CRITICAL, 1.0, 0.0, "on purpose") if record.step == 2 else None


class PartialDetector(OnOneRank, Detector):
    """Finds something critical on rank 1, something harmless or nothing on rank 0."""

    sign = "own"
    reads = ("grad_norm",)

    def __init__(self, elsewhere: Severity | None) -> None:
        self.elsewhere = elsewhere

    def check(self, record: StepRecord) -> Finding | None:
        """Find different things."""
        severity = Severity.CRITICAL if self.is_there() else self.elsewhere
        return None if severity is None else self.finding(record, severity, 1.0, 0.0, "on purpose")


class LateDetector(PartialDetector):
    """The same, after the update."""

    reads = ("update_ratio",)


class FailingPolicy(OnOneRank, ClipPolicy):
    """Clips hard, but raises on rank 1."""

    def threshold(self, record: StepRecord) -> float:
        """Fail on one process."""
        if self.is_there():
            raise RuntimeError("on purpose")
        return 0.01


class DifferingPolicy(OnOneRank, ClipPolicy):
    """Clips harder on rank 1."""

    def threshold(self, record: StepRecord) -> float:
        """Return what differs."""
        return 0.001 if self.is_there() else 0.01


class FailingTensorPolicy(OnOneRank, ClipPolicy):
    """Halves all gradients, but raises on rank 1 after the first of them."""

    algorithm = "tensor"

    def threshold(self, record: StepRecord) -> None:
        """Return None."""

    def clip_tensors(self, parameters: Any, norms: Any, scale: float, remember: bool) -> bool:
        """Fail on one process."""
        fails = self.is_there()
        for gradient in parameters.gradients:
            gradient.mul_(0.5)
            if fails:
                raise RuntimeError("on purpose")
        return True


class FailingResponse(OnOneRank, Response):
    """Raises in one of its hooks on rank 1, and skips elsewhere.

    Args:
        hook: The hook.
    """

    def __init__(self, hook: str) -> None:
        self.hook = hook

    def _call(self, hook: str) -> None:
        if hook == self.hook and self.is_there():
            raise RuntimeError("on purpose")

    def started(self, run: Any) -> None:
        """Fail at once."""
        self.batches = 1 if self.hook == "started" else 0
        self._call("started")

    def respond(self, findings: Any, run: Any) -> None:
        """Hold back the update."""
        self.batches = 1
        self._call("respond")
        run.hold_back_update()

    def gradients_ready(self, run: Any, weight: float) -> None:
        """Change the gradients."""
        self._call("gradients_ready")
        for parameter in run.module.parameters():
            parameter.grad += 0.01 * weight

    def scalars(self) -> dict[str, float]:
        """Return nothing."""
        self._call("scalars")
        return {}

    def batch_ended(self, run: Any) -> None:
        """Do nothing."""
        self._call("batch_ended")


DETECTORS: dict[str, Any] = {
    "failing": FailingDetector,
    "partial": lambda: PartialDetector(None),
    "partly critical": lambda: PartialDetector(Severity.WARNING),
    "late": lambda: LateDetector(None),
}
RESPONSES: dict[str, Any] = {
    f"failing {hook}": lambda hook=hook: FailingResponse(hook)
    for hook in ("started", "respond", "gradients_ready", "scalars", "batch_ended")
}
RESPONSES |= {
    "rollback": lambda: Rollback(every_n_steps=1, margin=1),
    "rollback in files": lambda: Rollback(every_n_steps=1, margin=1, folder="gradexplode"),
    "penalty": lambda: WeightPenalty(l1=0.1, l2=0.3, parameters=["*"]),
}
CLIPS: dict[str, Any] = {
    "failing": FailingPolicy,
    "differing": DifferingPolicy,
    "failing tensors": FailingTensorPolicy,
    "percentile": lambda: PercentileClip(30.0),
    "score": lambda: ZScoreClip(0.5, warmup=2),
    "auto at once": lambda: AutoPolicy(start=1),
    "units": lambda: AdaptiveGradientClip(0.02),
    "tensors": lambda: AdaptiveTensorClip(warmup=1, factor=0.5),
}
"""What jobs name, where the monitor has no name for it."""


class Failing(pl.Callback):
    """Breaks the monitor of one process at one batch, or the package's own detectors of what is not finite."""

    def __init__(self, monitor: GradientExplosionMonitor, rank: int, hook: str, batch: int = 1) -> None:
        self.monitor, self.rank, self.hook, self.batch = monitor, rank, hook, batch

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Make the monitor's next measurement fail."""
        if trainer.global_rank == self.rank and batch_idx == self.batch:

            def fail(*args: Any, **kwargs: Any) -> None:
                raise RuntimeError("broken on purpose")

            if self.hook == "take":
                MONKEY.setattr(measure.GradientReading, "take", fail)
            elif self.hook == "check":
                for kind in (NonFiniteLoss, NonFiniteGradient, NonFiniteWeight):
                    MONKEY.setattr(kind, "check", fail)
            else:
                MONKEY.setattr(DetectorSet, self.hook, fail)


def strategy(name: str, devices: int) -> str | Strategy:
    """Build Lightning's strategy from its name in the job."""
    if name.startswith("fsdp2"):
        return ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1)
    return name


def main(job: dict[str, Any]) -> None:
    """Train, and write a file per process."""
    torch.set_num_threads(1)
    devices = job["devices"]
    counted = count_collectives()
    interval = job.get("interval", 1)
    response, clip = job.get("on_explosion", "warn"), job.get("clip")
    if "start" in job:
        fail_at_the_start(job["start"])
    if "no folder" in job:
        refuse_folders(job["no folder"])
    own = [DETECTORS[job["detector"]]()] if "detector" in job else []
    monitor = GradientExplosionMonitor(
        log_every_n_steps=interval,
        histogram_every_n_steps=interval,
        on_explosion=RESPONSES[response]() if response in RESPONSES else response,
        clip=CLIPS[clip]() if clip in CLIPS else clip,
        detectors=[AlarmAt(job["alarm"]), *own] if "alarm" in job else default_detectors(*own),
    )
    witness = Witness(monitor, counted, job["out"])
    callbacks: list[pl.Callback] = [monitor, witness]
    if job.get("device"):
        witness.reads = DeviceReads()
        callbacks.insert(0, witness.reads)
    if job.get("failing"):
        callbacks.insert(0, Failing(monitor, *job["failing"]))
    model = Net(job.get("poisoned_rank"), hybrid="hybrid" in job["strategy"])
    model.fused, model.is_zero = job.get("fused", False), job.get("zero", False)
    model.has_bad_row = job.get("bad row", False)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugins: Any = [MixedPrecision("16-mixed", "cpu", scaler)] if job.get("scaled") else None
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy(job["strategy"], devices),
        max_epochs=1,
        accumulate_grad_batches=job.get("accumulate", 1),
        use_distributed_sampler=False,
        callbacks=callbacks,
        plugins=plugins,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=job["out"],
    )
    trainer.fit(model)


def fail_at_the_start(rank: int) -> None:
    """Make the monitor fail while it is built, on one process."""
    real = EvidenceCollector

    def build(*arguments: Any) -> Any:
        if torch.distributed.get_rank() == rank:
            raise OSError("on purpose")
        return real(*arguments)

    MONKEY.setattr(components, "EvidenceCollector", build)


def refuse_folders(rank: int) -> None:
    """Make one process unable to create a folder named "gradexplode", or a file in it."""
    real, real_write = Path.mkdir, torch.save

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        if torch.distributed.get_rank() == rank and "gradexplode" in path.parts:
            raise PermissionError(13, "on purpose", str(path))
        real(path, *arguments, **options)

    def write(*arguments: Any, **options: Any) -> None:
        if torch.distributed.get_rank() == rank:
            raise OSError(28, "on purpose")
        real_write(*arguments, **options)

    MONKEY.setattr(Path, "mkdir", mkdir)
    MONKEY.setattr(torch, "save", write)


def count_collectives() -> list[int]:
    """Count the monitor's collectives from here on; the length of each message is noted."""
    counted: list[int] = []
    real = ConnectedProcesses.gather_tensor

    def counting(world: ConnectedProcesses, values: torch.Tensor) -> torch.Tensor:
        counted.append(values.numel())
        return real(world, values)

    MONKEY.setattr(ConnectedProcesses, "gather_tensor", counting)
    return counted


if __name__ == "__main__":
    for one in json.loads(sys.argv[1]):
        main(one)
        MONKEY.undo()
