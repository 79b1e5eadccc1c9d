"""What is installed on this machine, and what of it the package can use."""

from __future__ import annotations

import importlib.metadata
import platform

PACKAGES = {
    "lightning-gradexplode": "",
    "torch": "",
    "pytorch-lightning": "Trainer of pytorch_lightning",
    "lightning": "Trainer of lightning.pytorch",
    "tensorboard": "scalars, histograms, text, images",
    "wandb": "scalars, histograms, alerts, report, alert rules",
    "wandb-workspaces": "gradexplode wandb-workspace",
    "comet-ml": "scalars, histograms, text, report",
    "mlflow": "scalars, tags, report",
    "mlflow-skinny": "scalars, tags, report",
    "plotly": "interactive charts in reports",
    "rich": "colors in the terminal",
}
"""Packages, and what each is for."""


def examine() -> list[tuple[str, str]]:
    """Return versions, and what is supported here, as names and texts."""
    import torch

    table = [("python", platform.python_version()), ("platform", f"{platform.system()} {platform.machine()}")]
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
    return table
