"""Facts about a run, collected once before its first step: modules, parameters, optimizers and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """One module of the network.

    Args:
        name: Its name, as in ``named_modules``, without the prefixes of wrappers.
        kind: Name of its class, for example ``"Linear"``.
        role: ``"activation"``, ``"recurrent"``, ``"normalization"``, ``"convolution"``, ``"linear"``, ``"attention"``,
            ``"embedding"``, ``"dropout"``, ``"loss"`` or ``"other"``.
        settings: Its plain attributes, such as ``eps``, ``num_layers`` or ``nonlinearity``; ``guessed`` is True if
            the role is derived from names only.
    """

    name: str
    kind: str
    role: str = "other"
    settings: Mapping[str, float | str | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParameterFacts:
    """One parameter before the run's first step.

    Args:
        name: Its name.
        shape: Its shape.
        dtype: Name of its type, for example ``"float32"``.
        module: Name of the module that has it; empty for the root module.
        module_kind: Name of that module's class.
        std: Root mean square of its elements on this process; NaN if unknown.
        largest: Largest absolute value, NaN if unknown.
        fan_in: Number of inputs that each output sums over; the smaller dimension if the orientation of a user's own
            matrix is unknown. None for other parameters, and for the parts of a parametrized weight.
        spectral_radius: Largest absolute eigenvalue of a square recurrent matrix (the largest over the gates of a
            cell); None for other parameters.
        optimizer: Index of the optimizer that updates it, None if none does.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    module: str = ""
    module_kind: str = ""
    std: float = 0.0
    largest: float = 0.0
    fan_in: int | None = None
    spectral_radius: float | None = None
    optimizer: int | None = None


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """One optimizer before the run's first step.

    Args:
        kind: Name of its class, for example ``"AdamW"``; ``"Lookahead(Adam)"`` for one that wraps another.
        groups: Plain hyperparameters of each parameter group (``lr``, ``betas`` as ``beta1`` and ``beta2``, ``eps``,
            ``weight_decay``, ``momentum``, ``maximize``, ``amsgrad``, ``fused``).
        steps_taken: Largest step count in its state, 0 for a fresh state.
        has_state: Whether it had any state.
        state_grad_norm: The gradient norm that its running squares belong to, corrected for their start at zero; None
            without running squares.
    """

    kind: str
    groups: tuple[Mapping[str, float | bool | str], ...] = ()
    steps_taken: int = 0
    has_state: bool = False
    state_grad_norm: float | None = None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts about a run before its first step.

    Args:
        modules: The modules, in the order of their first execution if it is known, else of registration.
        order_is_executed: Whether that is the order of execution.
        parameters: The parameters, in the same order of modules.
        optimizers: The optimizers, in the order of the training loop.
        precision: For example ``"32-true"``, ``"16-mixed"``, ``"bf16-true"``.
        scaler: Whether a gradient scaler is in use, ``"none"``, ``"static"`` or ``"adaptive"``.
        strategy: Name of the strategy, for example ``"SingleDeviceStrategy"``.
        processes: Number of processes that are measured together.
        has_unknown_processes: Whether there are others, whose losses and batches are not known.
        batch_size: Number of rows of the first batch, None if unknown.
        sequence_length: Length of the second dimension of the first batch's input, where a recurrent module or a loop
            over time makes it one, else None.
        batches_per_epoch: Number of batches of an epoch, None if unknown.
        accumulate: Number of micro-batches of an optimizer step.
        monitor: Name of the class by which the user has added the monitor.
        automatic: Whether the training loop itself runs the backward pass and the optimizer.
        clip_val: The training loop's own clip value, None without clipping.
        clip_algorithm: ``"norm"`` or ``"value"``.
        clip_policy: What the monitor's ``clip`` is, for example ``"auto"`` or ``"1.0"``; None without.
        on_explosion: Names of the monitor's responses.
        schedulers: Class names of the learning rate schedulers.
        first_step: The step at which the fit began.
        is_resumed: Whether it goes on from a checkpoint.
        versions: Versions by package name.
    """

    modules: tuple[ModuleFacts, ...] = ()
    order_is_executed: bool = False
    parameters: tuple[ParameterFacts, ...] = ()
    optimizers: tuple[OptimizerFacts, ...] = ()
    precision: str = "32-true"
    scaler: str = "none"
    strategy: str = ""
    processes: int = 1
    has_unknown_processes: bool = False
    batch_size: int | None = None
    sequence_length: int | None = None
    batches_per_epoch: int | None = None
    accumulate: int = 1
    monitor: str = "GradientExplosionMonitor"
    automatic: bool = True
    clip_val: float | None = None
    clip_algorithm: str = "norm"
    clip_policy: str | None = None
    on_explosion: tuple[str, ...] = ()
    schedulers: tuple[str, ...] = ()
    first_step: int = 0
    is_resumed: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
