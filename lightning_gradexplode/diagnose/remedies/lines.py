"""Corrections of a line whose operation has no finite value, or no finite slope, for its inputs."""

from __future__ import annotations

import math
import re

from lightning_gradexplode.records import Operand

_COUNTS = re.compile(r"(sum|count|mask|numel|valid|len|num_|n_|size|shape)", re.IGNORECASE)
_NORMS = re.compile(r"(norm|square|pow\(|\*\*|std|var\b|max\(|amax|min\(|abs|length|dist|scale)", re.IGNORECASE)

_REMEDIES = {
    "log": "keep the argument positive: `torch.log(x.clamp(min=1e-6))`, or of a probability use `F.log_softmax(logits, "
    "dim=-1)` or `F.logsigmoid(logits)` on its logits",
    "gamma": "keep the argument away from its pole at zero: `torch.{name}(x.clamp(min=1e-6))`",
    "sqrt": "keep the argument above zero: `torch.sqrt(x.clamp(min=1e-12))`",
    "norm": "keep the norm away from zero: `(x.square().sum(dim=-1) + 1e-12).sqrt()`",
    "hypot": "keep the result away from zero: `(x.square() + y.square() + 1e-12).sqrt()`",
    "acosh": "keep the argument above one: `torch.acosh(x.clamp(min=1 + 1e-6))`",
    "bounded": "keep the argument inside of its domain: `torch.{name}(x.clamp(-1 + 1e-6, 1 - 1e-6))`",
    "logit": "keep the argument away from 0 and 1: `torch.logit(x, eps=1e-6)`",
    "pow": "keep the base positive: `x.clamp(min=1e-6) ** exponent`",
    "exp": "keep the argument within limits on both sides, `torch.exp({bound} * torch.tanh(x / {bound}))`: the result "
    "is between {least} and {greatest}",
    "logarithms": "compute it with logarithms, which do not overflow: `F.softplus(x)` in place of log(1 + exp(x)), "
    "`torch.logsumexp(x, dim=-1)` in place of log(sum(exp(x)))",
    "softmax": "compute it with logarithms, `F.log_softmax(x, dim=-1)` or `torch.logsumexp(x, dim=-1)` in place of exp "
    "over its sum, and normalize vectors before their product: `F.normalize(x, dim=-1)`",
    "matrix product": "compute it with logarithms, which do not overflow: "
    "`torch.logsumexp(a.unsqueeze(-1) + b, dim=-2)` in place of exp(a) @ exp(b)",
    "product": "add logarithms up in place of a product of many numbers: `torch.log(x).sum(dim=-1)`, and keep the "
    "result a logarithm",
    "factors": "bound one of the factors, `x * torch.sigmoid(gate)`, or normalize what they are made of: "
    "`F.layer_norm(x, x.shape[-1:])`",
    "square": "bring what it takes to a scale near one, or use a loss that grows linearly: `F.huber_loss(prediction, "
    "target)`",
    "std": "keep the variance away from zero: `(x.var(dim=0, correction=0) + 1e-6).sqrt()`",
    "atan2": "move the argument away from the origin: `torch.atan2(y, x + 1e-6)`",
    "div": "keep the divisor away from zero with a small eps: `x / y.clamp(min=1e-6)` for one that is never negative",
    "number": "keep the divisor, a number that reaches zero, away from it: `x / max(divisor, 1e-2)`",
    "signed": "keep the divisor, which has both signs, away from zero: `x * y / (y.square() + 1e-6)`, where a "
    "`clamp(min=...)` would lose its negative values",
    "eigenvalues": "add a small diagonal of distinct numbers, which separates equal eigenvalues: `matrix + "
    "torch.diag(1e-4 * torch.arange(n))`",
    "support": "keep values inside of the distribution's support: `value.clamp(1e-6, 1 - 1e-6)` for one from 0 to 1, "
    "`value.clamp(min=1e-6)` for one that is positive",
    "scale": "keep the scale of the distribution above zero: `F.softplus(scale) + 1e-6`",
    "finite": "keep infinities out of what it takes, as 0 * inf and inf - inf are NaN: `x.clamp(min=-1e6, max=1e6)`",
    "matrix": "add a small multiple of the identity: `matrix + 1e-4 * scale * torch.eye(n, device=matrix.device)`, "
    "with the mean of its diagonal as `scale`; in float64 1e-8 is enough",
}

_BY_WORD = (
    ("logit", "logit"),
    ("gamma", "gamma"),
    ("log", "log"),
    ("sqrt", "sqrt"),
    ("norm", "norm"),
    ("hypot", "hypot"),
    ("dist", "norm"),
    ("acosh", "acosh"),
    ("acos", "bounded"),
    ("asin", "bounded"),
    ("atanh", "bounded"),
    ("erfinv", "bounded"),
    ("atan2", "atan2"),
    ("pow", "pow"),
    ("expm", "exp"),
    ("exp", "exp"),
    ("cosh", "exp"),
    ("sinh", "exp"),
    ("softplus", "exp"),
    ("std", "std"),
    ("var", "std"),
    ("div", "div"),
    ("reciprocal", "div"),
    ("eig", "eigenvalues"),
    ("svd", "eigenvalues"),
    ("linalg", "matrix"),
    ("cholesky", "matrix"),
    ("det", "matrix"),
    ("mul", "finite"),
    ("add", "finite"),
    ("sub", "finite"),
)


