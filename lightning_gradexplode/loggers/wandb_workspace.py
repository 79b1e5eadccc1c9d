"""A saved view of a W&B project with the panels of the monitor's metrics."""

from __future__ import annotations

from typing import Any

from lightning_gradexplode.loggers.scalars import PREFIX

PANELS = (
    ("Gradient norm, before and after clipping", ("grad_norm", "grad_norm_clipped", "clip_val"), True),
    ("Update ratio", ("update_ratio",), True),
    ("Severity (1 info, 2 warning, 3 critical)", ("severity",), False),
    ("Weights", ("weight_norm",), True),
    ("NaN and infinite gradient elements", ("nonfinite_count",), False),
    ("Share of clipped steps", ("clip_rate",), False),
)
"""Title, metrics and whether the axis is logarithmic."""


def save_workspace(project: str, entity: str, name: str = "Gradient explosion") -> str:
    """Save a view with the monitor's panels, and return its URL.

    Args:
        project: The project.
        entity: The team or user that owns it.
        name: Name of the view.

    Raises:
        ModuleNotFoundError: ``wandb-workspaces`` is not installed.
        wandb.errors.Error: The server cannot be reached, or refuses.
    """
    return str(workspace(project, entity, name).save().url)


def workspace(project: str, entity: str, name: str = "Gradient explosion") -> Any:
    """Return the view without saving it.

    Raises:
        ModuleNotFoundError: ``wandb-workspaces`` is not installed.
    """
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2 import interface

    lines: list[Any] = [
        interface.LinePlot(
            title=title, x="trainer/global_step", y=[f"{PREFIX}/{metric}" for metric in metrics], log_y=is_logarithmic
        )
        for title, metrics, is_logarithmic in PANELS
    ]
    section = workspaces.Section(name="Gradient explosion", panels=lines, is_open=True)
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=[section])
