"""The results of a replay of one step on a copy of the module, and of the experiments with the copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

NO_REPLAY = "this training loop cannot compute a step again"
"""The reason of a replay that was not possible since it is not known how the loop computes a step."""

OBSERVED_LATER = "the operation was observed in a later batch, in which it made such a tensor non-finite again"
"""The note of a replay whose operation was found after the step."""

SIMILAR_WEIGHTS = (
    "the weights of the step are lost; it fails alike with others of the scale that they had at the start of the run"
)
"""The note of a replay with such weights."""


@dataclass(frozen=True, slots=True)
class Operand:
    """An input or output tensor of an operation.

    Args:
        shape: Its shape.
        dtype: Name of its type.
        least: Smallest finite element, None if there is none.
        greatest: Largest finite element.
        nan_count: Number of NaN elements.
        inf_count: Number of infinite elements.
        at_fault: The element at the index of the first non-finite element of the result, None if the shapes differ.
        is_constant: Whether it is known to have no gradient, such as a number of elements.
    """

    shape: tuple[int, ...]
    dtype: str
    least: float | None = None
    greatest: float | None = None
    nan_count: int = 0
    inf_count: int = 0
    at_fault: float | None = None
    is_constant: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation that returned a non-finite value for finite inputs.

    Args:
        name: Its name, for example ``"log"`` or ``"_softmax"``.
        phase: Whether it ran in the forward or the backward pass.
        result: ``"nan"``, ``"inf"`` or ``"-inf"``; ``"large"`` for a finite one that others may overflow with.
        module: Name of the innermost module it ran in (empty for the root module), None if that is unknown.
        module_kind: Name of that module's class.
        file: The user's own source file (its name relative to the working directory, or its last part), None if
            unknown. For the backward pass, that of the forward operation whose derivative it is.
        line: Line number in it.
        code: Text of that line.
        expression: The part of that line that called the operation, for example ``"torch.exp(z)"``; None if unknown
            (before Python 3.11).
        function: Name of the function the line is in.
        node: Name of the autograd node in the backward pass, for example ``"SqrtBackward0"``.
        inputs: Its tensor arguments.
        scalars: Its numeric arguments, for example the exponent of ``pow``.
        rows: Rows of the batch at which its result is not finite, at most 32; empty if unknown.
        element_count: Number of elements of the result that are not finite.
        finite_in_float32: Whether the result is finite if computed in float32 from the same arguments; None if not
            measured.
    """

    name: str
    phase: Literal["forward", "backward"]
    result: Literal["nan", "inf", "-inf", "large"]
    module: str | None = None
    module_kind: str | None = None
    file: str | None = None
    line: int | None = None
    code: str | None = None
    expression: str | None = None
    function: str | None = None
    node: str | None = None
    inputs: tuple[Operand, ...] = ()
    scalars: tuple[float, ...] = ()
    rows: tuple[int, ...] = ()
    element_count: int = 0
    finite_in_float32: bool | None = None


@dataclass(frozen=True, slots=True)
class LossTerm:
    """A loss function of the replayed forward pass, whether or not its result is finite.

    Args:
        name: Name of the operation, for example ``"binary_cross_entropy_with_logits"`` or ``"nll_loss_forward"``.
        inputs: Predictions, then targets.
        value: Its result, None if it is not a single number.
        file: The user's own source file, None if unknown.
        line: Line number in it.
        code: Text of that line.
    """

    name: str
    inputs: tuple[Operand, ...] = ()
    value: float | None = None
    file: str | None = None
    line: int | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class OwnFunction:
    """A ``torch.autograd.Function`` of the user's own in the first loss.

    Args:
        name: Name of its class.
        factor: The number that it multiplies the gradient by, of a function whose result is its input; else None.
        is_only_way: Whether nothing that it takes reaches the loss in another way.
    """

    name: str
    factor: float | None = None
    is_only_way: bool = False


@dataclass(frozen=True, slots=True)
class Activation:
    """The output of one module in the replayed forward pass.

    Args:
        module: Name of the module.
        kind: Name of its class.
        rms: Root mean square of its output.
        largest: Largest absolute value of its output.
        saturated: Share of elements in the flat part of a saturating activation (tanh, sigmoid), or of exact zeros of
            a rectified one; None for other modules.
        gradient_norm: L2 norm of the error gradient at its output, None if not measured.
        calls: Number of calls. With more than one, `rms` and `gradient_norm` are those of the last call, `largest` and
            `saturated` those of all calls.
        first_rms: Root mean square of the output of its first call.
        first_gradient_norm: L2 norm of the error gradient at the output of its first call.
    """

    module: str
    kind: str
    rms: float
    largest: float
    saturated: float | None = None
    gradient_norm: float | None = None
    calls: int = 1
    first_rms: float | None = None
    first_gradient_norm: float | None = None


