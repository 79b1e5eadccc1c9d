"""Modules of a network as plain values: class, role and settings.

Only modules can be seen here. An activation or a loss that is called as a function has no entry.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import islice

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_gradexplode.measure.parameters import plain_name, replica_prefixes
from lightning_gradexplode.records import ModuleFacts

MAX_SETTINGS = 32
"""Number of settings that are recorded of a module."""
MAX_GATES = 4
"""Largest number of gates whose matrices a recurrent weight contains, one below the other."""

_COMPOSED = {"FSDPModule", "ReplicateModule", "DDP"}
"""Classes that torch puts in front of a module's own class."""

_TORCH_ROLES = {
    "torch.nn.modules.activation": "activation",
    "torch.nn.modules.adaptive": "loss",
    "torch.nn.modules.batchnorm": "normalization",
    "torch.nn.modules.conv": "convolution",
    "torch.nn.modules.dropout": "dropout",
    "torch.nn.modules.instancenorm": "normalization",
    "torch.nn.modules.linear": "linear",
    "torch.nn.modules.loss": "loss",
    "torch.nn.modules.normalization": "normalization",
    "torch.nn.modules.rnn": "recurrent",
    "torch.nn.modules.sparse": "embedding",
}
"""Roles of torch's own modules by the file that defines them; subclasses have the role of their base."""

_OTHER_IN_TORCH = {"Identity", "LocalResponseNorm", "CrossMapLRN2d"}

_NAMED_ROLES = (
    ("loss", re.compile(r"(Loss|Criterion)$"), 0),
    ("normalization", re.compile(r"(Norm|Normalization)(\d[dD])?$"), 0),
    ("attention", re.compile(r"Attention|Attn"), 0),
    ("dropout", re.compile(r"Dropout|DropPath|StochasticDepth"), 0),
    ("activation", re.compile(r"(Activation|[A-Za-z]LU|[RGSE]elu|Swish|Mish|Snake|Sine|Tanh|Sigmoid|Softplus)$"), 0),
    ("embedding", re.compile(r"Embeddings?$"), 2),
    ("convolution", re.compile(r"Conv"), 3),
    ("linear", re.compile(r"Linear|Dense|Conv1D"), 2),
)
"""Roles of the user's own classes by their names, and the dimensions that one of their own parameters must have."""

_NO_SETTINGS = {"training", "prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices"}
"""Attributes of torch's and Lightning's base classes that say nothing about a network."""

_RECURRENT_CLASS = re.compile(r"RNN|LSTM|GRU|Recurren|Elman|Jordan")
_RECURRENT_NAME = re.compile(
    r"(^|_)(w?hh|h2h|w_?rec|recurrent|recurrence|hid2hid|hidden_?(to|2)?_?hidden)(_|\d|$)", re.IGNORECASE
)


def collect_modules(module: nn.Module) -> dict[str, ModuleFacts]:
    """Return the facts of a module and of all modules in it, by name, in the order of registration."""
    found = named_modules(module)
    return {name: _facts(name, one) for name, one in found.items()}


def named_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Return a module and all modules in it under their names without the prefixes of wrappers.

    Of a wrapper and what it wraps, which then have one name, the wrapped module is returned.
    """
    prefixes = replica_prefixes(module)
    return {plain_name(f"{name}.", prefixes).rstrip("."): one for name, one in module.named_modules()}


def class_of(module: nn.Module) -> type:
    """Return a module's class as it was before parametrizations or a sharding strategy replaced it."""
    kind = parametrize.type_before_parametrizations(module)
    while len(kind.__bases__) == 2 and kind.__bases__[0].__name__ in _COMPOSED:
        kind = kind.__bases__[1]
    return kind


