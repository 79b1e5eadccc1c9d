"""Remedies in the code of the training loop that the user has: Lightning, Fabric, Transformers or plain PyTorch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from lightning_gradexplode.records import Cause, Diagnosis, RunFacts

_FULL, _BRAIN = r'Trainer\(precision="32-true"\)', r'Trainer\(precision="bf16-mixed"\)'
_HALF = r'Trainer\(precision="16-mixed"\)'
_MONITOR, _CHECKPOINT = r"GradientExplosionMonitor\(", r'trainer\.fit\(model, ckpt_path="last\.ckpt"\)'
_BACKWARD = r"self\.manual_backward\(([^`]*)\)`"

_PLAIN: Mapping[str, str] = {
    _MONITOR: "GradientWatch(model, optimizer, ",
    _FULL + "`, or keep float32 weights with `[^`]*`": "model.float()`, without autocast, or keep float32 weights with "
    '`torch.autocast("cuda", torch.bfloat16)`',
    _FULL: "model.float()",
    _BRAIN: 'torch.autocast("cuda", torch.bfloat16)',
    _HALF + "` does so by itself": "torch.amp.GradScaler()` does so",
    _HALF: 'torch.autocast("cuda", torch.float16)',
    _CHECKPOINT: 'optimizer.load_state_dict(checkpoint["optimizer"])',
    _BACKWARD: r"(\1).backward()`",
}
_FABRIC: Mapping[str, str] = {
    _MONITOR: "FabricWatch(fabric, model, optimizer, ",
    r"Trainer\(precision=": "Fabric(precision=",
    _CHECKPOINT: 'fabric.load("last.ckpt", {"model": model, "optimizer": optimizer})',
    _BACKWARD: r"fabric.backward(\1)`",
}
_TRANSFORMERS: Mapping[str, str] = {
    _MONITOR: "GradientExplosionTrainerCallback(",
    _FULL + "`, or keep float32 weights with `[^`]*`": "TrainingArguments(fp16=False)`, or with `bf16=True`",
    _FULL: "TrainingArguments(fp16=False)",
    _BRAIN: "TrainingArguments(bf16=True)",
    _HALF: "TrainingArguments(fp16=True)",
    _CHECKPOINT: "trainer.train(resume_from_checkpoint=True)",
    r"torch\.optim\.lr_scheduler\.LinearLR\([^`]*\)": "TrainingArguments(warmup_steps=200)",
    _BACKWARD: r"(\1).backward()`",
}
_BY_MONITOR: Mapping[str, Mapping[str, str]] = {
    "GradientExplosionMonitor": {},
    "FabricWatch": _FABRIC,
    "GradientExplosionTrainerCallback": _TRANSFORMERS,
}


def in_code_of(run: RunFacts, diagnosis: Diagnosis) -> Diagnosis:
    """Return a diagnosis whose remedies name the classes and calls of the user's own training loop.

    Args:
        run: The run; its ``monitor`` says which loop it is. A name that is not known, such as that of a user's own
            subclass, counts as ``GradientWatch``.
        diagnosis: The diagnosis, with remedies in Lightning's code.
    """
    changes = _BY_MONITOR.get(run.monitor, _PLAIN)
    if not changes:
        return diagnosis

    def written(remedies: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_replaced(one, changes) for one in remedies)

    def cause(one: Cause) -> Cause:
        return replace(one, remedies=written(one.remedies))

    return replace(diagnosis, causes=tuple(map(cause, diagnosis.causes)), remedies=written(diagnosis.remedies))


def _replaced(remedy: str, changes: Mapping[str, str]) -> str:
    for pattern, code in changes.items():
        remedy = re.sub(pattern, code, remedy)
    return remedy
