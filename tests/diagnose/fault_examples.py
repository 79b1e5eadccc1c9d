"""Evidence of runs in which a step has failed, by what was wrong with it, with the kind of its cause."""

from __future__ import annotations

from dataclasses import replace

from lightning_gradexplode.records import Evidence, Experiments, LossTerm, OptimizerFacts, Replay
from tests.diagnose.evidence import (
    batch,
    diverged,
    failed,
    field,
    history,
    labels,
    operand,
    operation,
    parameter,
    reproduced,
    run,
)
from tests.diagnose.growth_examples import FALLING

WHERE = "y = torch.where(x > 0, x, torch.exp(x))"
HALF = run(precision="16-true", parameters=(parameter("body.weight", (32, 8), dtype="float16"),))

FAULTS: dict[str, tuple[str, Evidence]] = {
    "a row of NaN": (
        "nonfinite-input",
        failed(
            25, batch=batch(field(nan_count=3, nonfinite_rows=(5,)), labels(), sample_indices=tuple(range(300, 316)))
        ),
    ),
    "a row of NaN, with the operation that met it": (
        "nonfinite-input",
        failed(
            25,
            batch=batch(field(nan_count=3, nonfinite_rows=(5,)), labels()),
            replay=Replay("reproduced"),
            experiments=Experiments(rows_removed=(5,), finite_without_rows=True),
        ),
    ),
    "a NaN target": (
        "nonfinite-target",
        failed(9, batch=batch(field(), field("[1]", nan_count=1, nonfinite_rows=(2,)))),
    ),
    "percent for a probability": (
        "target-out-of-range",
        diverged(
            history=(history(FALLING),),
            batch=batch(field("image"), field("cover", least=0.0, greatest=97.0)),
            replay=Replay(
                "finite",
                losses=(
                    LossTerm(
                        "binary_cross_entropy_with_logits",
                        (operand(), operand(least=0.0, greatest=97.0)),
                    ),
                ),
            ),
        ),
    ),
    "a CTC target that is too long": (
        "target-out-of-range",
        failed(4, replay=reproduced(operation("_ctc_loss", "inf", rows=(3,)))),
    ),
    "the logarithm of a negative target": (
        "target-out-of-range",
        failed(
            4,
            batch=batch(field(), field("[1]", least=-2.0, greatest=5.0)),
            replay=reproduced(operation("log", inputs=[operand(-2.0, least=-2.0, greatest=5.0)], rows=(3,))),
        ),
    ),
    "all labels ignored": (
        "empty-reduction",
        failed(
            4,
            update_is_harmless=True,
            batch=batch(field(), labels(least=-100.0, greatest=-100.0, most_common=-100.0, most_common_share=1.0)),
        ),
    ),
    "a sum divided by the number of labels, all of which are ignored": (
        "empty-reduction",
        failed(
            4,
            update_is_harmless=True,
            batch=batch(field(), labels(least=-100.0, greatest=-100.0, most_common=-100.0, most_common_share=1.0)),
            replay=reproduced(operation("div", inputs=[operand(None, 0.0, 0.0, shape=())])),
        ),
    ),
    "the loss over no label": ("empty-reduction", failed(4, replay=reproduced(operation("nll_loss_forward")))),
    "the deviation of one element": (
        "empty-reduction",
        failed(
            4,
            batch=batch(field(shape=(1, 8)), size=1, is_last=True),
            replay=reproduced(operation("std", inputs=[operand(0.3, shape=(1,))])),
        ),
    ),
    "a masked mean over nothing": (
        "empty-reduction",
        failed(
            4,
            replay=reproduced(
                operation(
                    "div", inputs=[operand(0.0, shape=()), operand(0.0, shape=())], code="loss = e.sum() / mask.sum()"
                )
            ),
        ),
    ),
    "the logarithm of zero": (
        "undefined-operation",
        failed(9, replay=reproduced(operation("log", "-inf", inputs=[operand(0.0, least=0.0)]))),
    ),
    "a fully masked row": (
        "undefined-operation",
        failed(9, replay=reproduced(operation("_softmax", inputs=[operand(None, inf_count=8)]))),
    ),
    "the slope of a root at zero": (
        "undefined-operation",
        failed(
            9, "nonfinite-gradient", replay=reproduced(operation("div", "inf", "backward", code="d = torch.sqrt(s)"))
        ),
    ),
    "a branch hidden by where": (
        "undefined-operation",
        failed(
            9,
            "nonfinite-gradient",
            replay=reproduced(
                operation("mul", "nan", "backward"), hidden=operation("exp", "inf", inputs=[operand(97.9)], code=WHERE)
            ),
        ),
    ),
    "exp of 187": (
        "forward-overflow",
        failed(9, replay=reproduced(operation("exp", "inf", inputs=[operand(187.0, greatest=187.0)]))),
    ),
    "Adam's epsilon in half precision": (
        "half-precision",
        failed(
            3,
            "nonfinite-weight",
            run=replace(HALF, optimizers=(OptimizerFacts("Adam", ({"lr": 1e-3, "eps": 1e-8},)),)),
        ),
    ),
    "an overflow that float32 does not have": (
        "half-precision",
        failed(
            9,
            run=HALF,
            replay=reproduced(operation("pow", "inf", inputs=[operand(400.0, greatest=400.0, dtype="float16")])),
            experiments=Experiments(finite_in_float32=True, float32_loss=0.7),
        ),
    ),
    "a static scale": ("half-precision", failed(9, "nonfinite-gradient", run=HALF)),
    "a division by zero of a target": (
        "undefined-operation",
        failed(
            4,
            batch=batch(field(), field("[1]", least=-2.0, greatest=5.0)),
            replay=reproduced(
                operation("div", inputs=[operand(0.0, least=-2.0, greatest=5.0), operand(0.0, least=0.0, greatest=2.0)])
            ),
        ),
    ),
}
"""Kind of cause and evidence."""
