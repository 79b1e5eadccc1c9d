"""What the tests on a GPU share; each is left out where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def deterministic_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Skip without a GPU; with one, have its kernels return the same bits in each run."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_sync_debug_mode("default")