_HALF_PRECISION = {
    "bfloat16": {"1 - 1e-6": "1 - 1e-2", "-1 + 1e-6": "-1 + 1e-2", "1 + 1e-6": "1 + 1e-2", "eps=1e-6": "eps=1e-2"},
    "float16": {"1e-12": "1e-4", "1e-6": "1e-3"},
}
"""For each type, the small numbers of corrections that are rounded away in it, and what replaces them."""

USUAL_BOUND, LARGEST_BOUND = 5, 20
"""Bounds of the argument of an exponential function: the usual one, and the largest that is proposed."""


def remedy_for_overflow(name: str, code: str, needed: float = 1.0) -> str:
    """Return the correction of a line whose operation overflows.

    Args:
        name: Plain name of the operation.
        code: The line, or the part of it that calls the operation.
        needed: The largest result that the model must be able to return, such as its largest target.
    """
    if "prod" in name:
        return _REMEDIES["product"]
    if name in ("mm", "bmm", "mv", "matmul") and re.search(r"\bexp\(", code):
        return _REMEDIES["matrix product"]
    if name == "mul" and not re.search(r"\bexp\(|square|\*\*|loss", code):
        return _REMEDIES["factors"]
    if not any(word in name for word in ("exp", "cosh", "sinh", "softplus")):
        return _REMEDIES["square"]
    if re.search(r"\blog(1p|sumexp)?\(", code):
        return _REMEDIES["logarithms"]
    if re.search(r"@|matmul|einsum|\bmm\(|sim|logit|score|tau|temp", code):
        return _REMEDIES["softmax"]
    # A result of ten times the largest one that is needed is still within the bound.
    is_usual = needed < math.exp(USUAL_BOUND)
    bound = USUAL_BOUND if is_usual else min(math.ceil(math.log(10 * needed)), LARGEST_BOUND)
    limits = {"bound": bound, "least": f"{math.exp(-bound):.1g}", "greatest": f"{math.exp(bound):.3g}"}
    return _REMEDIES["exp"].format(**limits)


def remedy_for(name: str, code: str = "", dtype: str = "float32") -> str:
    """Return the correction of a line whose operation has no finite value, or no finite slope.

    Args:
        name: Plain name of the operation.
        code: The line, or the part of it that calls the operation.
        dtype: Type of its inputs; the small numbers in the correction are not rounded away in it.
    """
    if ".log_prob(" in code:  # the operation is one of `torch.distributions`, and the line does not show it
        return _REMEDIES["scale" if name == "log" else "support"]
    key = next((key for word, key in _BY_WORD if word in name), "div")
    return remedy_for_overflow("exp", "") if key == "exp" else _in_type(_REMEDIES[key].replace("{name}", name), dtype)


def _in_type(remedy: str, dtype: str) -> str:
    """Return a correction with small numbers that are not rounded away in a type."""
    for number, larger in _HALF_PRECISION.get(dtype.removeprefix("torch.").replace("half", "float16"), {}).items():
        remedy = remedy.replace(number, larger)
    return remedy


def remedy_for_divisor(code: str, divisor: Operand | None = None) -> str:
    """Return the correction of a division whose divisor is zero.

    Args:
        code: The line, or the part of it that divides.
        divisor: The tensor that it divides by, None if that is not known.
    """
    dtype = "float32" if divisor is None else divisor.dtype
    # Rounding makes small negative numbers of a variance.
    if divisor is not None and (divisor.least or 0.0) < -1e-3 * abs(divisor.greatest or 0.0):
        return _in_type(_REMEDIES["signed"], dtype)
    if _NORMS.search(divisor_of(code)):
        return _in_type("keep the divisor away from zero with a small eps: `x / norm.clamp(min=1e-6)`", dtype)
    return _in_type(_REMEDIES["div"], dtype)


def remedy_for_number() -> str:
    """Return the correction of a division whose divisor is a number and not a tensor, and is zero."""
    return _REMEDIES["number"]


def divides_by_count(code: str) -> bool:
    """Return whether the divisor in a line of code is a count or a sum of a mask, and no norm or deviation."""
    divisor = divisor_of(code)
    return bool(_COUNTS.search(divisor)) and not _NORMS.search(divisor)


def divisor_of(code: str) -> str:
    """Return what a line of code divides by: the part behind the first ``/``, the whole line without one."""
    return code.split("/", 1)[1] if "/" in code else code