@dataclass(frozen=True, slots=True)
class AppliedWeight:
    """A weight that results of the forward pass are multiplied by.

    Args:
        name: Name of the parameter.
        calls: Number of times that it was applied; from eight on, of those that follow one another.
        first_rms: Root mean square of what it was multiplied with first, None if that is not known.
        rms: The same for the last time that this was finite.
    """

    name: str
    calls: int
    first_rms: float | None = None
    rms: float | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """The result of computing a step again, operation by operation.

    Args:
        status: ``"reproduced"`` if the same quantity failed again; ``"finite"`` if, as in the run, nothing failed;
            ``"not-reproduced"`` if it failed only in the run; ``"not-possible"`` if no copy could be made.
        reason: Why it was not possible, or may be wrong, in one sentence; else empty.
        first: The first operation that returned NaN, or an infinity that is no deliberate fill value, for finite
            inputs.
        hidden: An operation of the forward pass whose infinity was masked there and became NaN in the backward pass
            (0 * inf).
        grown: The first exponential function of the forward pass whose finite result is beyond 1e8.
        source: Origin of the first non-finite value if it is not the result of an operation: ``"batch"``,
            ``"parameter"``, ``"buffer"`` or ``"attribute"``; else None. If `first` is set as well, `first` returned NaN
            because of infinities from this origin.
        source_name: Name of that field, parameter, buffer or attribute.
        source_rows: Rows of that field of the batch with such values, at most 32.
        loss: The loss of the replay, None if it ended before.
        backward_losses: The loss of each backward pass of the step, in order (several in manual optimization).
        grad_norm: L2 norm of all gradients of the replay, of this batch alone; None if it ended before.
        execution_order: Names of the modules in the order of their first execution.
        activations: Outputs in that order.
        losses: Loss functions in the order of execution.
        half_precision: Whether an operation computed in half precision.
        operation_names: Names of the operations of the forward pass, where their lines are not known.
        operations: Number of operations that were checked.
        seconds: Its duration.
        notes: Differences between the copy and the module, in one sentence each.
        step: The step, None if it is not known.
        source_reaches_layers: Whether the non-finite values of a field of the batch reach a layer with weights; None if
            the source is no field of the batch, or no such layer ran.
        half_operations: Operations in float16, one of which has computed the first non-finite value, if it is not known
            which one; else empty.
    """

    status: Literal["reproduced", "finite", "not-reproduced", "not-possible"]
    reason: str = ""
    first: Operation | None = None
    hidden: Operation | None = None
    grown: Operation | None = None
    source: Literal["batch", "parameter", "buffer", "attribute"] | None = None
    source_name: str | None = None
    source_rows: tuple[int, ...] = ()
    loss: float | None = None
    backward_losses: tuple[float, ...] = ()
    grad_norm: float | None = None
    execution_order: tuple[str, ...] = ()
    activations: tuple[Activation, ...] = ()
    losses: tuple[LossTerm, ...] = ()
    half_precision: bool = False
    operation_names: tuple[str, ...] = ()
    operations: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    step: int | None = None
    source_reaches_layers: bool | None = None
    half_operations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StartTrial:
    """The step of a run's first batch with another start of one weight.

    Args:
        parameter: Name of the weight.
        start: What it was replaced by: ``"orthogonal"`` for an orthogonal matrix times 0.9, ``"small"`` for normal
            numbers with a standard deviation of 0.01.
        loss: The loss.
        grad_norm: L2 norm of the gradients.
    """

    parameter: str
    start: Literal["orthogonal", "small"]
    loss: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class Experiments:
    """Measurements with a copy of the module. A field is None if it was not measured.

    Args:
        line_search: Pairs of a factor and the loss of the same batch after the step's update times that factor.
        finite_in_float32: Whether the step is finite if computed in float32, for a step in half precision.
        float32_loss: The loss in float32.
        rows_removed: The rows that were removed for the next two fields.
        finite_without_rows: Whether the step is finite without these rows.
        grad_norm_without_rows: L2 norm of the gradients without these rows.
        batch_grad_norm: L2 norm of the gradients of this batch alone, computed again.
        memory_grad_norm: L2 norm of the gradients in the run, unscaled.
        initial_grad_norm: L2 norm of the run's first gradient.
        starts: The first step with other starts of weights that are applied again and again.
        slope_ratio: Slope of the loss along the gradients of the run, divided by the slope that these predict.
        slope_ratios: Pairs of a parameter and the same along its gradient alone, if `slope_ratio` is too low.
        seconds: Duration of all measurements.
    """

    line_search: tuple[tuple[float, float], ...] = ()
    finite_in_float32: bool | None = None
    float32_loss: float | None = None
    rows_removed: tuple[int, ...] = ()
    finite_without_rows: bool | None = None
    grad_norm_without_rows: float | None = None
    batch_grad_norm: float | None = None
    memory_grad_norm: float | None = None
    initial_grad_norm: float | None = None
    starts: tuple[StartTrial, ...] = ()
    slope_ratio: float | None = None
    slope_ratios: tuple[tuple[str, float], ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class UpdateFault:
    """The first weight that an optimizer's update has made non-finite, though the gradients were finite.

    Args:
        parameter: Name of the parameter, empty if the network does not have it.
        dtype: Name of its type.
        optimizer: Index of the optimizer.
        element_count: Number of its elements that are not finite.
        weight: The first of these elements.
        weight_before: That element before the update, None if unknown.
        gradient: Its gradient as the optimizer received it, None if unknown.
        state: The optimizer's state for this element after the update, such as ``exp_avg_sq``, and for the whole
            parameter, such as ``step``.
    """

    parameter: str
    dtype: str
    optimizer: int = 0
    element_count: int = 0
    weight: float | None = None
    weight_before: float | None = None
    gradient: float | None = None
    state: Mapping[str, float] = field(default_factory=dict)
