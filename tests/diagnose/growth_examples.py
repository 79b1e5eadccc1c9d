"""Evidence of runs that have grown, by what made them, with the kind of its cause; and of runs without a cause."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradexplode.records import (
    Activation,
    Evidence,
    Experiments,
    ModuleFacts,
    OptimizerFacts,
    Replay,
    Severity,
)
from tests.diagnose.evidence import (
    NAN,
    batch,
    calm,
    diverged,
    failed,
    field,
    finding,
    growing,
    history,
    labels,
    parameter,
    run,
)

OVERSHOOT = Experiments(line_search=((0.0, 2.0), (0.01, 1.9), (0.1, 1.5), (0.3, 4.0), (1.0, 90.0)))
NO_OVERSHOOT = Experiments(line_search=((0.0, 2.0), (0.01, 1.99), (0.1, 1.9), (0.3, 1.7), (1.0, 1.1)))
FALLING = {**growing(), "loss": [0.2, *(-(2.0**step) for step in range(1, 12))]}
LOOPED = Activation("body", "Linear", 1e3, 1e5, calls=60, first_rms=0.1)
DEEP = tuple(parameter(f"layers.{place}.weight", (24, 24), gain=1.2) for place in range(20))
GAIN = replace(
    finding("backward-gain", 0, Severity.WARNING, value=5e5),
    message="from the last of 20 modules to the first the gradient grows 500000 times",
)
RNN = run(
    modules=(ModuleFacts("rnn", "RNN", "recurrent"), ModuleFacts("head", "Linear", "linear")),
    parameters=(
        parameter("rnn.weight_hh_l0", (48, 48), module_kind="RNN", spectral_radius=1.1),
        parameter("head.weight", (1, 48)),
    ),
    sequence_length=90,
)

GROWTH: dict[str, tuple[str, Evidence]] = {
    "prices": (
        "unscaled-data",
        diverged(
            batch=batch(
                field(), field("[1]", least=1e5, greatest=6e5, mean=3e5, std=1e5, usual_least=1e5, usual_greatest=6e5)
            ),
            experiments=OVERSHOOT,
        ),
    ),
    "a glitch of a sensor": (
        "outlier-batch",
        diverged(
            findings=(finding("gradient-spike", 20, Severity.WARNING), finding("diverging-loss", 21)),
            history=(
                history(
                    {
                        "loss": [*calm(20)["loss"], 3e6, 1e9],
                        "grad_norm": [*calm(20)["grad_norm"], 4e5, 1e9],
                        "weight_norm": [*calm(20)["weight_norm"], 2e4, 1e9],
                    }
                ),
            ),
            batch=batch(field(least=-9e4, greatest=1e5, outlier_rows=(5,))),
        ),
    ),
    "a rate that overshoots": ("learning-rate", diverged(experiments=OVERSHOOT)),
    "growth from the first step on, of data on a proper scale": (
        "learning-rate",
        diverged(batch=batch(field(), labels())),
    ),
    "growth from the first step on, and nothing else": ("unknown", diverged()),
    "a restart of the schedule": (
        "learning-rate-jump",
        Evidence(
            52,
            56,
            (finding("gradient-spike", 52, Severity.WARNING), finding("diverging-loss", 53)),
            run(schedulers=("LambdaLR",)),
            (
                history(
                    {
                        "loss": [*calm(51)["loss"], 9.0, 90.0, 9e2, 9e3, 9e4],
                        "grad_norm": [*calm(51)["grad_norm"], 9.0, 90.0, 9e2, 9e3, 9e4],
                        "learning_rate": [0.01] * 50 + [0.36] * 6,
                    }
                ),
            ),
            experiments=OVERSHOOT,
        ),
    ),
    "a resumed run without the state of Adam": (
        "optimizer-state",
        Evidence(
            1000,
            1006,
            (finding("diverging-loss", 1003),),
            run(first_step=1000, is_resumed=True, optimizers=(OptimizerFacts("Adam", ({"lr": 1e-3},)),)),
            (history({name: one[:7] for name, one in growing(rate=1e-3).items()}, first_step=1000),),
        ),
    ),
    "an epsilon of zero": (
        "optimizer-state",
        failed(3, "nonfinite-weight", run=run(optimizers=(OptimizerFacts("Adam", ({"lr": 0.02, "eps": 0.0},)),))),
    ),
    "gradients that are never cleared": (
        "accumulated-gradients",
        diverged(
            history=(history({**growing(), "backward_passes": [float(step) for step in range(1, 13)]}),),
            experiments=OVERSHOOT,
        ),
    ),
    "weights of unit scale": (
        "initialization",
        diverged(
            run=run(
                parameters=(parameter("body.weight", (256, 256), gain=16.0), parameter("head.weight", (1, 256), 16.0))
            ),
            experiments=OVERSHOOT,
        ),
    ),
    "twenty plain layers": (
        "depth",
        Evidence(
            0,
            1,
            (GAIN, finding("nonfinite-loss", 1)),
            run(
                parameters=DEEP,
                modules=tuple(ModuleFacts(f"layers.{place}", "Linear", "linear") for place in range(20)),
            ),
            (history({"loss": [5e4, NAN], "grad_norm": [3e5, NAN]}),),
        ),
    ),
    "a recurrent matrix above one": ("recurrence", diverged(run=RNN, experiments=OVERSHOOT)),
    "a loop of the user's own": (
        "recurrence",
        diverged(replay=Replay("finite", activations=(LOOPED,))),
    ),
    "a square matrix of the user's own over a long sequence": (
        "recurrence",
        diverged(
            run=run(
                modules=(ModuleFacts("", "Cell", "other"),),
                parameters=(
                    parameter("transition", (32, 32), gain=1.5, module_kind="Cell"),
                    parameter("drive", (32, 2), module_kind="Cell"),
                ),
            ),
            batch=batch(field(shape=(16, 50, 2)), field("[1]", shape=(16, 1))),
            history=(history({**growing(), "grad_norm": [1e5 * 3.0**step for step in range(12)]}),),
        ),
    ),
    "a rate that rises step by step": (
        "learning-rate-jump",
        diverged(
            findings=(finding("diverging-loss", 30),),
            history=(
                history(
                    {
                        **growing(34),
                        "loss": [*(2.0 - 0.06 * step for step in range(25)), *(2.0 * 4.0**step for step in range(9))],
                        "weight_norm": [8.0 + 0.5 * step for step in range(34)],
                        "update_ratio": [0.01 * 1.1**step for step in range(34)],
                        "learning_rate": [0.01 * 1.2**step for step in range(34)],
                    }
                ),
            ),
            experiments=NO_OVERSHOOT,
            step=30,
            now=33,
        ),
    ),
    "a critic without a bound": (
        "loss-without-floor",
        diverged(
            history=(history(FALLING),),
            run=run(modules=(ModuleFacts("critic", "Sequential"), ModuleFacts("critic.0", "Linear", "linear"))),
        ),
    ),
    "a maximizing optimizer": (
        "loss-without-floor",
        diverged(run=run(optimizers=(OptimizerFacts("SGD", ({"lr": 0.1, "maximize": True},)),)), experiments=OVERSHOOT),
    ),
    "bootstrapped values": (
        "moving-target",
        diverged(
            batch=batch(field("state"), field("next_state"), field("reward", shape=(16,))),
            run=run(
                parameters=(
                    parameter("value.0.weight", (8, 4)),
                    parameter("value.1.weight", (1, 8)),
                    parameter("target_value.0.weight", (8, 4), optimizer=None),
                    parameter("target_value.1.weight", (1, 8), optimizer=None),
                )
            ),
            experiments=NO_OVERSHOOT,
        ),
    ),
    "nothing but a NaN": ("unknown", failed(9)),
    "nothing at all": ("unknown", Evidence(0, 0)),
}
"""Kind of cause and evidence."""
