"""Contents of reports made by hand, of explosions of different kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from lightning_gradexplode.measure.histograms import measure_histogram
from lightning_gradexplode.records import (
    Attempt,
    BatchFacts,
    Cause,
    Diagnosis,
    Evidence,
    FieldFacts,
    Finding,
    History,
    ModuleFacts,
    ModuleGradients,
    Operand,
    Operation,
    OptimizerFacts,
    ParameterFacts,
    Replay,
    ReportContent,
    RunFacts,
    Severity,
)

WRITTEN = "2026-11-25T20:15:03+00:00"


def names_of(count: int) -> tuple[str, ...]:
    """Return names of parameters, weight and bias of each module in turn."""
    return tuple(
        f"blocks.{index // 8}.layer_{index % 8 // 2}.{('weight', 'bias')[index % 2]}" for index in range(count)
    )


def history_of(
    parameters: Sequence[str], steps: int, since: int, growth: float, marked: int, seed: int = 0, **values: float
) -> History:
    """Return steps whose gradients grow from a step on, first in one parameter and then in its neighbours."""
    random = np.random.default_rng(seed)
    step = np.arange(steps)
    norms = np.exp(random.normal(0, 0.3, (steps, len(parameters)))) * np.linspace(0.01, 0.1, len(parameters))
    distance = np.abs(np.arange(len(parameters)) - marked)
    delay = np.minimum(distance // max(len(parameters) // 20, 1) + distance.clip(0, 1), 8)
    late = (step[:, None] - since - delay[None]).clip(0)
    with np.errstate(over="ignore"):
        norms = norms * growth ** late.astype(np.float64)
    total = np.sqrt(np.square(norms).sum(axis=1))
    loss = 1.0 + random.normal(0, 0.05, steps) + np.where(step > since, 0.01 * growth ** (step - since).clip(0), 0)
    rows = {
        "loss": loss,
        "grad_norm": total,
        "learning_rate": np.full(steps, 0.05),
        "epoch": step // 50.0,
        "batch_idx": step % 50.0,
        "update_ratio": np.where(step % 5 == 0, 2e-3 * total / total[0], np.nan),
        "severity": np.where(step >= since, 2.0, 0.0),
    }
    rows |= {name: np.full(steps, value) for name, value in values.items()}
    return History(step, rows, tuple(parameters), norms.astype(np.float32))


def facts_of(parameters: Sequence[str], kind: str = "SGD", **settings: object) -> RunFacts:
    """Return the facts of a run with one optimizer."""
    modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name in parameters))
    return RunFacts(
        modules=tuple(ModuleFacts(name, "Linear", "linear") for name in modules),
        order_is_executed=True,
        parameters=tuple(ParameterFacts(name, (8, 8), module=name.rpartition(".")[0]) for name in parameters),
        optimizers=(OptimizerFacts(kind, ({"lr": 0.05, "momentum": 0.9},)),),
        batch_size=32,
        batches_per_epoch=50,
        versions={"torch": "2.13.0", "lightning_gradexplode": "0.2.0"},
        **settings,  # type: ignore[arg-type]
    )


def finding(step: int, sign: str, severity: Severity, where: str | None = None, value: float = 2.0) -> Finding:
    """Return a finding."""
    return Finding(step, sign, severity, where, value, 1.0, f"{sign.replace('-', ' ')}: {value:.4g}")


def growing(count: int = 75, since: int = 95) -> ReportContent:
    """Return an explosion that grows over the last steps, in a network of some parameters.

    Args:
        count: Number of parameters.
        since: The step of the first sign.
    """
    names = names_of(count)
    marked = 2 * count // 3
    where = names[marked]
    history = history_of(names, since + 25, since, 4.0, marked, clip_val=1.0)
    history.values["grad_norm_clipped"] = np.minimum(history.values["grad_norm"], 1.0)  # type: ignore[index]
    findings = (
        finding(3, "unstable-loss", Severity.WARNING),
        finding(since, "gradient-spike", Severity.WARNING, where),
        finding(since + 8, "diverging-loss", Severity.CRITICAL, where, 147.3),
        finding(since + 9, "large-update", Severity.WARNING, where),
    )
    diagnosis = Diagnosis(
        since + 8,
        f"The loss rose from 1.02 to 147.3 within 8 steps, and the gradient of {where} grew fourfold at each step.",
        where,
        since,
        (
            Cause(
                "learning-rate",
                where,
                ("A tenth of the step's update lowers the loss from 147 to 96; the whole update raises it to 610.",),
                0.82,
                ("Lower the learning rate to 0.005: `optim.SGD(params, lr=0.005)`.",),
            ),
            Cause("depth", None, ("The gradient grows by 1.3 from layer to layer.",), 0.14, ()),
        ),
        (
            "Lower the learning rate to 0.005: `optim.SGD(params, lr=0.005)`.",
            'Clip the gradients:\n```python\nGradientExplosionMonitor(clip="auto")\n```',
        ),
    )
    attempts = (
        Attempt(since + 8, "skip", "update held back because of diverging-loss"),
        Attempt(since + 9, "skip", "update held back because of large-update"),
        Attempt(since + 12, "rollback", "back to the state of step 90, learning rate times 0.5", helped=True),
    )
    modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))
    gains = np.random.default_rng(2).lognormal(0.2, 0.2, len(modules))
    gains[len(modules) * 2 // 3] = 6.0
    blank = np.full(len(modules), np.nan)
    evidence = Evidence(
        since + 8, 119, findings[1:], facts_of(names), (history,), attempts=attempts, batch=BatchFacts(size=32)
    )
    random = torch.Generator().manual_seed(0)
    calm = measure_histogram(torch.randn(4000, generator=random) * 1e-3)
    wild = measure_histogram(torch.randn(4000, generator=random).exp() * 1e3)
    return ReportContent(
        "sunspots/version_3",
        "run-id-1",
        WRITTEN,
        evidence,
        diagnosis,
        findings,
        ((90, calm), (since + 8, wild)),
        where,
        ModuleGradients(modules, np.ones(len(modules)), blank, blank, gains, blank, blank, blank),
    )


def at_once(count: int = 5) -> ReportContent:
    """Return an explosion of one step: NaN in the batch."""
    names = names_of(count)
    history = history_of(names, 40, 99, 1.0, 0)
    history.values["loss"][-1] = math.nan
    history.values["grad_norm"][-1] = math.nan
    history.values["severity"][-1] = 3
    history.parameter_grad_norm[-1] = np.nan
    findings = (finding(39, "nonfinite-loss", Severity.CRITICAL, None, math.nan),)
    operation = Operation(
        "log",
        "forward",
        "nan",
        module="head.activation",
        module_kind="Sequential",
        file="train.py",
        line=57,
        code="loss = -(weights * torch.log(ratio)).mean()",
        function="training_step",
        inputs=(Operand((32, 8), "float32", -0.25, 3.5),),
        rows=(3, 17),
        element_count=2,
    )
    diagnosis = Diagnosis(
        39,
        "The loss was NaN at step 39, and nothing had grown before.",
        "batch field image",
        None,
        (
            Cause(
                "nonfinite-input",
                "image",
                ("The field image holds 12 NaN, in rows 3 and 17 of 32; no batch before held any.",),
                0.97,
                ('Drop or repair samples 1203 and 1217: `assert torch.isfinite(batch["image"]).all()`.',),
            ),
        ),
        ("Drop or repair the samples 1203 and 1217 of the dataset.",),
    )
    batch = BatchFacts((FieldFacts("image", (32, 8), "float32", 12, 0, (3, 17)),), 39, 0, 32)
    evidence = Evidence(
        39,
        39,
        findings,
        facts_of(names, "AdamW", on_explosion=("SkipStep",)),
        (history,),
        batch=batch,
        replay=Replay("reproduced", first=operation, operations=214),
    )
    return ReportContent("digits", "run-id-2", WRITTEN, evidence, diagnosis, findings)


def negative_loss() -> ReportContent:
    """Return a run of two optimizers whose losses fall without a bound."""
    first, second = names_of(8), tuple(f"critic.{name}" for name in names_of(6))
    histories = []
    for index, names in enumerate((first, second)):
        history = history_of(names, 200, 120, 1.12, 2, seed=index)
        history.values["loss"][:] = 1.0 - 0.02 * np.arange(200.0) - 1.06 ** np.arange(200.0)
        history.values["learning_rate"][:] = 1e-3 * np.minimum(np.arange(200) / 50, 1)
        histories.append(history)
    findings = (
        finding(130, "weight-growth", Severity.WARNING, "critic.blocks.0.layer_1.weight"),
        finding(165, "gradient-growth", Severity.CRITICAL, "critic.blocks.0.layer_1.weight", 310.0),
    )
    diagnosis = Diagnosis(
        165,
        "The loss falls without a bound, to -114700, while the critic's weights grow.",
        "critic.blocks.0.layer_1.weight",
        130,
        (Cause("loss-without-floor", "critic", ("The loss fell at 199 of 200 steps.",), 0.7),),
        ("Bound the critic: clip its weights, or add a gradient penalty.",),
    )
    facts = facts_of(first)
    evidence = Evidence(165, 199, findings, facts, tuple(histories))
    return ReportContent("gan", "run-id-3", WRITTEN, evidence, diagnosis, findings)


def half_precision() -> ReportContent:
    """Return a run whose gradient scaler never recovers."""
    names = names_of(24)
    history = history_of(names, 90, 60, 1.6, 4)
    scale = np.full(90, 65536.0)
    scale[60:] = 65536.0 / 2.0 ** np.arange(30)
    history.values["loss_scale"] = scale  # type: ignore[index]
    history.values["grad_norm"][64:80:2] = np.inf
    history.parameter_grad_norm[64:80:2, :6] = np.inf
    findings = (finding(64, "nonfinite-gradient", Severity.CRITICAL, "blocks.0.layer_2.weight", math.inf),)
    diagnosis = Diagnosis(
        64,
        "Gradients overflow in float16 at every second step, and the scale has fallen from 65536 to 0.0001.",
        "blocks.0.layer_2.weight",
        60,
        (
            Cause("half-precision", "blocks.0.layer_2", ("12 overflows in 30 steps.",), 0.6),
            Cause("unknown", None, (), 0.1),
        ),
        ('Train in bfloat16: `Trainer(precision="bf16-mixed")`.',),
    )
    facts = facts_of(names, precision="16-mixed", scaler="adaptive", on_explosion=("SkipStep", "Rollback"))
    return ReportContent(
        "translation", "run-id-4", WRITTEN, Evidence(64, 89, findings, facts, (history,)), diagnosis, findings
    )


def healthy() -> ReportContent:
    """Return a run without an incident."""
    names = names_of(5)
    history = history_of(names, 100, 1000, 1.0, 0)
    return ReportContent("calm", "run-id-5", WRITTEN, Evidence(99, 99, (), facts_of(names), (history,)))
