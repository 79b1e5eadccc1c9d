"""The flat view that all measuring goes through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh

from lightning_gradexplode.measure.elements import CHUNK, chunks, flat_elements
from lightning_gradexplode.measure.histograms import measure_histogram
from lightning_gradexplode.measure.maxima import measure_maxima
from lightning_gradexplode.measure.norms import measure_norms
from tests.measure.sharding import Shard, distribute_tensor, needs_sharding
from tests.measure.tensors import WILD, real_parts


@pytest.mark.parametrize("build", WILD.values(), ids=WILD)
def test_flat_elements_of_a_wild_tensor(build: Callable[[], Tensor]) -> None:
    """The view is flat, real and without history, and holds the tensor's elements, each as often as it does."""
    tensor = build()
    flat = flat_elements(tensor)
    assert flat.dim() == 1
    assert type(flat) is Tensor
    assert not flat.is_complex()
    assert not flat.requires_grad
    assert Counter(map(repr, flat.tolist())) == Counter(map(repr, real_parts(tensor)))


@pytest.mark.parametrize(
    "kind", ["scalar", "transposed", "channels last", "with an offset", "transposed with an offset"]
)
def test_a_gapless_tensor_is_not_copied(kind: str) -> None:
    """Where the elements lie in one block of memory, the flat view is of that very memory."""
    tensor = WILD[kind]()
    assert flat_elements(tensor).data_ptr() == tensor.data_ptr()


class Wrapper(Tensor):
    """A tensor that computes its elements itself, so that they need not be in its memory."""

    @classmethod
    def __torch_dispatch__(cls, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Return the first argument."""
        return args[0]


def test_a_tensor_with_operations_of_its_own_is_refused() -> None:
    """Its memory is not read, which need not hold what its operations return."""
    wrapper = Tensor._make_subclass(Wrapper, torch.ones(3))
    with pytest.raises(TypeError, match="Wrapper cannot be measured"):
        flat_elements(wrapper)


def test_chunks_cover_all_elements() -> None:
    """Chunks are small, in order, and leave nothing out; an empty tensor gives none."""
    flat = torch.arange(2 * CHUNK + 5)
    pieces = list(chunks(flat))
    assert max(piece.numel() for piece in pieces) <= CHUNK
    assert torch.equal(torch.cat(pieces), flat)
    assert list(chunks(flat[:0])) == []


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Build a mesh of this one process."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    torch.distributed.destroy_process_group()


@needs_sharding
def test_a_distributed_tensor_is_measured_by_its_local_elements(mesh: DeviceMesh) -> None:
    """A DTensor is taken like any other; here one process holds all of it."""
    whole = torch.randn(5, 3)
    tensor = distribute_tensor(whole, mesh, [Shard(0)])
    assert measure_norms([tensor]).total == pytest.approx(float(whole.double().norm()), rel=1e-6)
    assert measure_maxima([tensor]).item() == float(whole.abs().max())
    assert measure_histogram(tensor).finite == 15
