"""The origin of a non-finite value in an autograd graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lightning_gradexplode.diagnose.faults.operations import FILLS
from lightning_gradexplode.diagnose.graph.nodes import Argument, Graph, name_of_node, shape_of
from lightning_gradexplode.diagnose.replay.observation.finiteness import has_nan

CARRYING = {
    "add", "alias", "amax", "amin", "as_strided", "cat", "clone", "copy_slices", "cumsum", "diagonal", "embedding",
    "embedding_bag", "expand", "flip", "gather", "index", "index_select", "max", "mean", "min", "narrow", "neg",
    "permute", "relu", "repeat", "reshape", "roll", "rsub", "select", "select_backward", "slice", "slice_backward",
    "split", "squeeze", "stack", "sub", "sum", "t", "to_copy", "topk", "transpose", "unbind", "unsafe_split",
    "unsafe_view", "unsqueeze", "view",
}  # fmt: skip
"""Operations whose result is finite if their arguments are, and far from the end of the number format."""

_INFINITE_OF_FINITE = {"exp", "exp2", "expm1", "cosh", "sinh", "reciprocal", "rsqrt"}
"""Operations with infinite results of finite arguments: exponentials of large ones, and poles at zero, whose result for
infinite arguments is zero."""

_SUMS_OF_PRODUCTS = {"baddbmm", "addbmm", "add", "sub"}
"""Operations that restrict scores to elements that are not masked."""

_ADDING = {"add", "sub", "rsub"}
"""Operations with finite results for finite arguments, so that a non-finite result shows a non-finite argument."""

_TAKING = {*_ADDING, "mul", "div", "cat", "stack", "addmm", "addcmul", "addcdiv", "lerp"}
"""Operations whose arguments without a gradient may hold numbers, and are no indices or masks."""

NEAR_THE_END = 1e30
"""Values below it are far from the end of float32, so that their sum is finite."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The origin of a non-finite value.

    Args:
        node: The operation that computed it, or that has it as an argument from outside of the graph.
        argument: The argument that was not finite, None if the operation computed the value from finite ones.
    """

    node: Any
    argument: Argument | None = None


Answer = Found | Literal["finite", "filled", "unclear"]
"""The origin of a non-finite value; or that it is finite, may hold fill values only, or is not known."""


class Search:
    """Traces a non-finite value back to its origin.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._answers: dict[Any, Answer] = {}

    def explain(self, last: Any) -> Answer:
        """Return the origin of the result of the last operation."""
        for node in self._graph.nodes:  # in the order of execution, so that arguments are known before results
            self._graph.compute(node)
            self._answers[node] = self._of(node)
        return self._answers[last]

    def _of(self, node: Any) -> Answer:
        is_whole = shape_of(node, 1) is None or name_of_node(node) not in CARRYING
        value = self._graph.values.get((node, 0)) if is_whole else None
        known = None if value is None else self._graph.is_finite(value)
        if known:
            return "finite"
        answers = [self._of_argument(node, one) for one in self._graph.arguments[node]]
        origins = [one for one in answers if isinstance(one, Found)]
        if origins:
            return self._through(node, origins, value)
        name = name_of_node(node)
        if name == "compiled_function":
            return "unclear"  # one node for all operations of a compiled function
        if name == "div" and self._divides_by_zero(node):
            return Found(node)  # also if the numerator is not finite
        if "filled" in answers and "unclear" not in answers:
            # An operation that turns filled-in constants into NaN is at fault.
            return Found(node) if known is False and value is not None and has_nan(value) else "filled"
        if "unclear" in answers:
            if known is False and name in _INFINITE_OF_FINITE and value is not None and not has_nan(value):
                return Found(node)  # data are rarely infinite
            if known is False and name == "softmax" and self._is_of_masked(node):
                return Found(node)  # a row masked by -inf in all elements; masks rarely hold NaN
            return self._from_outside(node, answers) if known is False and name in _ADDING else "unclear"
        if name == "mean" and _is_over_nothing(node):
            return Found(node)
        if known is False:
            # Other operations are finite for finite arguments, unless these are near the limit of the number format.
            return Found(node) if name not in CARRYING or self._is_known(node) else "unclear"
        if name in FILLS:
            return "filled"
        return "finite" if name in CARRYING and self._is_small(node) else "unclear"

    def _of_argument(self, node: Any, argument: Argument) -> Answer:
        value = self._graph.value(argument)
        finite = None if value is None else self._graph.is_finite(value)
        if finite:
            return "finite"
        is_leaf = argument.source is None or hasattr(argument.source, "variable")
        if not is_leaf:
            answer = self._answers[argument.source]
            return "unclear" if finite is False and answer == "finite" else answer
        if finite is False:
            # What the derivative of a derivative has saved is a result of the step, and no data.
            return "unclear" if name_of_node(node).endswith("_backward") else Found(node, argument)
        return "finite" if argument.source is None and not _takes_numbers(node) else "unclear"

    def _through(self, node: Any, origins: Sequence[Found], value: Tensor | None) -> Answer:
        """Return the origin of the result of an operation, given the origins of its non-finite arguments."""
        made = [one for one in origins if name_of_node(one.node) not in FILLS]
        if made:
            return made[0]
        # A filled-in infinity is no fault, unless an operation turns it into NaN.
        if value is not None and has_nan(value):
            return Found(node)
        return origins[0]

    def _from_outside(self, node: Any, answers: Sequence[Answer]) -> Answer:
        """Return the only argument of a sum that is not saved as the origin, if the others are finite."""
        arguments = self._graph.arguments[node]
        outside = [one for one, answer in zip(arguments, answers, strict=True) if answer == "unclear"]
        is_data = len(outside) == 1 and outside[0].source is None
        return Found(node, outside[0]) if is_data and self._is_small(node) else "unclear"

    def _is_of_masked(self, node: Any) -> bool:
        """Return whether an argument is the sum of finite scores and a tensor that is not saved, such as a mask."""
        source = self._graph.arguments[node][0].source
        arguments = self._graph.arguments.get(source, ())
        if source is None or name_of_node(source) not in _SUMS_OF_PRODUCTS or not self._is_small(source):
            return False
        outside = [one for one in arguments if one.source is None and self._graph.value(one) is None]
        others = [self._of_argument(source, one) for one in arguments if one not in outside]
        return len(outside) == 1 and bool(others) and set(others) == {"finite"}

    def _divides_by_zero(self, node: Any) -> bool:
        """Return whether an element of a known divisor is zero."""
        divisor = self._graph.value(self._graph.arguments[node][-1])
        return divisor is not None and bool((divisor == 0).any())

    def _is_known(self, node: Any) -> bool:
        """Return whether all arguments are known, and one is near the limit of the number format."""
        values = [self._graph.value(one) for one in self._graph.arguments[node]]
        return all(one is not None for one in values) and not self._is_small(node)

    def _is_small(self, node: Any) -> bool:
        values = [self._graph.value(one) for one in self._graph.arguments[node]]
        return all(
            one is None or not one.is_floating_point() or (one.element_size() > 2 and _size(one) < NEAR_THE_END)
            for one in values
        )


def _size(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _is_over_nothing(node: Any) -> bool:
    """Return whether a reduction has no element to reduce."""
    return 0 in getattr(node, "_saved_self_sym_sizes", ()) or getattr(node, "_saved_self_sym_numel", 1) == 0


def _takes_numbers(node: Any) -> bool:
    """Return whether a tensor without a gradient among the arguments may hold numbers, and is no index or mask."""
    return name_of_node(node) in _TAKING or isinstance(node, BackwardCFunction)
