"""The code of remedies in each kind of training loop: Lightning, Fabric, Transformers or plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_gradexplode.records import RunFacts


@dataclass(frozen=True, slots=True)
class LoopCode:
    """How the settings that remedies change are written in one kind of training loop.

    Args:
        monitor_call: The call that creates the monitor, up to its arguments.
        backward_call: The backward pass, with ``{loss}`` in it.
        full_precision: How to compute in float32, or to keep the weights in it.
        bfloat16: Mixed precision with bfloat16.
        float16: Mixed precision with float16 and a gradient scaler that adapts.
        load_state: How the state of the optimizer is loaded with the weights.
        warm_up: How the learning rate is raised over the first steps.
    """

    monitor_call: str
    backward_call: str
    full_precision: str
    bfloat16: str
    float16: str
    load_state: str
    warm_up: str = "torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=200)"

    def monitor(self, argument: str) -> str:
        """Return the monitor with an argument, such as ``clip=1.0``."""
        return f"`{self.monitor_call}{argument})`"

    def backward(self, loss: str) -> str:
        """Return the backward pass of an expression."""
        return f"`{self.backward_call.format(loss=loss)}`"


_LIGHTNING = LoopCode(
    monitor_call="GradientExplosionMonitor(",
    backward_call="self.manual_backward({loss})",
    full_precision='`Trainer(precision="32-true")`, or keep float32 weights with `precision="bf16-mixed"`',
    bfloat16='`Trainer(precision="bf16-mixed")`',
    float16='`Trainer(precision="16-mixed")`',
    load_state='`trainer.fit(model, ckpt_path="last.ckpt")`',
)
_PLAIN = LoopCode(
    monitor_call="GradientWatch(model, optimizer, ",
    backward_call="({loss}).backward()",
    full_precision="`model.float()`, without autocast, or keep float32 weights with "
    '`torch.autocast("cuda", torch.bfloat16)`',
    bfloat16='`torch.autocast("cuda", torch.bfloat16)`',
    float16='`torch.autocast("cuda", torch.float16)` with `torch.amp.GradScaler()`',
    load_state='`optimizer.load_state_dict(checkpoint["optimizer"])`',
)
_BY_MONITOR: Mapping[str, LoopCode] = {
    "GradientExplosionMonitor": _LIGHTNING,
    "FabricWatch": LoopCode(
        monitor_call="FabricWatch(fabric, model, optimizer, ",
        backward_call="fabric.backward({loss})",
        full_precision='`Fabric(precision="32-true")`, or keep float32 weights with `precision="bf16-mixed"`',
        bfloat16='`Fabric(precision="bf16-mixed")`',
        float16='`Fabric(precision="16-mixed")`',
        load_state='`fabric.load("last.ckpt", {"model": model, "optimizer": optimizer})`',
    ),
    "GradientExplosionTrainerCallback": LoopCode(
        monitor_call="GradientExplosionTrainerCallback(",
        backward_call="({loss}).backward()",
        full_precision="`TrainingArguments(fp16=False)`, or keep float32 weights with `bf16=True`",
        bfloat16="`TrainingArguments(bf16=True)`",
        float16="`TrainingArguments(fp16=True)`",
        load_state="`trainer.train(resume_from_checkpoint=True)`",
        warm_up="TrainingArguments(warmup_steps=200)",
    ),
}


def code_of(run: RunFacts) -> LoopCode:
    """Return the code of the user's own training loop.

    Args:
        run: The run; its ``monitor`` determines the loop. A name that is not known, such as that of a user's own
            subclass, counts as ``GradientWatch``.
    """
    return _BY_MONITOR.get(run.monitor, _PLAIN)
