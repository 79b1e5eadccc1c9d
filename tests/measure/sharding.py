"""Names of DTensor, from where this version of torch has them: public since torch 2.5."""

from __future__ import annotations

import pytest
import torch

VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

try:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
except ImportError:
    from torch.distributed._tensor import Replicate, Shard, distribute_tensor  # type: ignore[attr-defined]

__all__ = ["VERSION", "Replicate", "Shard", "distribute_tensor", "needs_sharding"]

needs_sharding = pytest.mark.skipif(VERSION < (2, 6), reason="before torch 2.6, sharding needs a GPU")
