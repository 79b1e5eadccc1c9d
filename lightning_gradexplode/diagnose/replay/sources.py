"""The tensors of a run that are not finite before a step begins."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_gradexplode.diagnose.replay.events import Kind, Origin, Origins, Source
from lightning_gradexplode.diagnose.replay.finiteness import all_finite, has_nan, storage_key
from lightning_gradexplode.diagnose.replay.module_copy import ModuleCopy
from lightning_gradexplode.diagnose.replay.stand_ins import ReplayStopped
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
    buffers = {storage_key(one): plain_name(name) for name, one in copy.module.named_buffers()}
    for one in copy.owned:
        if not all_finite(one):
            name = buffers.get(storage_key(one)) or _attribute(copy.module, one)
            kind: Kind = "buffer" if storage_key(one) in buffers else "attribute"
            origins.set(one, Origin(source=Source(kind, name, has_nan(one))))
    for field in fields:
        bad = [one for one in field.tensors if not all_finite(one)]
        rows = scan_rows(field, None).nonfinite if bad else ()
        for one in bad:
            origins.set(one, Origin(source=Source("batch", field.name, has_nan(one), rows)))
    return origins


def _attribute(module: nn.Module, tensor: Tensor) -> str:
    """Return the name of the attribute that holds a tensor, of the container where it is held deeper."""
    key = storage_key(tensor)
    for name, part in module.named_modules():
        for attribute, value in vars(part).items():
            if isinstance(value, Tensor) and storage_key(value) == key:
                return plain_name(f"{name}.{attribute}" if name else attribute)
    return "an attribute"
