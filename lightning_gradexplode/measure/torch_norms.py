"""Norms as torch's own clipping measures them, so that gradients that are clipped need not be measured twice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_gradexplode.measure.elements import is_plain
from lightning_gradexplode.measure.norms import Norms, mend
from lightning_gradexplode.measure.reading import read
from lightning_gradexplode.records import FloatArray


def clips_as_one_list(gradients: Sequence[Tensor | None]) -> bool:
    """Tell whether ``clip_grad_norm_`` takes these gradients as one list of dense float32 tensors on one device."""
    present = [gradient for gradient in gradients if gradient is not None]
    if not present:
        return False
    device = present[0].device
    return all(is_plain(one) and one.dtype is torch.float32 and one.device == device for one in present)


def measure_norms_as_torch_does(
    gradients: Sequence[Tensor | None], scalars: Sequence[Tensor]
) -> tuple[Norms, Tensor, FloatArray]:
    """Measure norms by the steps of ``torch.nn.utils.get_total_norm``.

    Args:
        gradients: At least one is not None; all are as `clips_as_one_list` asks for.
        scalars: Tensors of one real element that are read along with the norms.

    Returns:
        The norms, as exact as float32 sums are; torch's total, bit for bit; and the scalars in float64.
    """
    places = [place for place, gradient in enumerate(gradients) if gradient is not None]
    with torch.no_grad():
        norms = torch._foreach_norm([gradient for gradient in gradients if gradient is not None], 2.0)
        total = torch.linalg.vector_norm(torch.stack(norms), 2.0)
        numbers = read([*norms, *scalars])
        each, nonfinite = np.zeros(len(gradients)), np.zeros(len(gradients))
        each[places] = numbers[: len(places)]
        mend(each, nonfinite, gradients, places, each[places])
    return Norms(each, nonfinite), total, numbers[len(places) :]
