"""The tensors of a run that are not finite before a step begins."""

from __future__ import annotations

from collections.abc import Sequence, Set

from torch import Tensor, nn

from lightning_gradexplode.diagnose.replay.copies.module_copy import ModuleCopy
from lightning_gradexplode.diagnose.replay.copies.stand_ins import ReplayStopped
from lightning_gradexplode.diagnose.replay.observation.events import Kind, Origin, Origins, Source
from lightning_gradexplode.diagnose.replay.observation.finiteness import all_finite, has_nan, storage_key
from lightning_gradexplode.measure.batch_fields import Field
from lightning_gradexplode.measure.field_rows import scan_rows
from lightning_gradexplode.measure.parameters import plain_name


def origins_before(copy: ModuleCopy, fields: Sequence[Field]) -> Origins:
    """Return the origins of what is not finite in a module and a batch.

    Args:
        copy: The copy of the module.
        fields: The fields of the batch.

    Raises:
        ReplayStopped: The weights are not finite.
    """
    origins = Origins()
    for name, parameter in copy.module.named_parameters():
        if not all_finite(parameter):
            raise ReplayStopped(f"the weights are not finite any more ({plain_name(name)})")
    for one in copy.owned:
        if not all_finite(one):
            key = storage_key(one)
            kind, name = _place(copy.module, key)
            origins.set(one, Origin(source=Source(kind, name, has_nan(one), storage=key)))
    for field in fields:
        bad = [one for one in field.tensors if not all_finite(one)]
        rows = scan_rows(field, None).nonfinite if bad else ()
        for one in bad:
            origins.set(one, Origin(source=Source("batch", field.name, has_nan(one), rows)))
    return origins


def is_as_before(source: Source, copy: ModuleCopy, written: Set[int]) -> bool:
    """Return whether a tensor of the run held the same values when the step began.

    Buffers and attributes enter the copy as they are at the end of the step. What the replayed step has neither written
    to nor replaced, the step of the run has left alone, too.

    Args:
        source: The tensor.
        copy: The copy, after the step.
        written: The storages that the step has written to.
    """
    if source.kind not in ("buffer", "attribute"):
        return True
    return source.storage not in written and _place(copy.module, source.storage)[1] == source.name != _UNKNOWN


_UNKNOWN = "an attribute"


def _place(module: nn.Module, key: int | None) -> tuple[Kind, str]:
    """Return where a module holds a tensor with this storage; the name is not known where a container holds it."""
    for name, buffer in module.named_buffers():
        if key is not None and storage_key(buffer) == key:
            return "buffer", plain_name(name)
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if key is not None and isinstance(value, Tensor) and storage_key(value) == key:
                return "attribute", plain_name(f"{name}.{attribute}" if name else attribute)
    return "attribute", _UNKNOWN
