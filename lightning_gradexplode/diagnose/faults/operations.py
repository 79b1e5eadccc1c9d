"""The operations of a replay: their names, where they ran, and the scale of their inputs."""

from __future__ import annotations

import re

from lightning_gradexplode.records import Operand, Operation

LIMITS = {"float16": 65504.0, "half": 65504.0, "bfloat16": 3.39e38, "float32": 3.4e38, "float64": 1.8e308}
"""Largest finite value by type."""

DIVISIONS = {"div", "true_divide", "reciprocal", "remainder", "fmod", "floor_divide"}
"""Operations that divide their first input, or the number one."""

STEPS = {"ceil", "floor", "round", "sign", "trunc"}
"""Operations whose derivative is zero for all arguments."""

FILLS = {"constant_pad_nd", "fill", "index_fill", "index_put", "masked_fill", "masked_scatter", "scatter", "where"}
"""Operations that fill constants into a tensor."""

EXPONENTIALS = {"exp", "exp2", "expm1", "sinh", "cosh", "softplus", "special_expit", "logaddexp", "gelu", "silu",
                 "special_exp2", "elu", "selu"}  # fmt: skip
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "convolution", "conv1d", "conv2d", "conv3d",
             "mv", "dot", "einsum", "mkldnn_linear", "mkldnn_convolution", "rnn_tanh", "rnn_relu", "lstm", "gru",
             "mkldnn_rnn_layer", "embedding_bag", "embedding", "index_select"}  # fmt: skip

LOSSES = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "nll_loss", "kl_div",
          "binary_cross_entropy_with_logits", "soft_margin_loss"}  # fmt: skip
"""Loss functions that have a node of their own in an autograd graph."""

SYMMETRIC_LOSSES = {"mse_loss", "smooth_l1_loss", "huber_loss"}
"""Loss functions to which targets are also given as the first argument, ``mse_loss(target, output)``."""


def base_name(name: str) -> str:
    """Return an operation's plain name: ``"_log_softmax"``, ``"aten.log_softmax.int"`` are both ``"log_softmax"``.

    Of a node of the backward pass it is the name of the forward operation: ``"SqrtBackward0"`` is ``"sqrt"``. The
    derivative of a derivative keeps a name of its own: ``"SqrtBackwardBackward0"`` is ``"sqrt_backward"``.
    """
    name = name.removeprefix("aten.").removeprefix("aten::").removeprefix("torch.").split(".")[0]
    if re.search(r"Backward\d*$", name):
        name = re.sub(r"Backward\d*$", "", name)
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        if name.endswith("_backward"):
            return name
    name = name.strip("_")
    name = re.sub(r"(_forward|_backward(_data)?|_loss2d|2d_forward)$", "", name)
    return re.sub(r"nll_loss2_?d", "nll_loss", name)


_OF_OTHER_CODE = ("AccumulateGrad", "CheckpointFunctionBackward")
"""Nodes of the backward pass in which other code runs: hooks of a gradient, and a forward pass that is repeated."""


def name_of(operation: Operation) -> str:
    """Return the plain name of an operation; in the backward pass, that of the forward operation."""
    if operation.phase == "backward" and operation.node is not None and not is_of_other_code(operation):
        return base_name(operation.node)
    return base_name(operation.name)


def is_of_other_code(operation: Operation) -> bool:
    """Return whether an operation ran in the backward pass without being a derivative, as in a hook of a gradient."""
    return operation.node is not None and operation.node.endswith(_OF_OTHER_CODE)


def limit_of(operation: Operation) -> float:
    """Return the largest finite value of the narrowest floating-point type of the inputs."""
    limits = [
        LIMITS[one.dtype.removeprefix("torch.")]
        for one in operation.inputs
        if one.dtype.removeprefix("torch.") in LIMITS
    ]
    return min(limits, default=LIMITS["float32"])


def is_half(operation: Operation) -> bool:
    """Return whether an input is of type float16 or bfloat16."""
    return any(one.dtype.removeprefix("torch.") in ("float16", "half", "bfloat16") for one in operation.inputs)


def size_of(operand: Operand) -> float:
    """Return the largest absolute finite value of an operand, 0 if there is none."""
    return max((abs(one) for one in (operand.least, operand.greatest) if one is not None), default=0.0)


def largest_input(operation: Operation) -> float:
    """Return the largest absolute finite value of the inputs."""
    return max((size_of(one) for one in operation.inputs), default=0.0)


def is_exponential(operation: Operation) -> bool:
    """Return whether the operation grows exponentially with its argument."""
    return name_of(operation) in EXPONENTIALS


def is_product(operation: Operation) -> bool:
    """Return whether the operation multiplies by weights, so that earlier activations are the cause of its overflow."""
    return name_of(operation) in _PRODUCTS


def location_of(operation: Operation) -> str:
    """Return an operation's place: ```log` at losses.py:12 in module `head```."""
    words = f"`{name_of(operation)}`"
    if operation.phase == "backward":
        words += " (backward pass)"
    if operation.file is not None:
        words += f" at {operation.file}" + ("" if operation.line is None else f":{operation.line}")
    return words + (f" in module `{operation.module}`" if operation.module else "")