def role_of(module: nn.Module) -> str:
    """Return a module's role, see `ModuleFacts`; that of a class that is not derived from torch's is a guess."""
    kind = class_of(module)
    own = [parameter for parameter in module.parameters(recurse=False) if not _is_unset(parameter)]
    for base in kind.__mro__:
        if base.__name__ in _OTHER_IN_TORCH:
            return "other"
        if base.__name__ == "MultiheadAttention":
            return "attention"
        if base.__module__ in _TORCH_ROLES:
            return _TORCH_ROLES[base.__module__]
    if recurrent_weights(module):
        return "recurrent"
    if kind.__module__.startswith("torch."):  # parametrizations such as _WeightNorm, containers
        return "other"
    for role, pattern, dimensions in _NAMED_ROLES:
        if pattern.search(kind.__name__) and (not dimensions or any(one.dim() >= dimensions for one in own)):
            if role == "activation" and any(one.dim() > 1 for one in module.parameters() if not _is_unset(one)):
                return "other"  # such as a SwiGLU with its projections
            return role
    return "other"


def is_known(module: nn.Module) -> bool:
    """Return whether a module's role is known by its class, which is torch's own or a subclass of one."""
    return any(base.__module__ in _TORCH_ROLES for base in class_of(module).__mro__)


def recurrent_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights by which a module multiplies its own state, by their names within the module.

    They are known of torch's recurrent modules. Of others they are a guess: square matrices, or up to four of them in
    one parameter, with names such as ``W_hh``, ``h2h.weight`` or ``recurrent_kernel``, or the only square matrix of a
    class with a name such as ``MyRNN`` or ``LiquidGRUCell``.
    """
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return {name: one for name, one in own.items() if name.startswith("weight_hh") and not _is_unset(one)}
    if not isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict | nn.Linear):
        own |= {
            f"{name}.weight": child.weight
            for name, child in module.named_children()
            if type(child) is nn.Linear and isinstance(child.weight, nn.Parameter)
        }
    square = {name: one for name, one in own.items() if not _is_unset(one) and _gates_in(one)}
    named = {name: one for name, one in square.items() if _RECURRENT_NAME.search(name.removesuffix(".weight"))}
    if named or len(square) != 1 or not _RECURRENT_CLASS.search(class_of(module).__name__):
        return named
    has_others = any(isinstance(one, (nn.RNNBase, nn.RNNCellBase)) for one in module.modules())
    return {} if has_others else {name: one for name, one in square.items() if one.shape[0] == one.shape[1]}


def gate_matrices(weight: Tensor) -> tuple[Tensor, ...]:
    """Return the square matrices that a recurrent weight consists of; none if it has no such shape."""
    count = _gates_in(weight)
    wide = weight.T if weight.dim() == 2 and weight.shape[1] > weight.shape[0] else weight
    return wide.chunk(count) if count else ()


def _gates_in(weight: Tensor) -> int:
    if weight.dim() != 2 or not weight.numel():
        return 0
    few, many = sorted(weight.shape)
    return many // few if few > 1 and many % few == 0 and many // few <= MAX_GATES else 0


def _is_unset(parameter: Tensor) -> bool:
    return nn.parameter.is_lazy(parameter)


def _facts(name: str, module: nn.Module) -> ModuleFacts:
    role, settings = role_of(module), dict(islice(_settings(module), MAX_SETTINGS))
    if role != "other" and not is_known(module):
        settings["guessed"] = True
    return ModuleFacts(name, class_of(module).__name__, role, settings)


def _settings(module: nn.Module) -> Iterator[tuple[str, float | str | bool]]:
    """Iterate over the plain attributes of a module; strings only of torch's own, others could be private."""
    is_torch = class_of(module).__module__.startswith("torch.nn.")
    attributes: Mapping[str, object] = vars(module)
    for name, value in attributes.items():
        if name.startswith("_") or name in _NO_SETTINGS:
            continue
        if (isinstance(value, (bool, int, float)) and math.isfinite(value)) or (is_torch and isinstance(value, str)):
            yield name, value
        elif is_torch and isinstance(value, tuple) and all(isinstance(one, int) for one in value):
            yield name, "x".join(map(str, value))
    if "bias" in module._parameters:
        yield "bias", module._parameters["bias"] is not None
