"""The charts on TensorBoard's page of custom scalars: gradient norms, update ratio, severity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_gradexplode.loggers.scalars import PREFIX
from lightning_gradexplode.records.step_record import USUAL_UPDATE_RATIO as USUAL_RANGE

CATEGORY = "Gradient explosion"
"""Title of the category of charts."""

USUAL_UPDATE_RATIO = dict(zip((f"{PREFIX}/update_ratio_low", f"{PREFIX}/update_ratio_high"), USUAL_RANGE, strict=True))
"""The usual range of the update ratio, logged so that a chart can show it."""

LOG_GRAD_NORM = f"{PREFIX}/log10_grad_norm"
"""The decimal logarithm of the gradient norm."""

_CONFIG = b"custom_scalars__config__"


def layout_with_charts(folder: Path) -> Any | None:
    """Return a layout of the charts that a run already has, in any of its event files, followed by the monitor's.

    A later layout of the same run replaces an earlier one, so that it must repeat the user's own.

    Args:
        folder: The run's folder, whose event files are flushed.

    Returns:
        A summary to write; None if the run has the monitor's charts.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    layout = Layout()
    for content in _layouts(folder):
        layout = Layout.FromString(content)
    if any(category.title == CATEGORY for category in layout.category):
        return None
    layout.category.append(_category())
    tensor = TensorProto(dtype=DT_STRING, string_val=[layout.SerializeToString()])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))
    return Summary(value=[Summary.Value(tag=_CONFIG.decode(), tensor=tensor, metadata=metadata)])


def _category() -> Any:
    from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, MarginChartContent, MultilineChartContent

    norms = [f".*{PREFIX}/{name}$" for name in ("grad_norm", "grad_norm_clipped", "clip_val")]
    low, high = USUAL_UPDATE_RATIO
    band = MarginChartContent.Series(value=f"{PREFIX}/update_ratio", lower=low, upper=high)
    return Category(
        title=CATEGORY,
        chart=[
            Chart(title="log10 of the gradient norm", multiline=MultilineChartContent(tag=[f".*{LOG_GRAD_NORM}$"])),
            Chart(title="gradient norm, before and after clipping", multiline=MultilineChartContent(tag=norms)),
            Chart(title="update ratio, and its usual range", margin=MarginChartContent(series=[band])),
            Chart(
                title="severity (1 info, 2 warning, 3 critical)",
                multiline=MultilineChartContent(tag=[f".*{PREFIX}/severity$"]),
            ),
        ],
    )


def _layouts(folder: Path) -> list[bytes]:
    """Return the layouts in a run's event files, oldest first."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = []
    for path in sorted(folder.glob("*tfevents*"), key=lambda path: path.stat().st_mtime):
        if _CONFIG in path.read_bytes():  # parsing the files that have none would be slow
            found += [
                bytes(value.tensor.string_val[0])
                for event in LegacyEventFileLoader(str(path)).Load()
                for value in event.summary.value
                if value.tag == _CONFIG.decode() and value.tensor.string_val
            ]
    return found
