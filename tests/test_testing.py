"""The helpers for users' tests."""

from __future__ import annotations

import subprocess
import sys

CHECK = """
import sys
import lightning_gradexplode.testing as testing
testing.PlainLoop, testing.ExplodingRegression
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"lightning", "pytorch_lightning", "transformers", "wandb"}, loaded
testing.RecordingLogger()
assert "pytorch_lightning" in sys.modules or "lightning" in sys.modules
"""


def test_lightning_is_imported_with_the_first_recording_logger() -> None:
    """Tests of a plain loop do without it."""
    assert subprocess.run([sys.executable, "-c", CHECK]).returncode == 0
