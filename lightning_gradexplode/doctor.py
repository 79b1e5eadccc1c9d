"""The installed packages and devices, and what they support."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from lightning_gradexplode import __version__
from lightning_gradexplode.loggers.wandb_events import known_rules

PREFIX = "GRADEXPLODE"
"""Prefix of the environment variables; only their names are shown, since their values may contain secrets."""

PACKAGES = {
    "torch": "",
    "pytorch-lightning": "Trainer of pytorch_lightning",
    "lightning": "Trainer of lightning.pytorch",
    "tensorboard": "scalars, histograms, text, images",
    "wandb": "scalars, histograms, alerts, report, alert rules",
    "wandb-workspaces": "gradexplode wandb-workspace",
    "comet-ml": "scalars, histograms, text, report",
    "trackio": "scalars, histograms, alerts, report",
    "litlogger": "scalars, text, report",
    "mlflow": "scalars, tags, report",
    "mlflow-skinny": "scalars, tags, report",
    "plotly": "interactive charts in reports: the extra report",
    "click": "the command line: the extra cli",
    "rich": "colors and progress in the terminal: the extra cli",
    "apprise": "notifications by mail, Slack, webhooks: the extra notify",
}
"""Packages and their purposes."""


def examine() -> list[tuple[str, str]]:
    """Return versions and what is supported in this environment, as pairs of a name and a text."""
    import torch

    table = [
        ("lightning-gradexplode", __version__),
        ("python", platform.python_version()),
        ("platform", f"{platform.system()} {platform.machine()}"),
    ]
    for name, use in PACKAGES.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        table.append((name, f"{version}{f' ({use})' if use else ''}"))
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    mps = torch.backends.mps.is_available()
    table.append(("accelerators", ", ".join(devices) or ("mps" if mps else "none")))
    table.append(("distributed", "available" if torch.distributed.is_available() else "not available"))
    table.append(("W&B alert rules", _alert_rules()))
    variables = ", ".join(sorted(one for one in os.environ if one.startswith(PREFIX)))
    table.append((f"{PREFIX} variables", variables or "not set"))
    return table


def _alert_rules() -> str:
    """Return the alert rules that the installed wandb supports."""
    try:
        return ", ".join(rule.name for rule in known_rules())
    except ModuleNotFoundError:
        return 'wandb is not installed: pip install "lightning-gradexplode[wandb]"'
    except ImportError as error:
        return str(error)
