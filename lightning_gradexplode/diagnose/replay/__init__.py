"""Replay: a training step computed again on a copy of the module, operation by operation.

The engine keeps what a step needs (`KeptBatch`, `RandomState`, `AttributeState`, `keep_weights`, or `similar_weights`
for lost ones), describes it as a `ReplayStep`, and calls

- `replay_step` for the first operation that made a non-finite value, its module, its line and its rows of the batch;
- `run_experiments` for the step in float32, the step without some rows, and a line search along the update;
- `line_search` for the last of these alone, once the optimizer has stepped.

They return records, and raise nothing whatever the step does: the record has the reason if something failed.

What is guaranteed: the copy's parameters are views of the run's weights that nothing writes to; buffers, attributes,
hooks and metrics are the copy's own; batch, gradients and random state of the run are as before; nothing is logged,
no optimizer steps, no collective operation starts. What ``training_step`` does outside of its module (global
variables, files that it opens, prints) happens a second time.
"""

from lightning_gradexplode.diagnose.replay.attribute_state import AttributeState
from lightning_gradexplode.diagnose.replay.batch import KeptBatch
from lightning_gradexplode.diagnose.replay.copies.module_copy import ModuleCopy
from lightning_gradexplode.diagnose.replay.experiments.experiments import line_search, run_experiments
from lightning_gradexplode.diagnose.replay.kept_weights import checksums, keep_weights
from lightning_gradexplode.diagnose.replay.random_state import RandomState
from lightning_gradexplode.diagnose.replay.replay import Failed, replay_step
from lightning_gradexplode.diagnose.replay.similar_weights import similar_weights
from lightning_gradexplode.diagnose.replay.step import ReplayStep, is_out_of_memory

__all__ = [
    "AttributeState",
    "Failed",
    "KeptBatch",
    "ModuleCopy",
    "RandomState",
    "ReplayStep",
    "checksums",
    "is_out_of_memory",
    "keep_weights",
    "line_search",
    "replay_step",
    "run_experiments",
    "similar_weights",
]
