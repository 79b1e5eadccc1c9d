"""The command ``gradexplode``, also as ``python -m lightning_gradexplode``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of `lightning_gradexplode.cli`, and return its exit status."""
    try:
        from lightning_gradexplode import cli
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print('gradexplode: click is not installed: pip install "lightning-gradexplode[cli]"', file=sys.stderr)
        return 1
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
