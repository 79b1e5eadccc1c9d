"""The evidence of one process that all get, of a step whose loss or gradients are not finite."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np

from lightning_gradexplode.distributed.exchange import StepExchange
from lightning_gradexplode.engine.batch_evidence import BatchEvidence
from lightning_gradexplode.engine.collect_or_log import collect_or_log
from lightning_gradexplode.engine.incidents import CALM_STEPS
from lightning_gradexplode.engine.loss_graphs import LossGraphs
from lightning_gradexplode.engine.replays import MAX_REPLAYS, IncidentReplays
from lightning_gradexplode.records import StepRecord


class SharedEvidence:
    """Decides of which steps several processes share evidence, and shares it.

    Args:
        batch: The evidence that is in batches.
        replays: The steps that are computed again.
        graphs: The graphs of losses, which show the data of a batch that is not known otherwise.
        is_on: Whether evidence is shared at all.
    """

    def __init__(self, batch: BatchEvidence, replays: IncidentReplays, graphs: LossGraphs, is_on: bool) -> None:
        self._batch = batch
        self._replays = replays
        self._graphs = graphs
        self._is_on = is_on
        self._count = 0
        self._failed_at: int | None = None

    def is_due(self, record: StepRecord) -> bool:
        """Return whether all processes are to get one process's evidence of a step.

        They are at the first step of an incident whose loss or gradients are not finite, unless a gradient scaler
        adapts to these. This is decided by what all processes know alike, and not by findings, since the detectors of
        one process may fail.
        """
        is_finite = record.grad_norm is None or record.scale_adapts or math.isfinite(record.grad_norm)
        if (record.rank is None and is_finite) or not self._is_on:
            return False
        is_first = self._failed_at is None or record.step - self._failed_at > CALM_STEPS
        if not is_first:
            self._failed_at = record.step
        return is_first and self._count < MAX_REPLAYS

    def share(self, exchange: StepExchange, record: StepRecord) -> bool:
        """Replace what is known of a step's batch, and of its replay, by that of one process; a collective.

        It is the process whose loss is not finite. If all losses are finite, a reduction has spread what is not finite
        to the gradients of all processes; then it is the first process whose own replay, in which nothing is reduced,
        shows that. If the replays of all do, or of none, each process keeps its evidence.

        Args:
            exchange: The exchange between processes.
            record: The step.

        Returns:
            Whether it was replaced.
        """
        rank, batch, replays = record.rank, self._batch, self._replays
        if rank is None:
            replay = replays.replay
            shows = exchange.agree(np.array([replay is not None and replay.status == "reproduced"], float))[:, 0] > 0
            if shows.all() or not shows.any():
                return False
            rank = int(shows.argmax())
        self._count += 1
        self._failed_at = record.step
        own = collect_or_log("the evidence", lambda: self._pickled(record.step, rank))
        received = exchange.broadcast(own or b"", rank)
        known = collect_or_log("the evidence of another process", lambda: pickle.loads(received)) if received else None
        if known is not None:
            batch.facts, replays.replay, replays.experiments = known
        return known is not None

    def _pickled(self, step: int, rank: int) -> bytes:
        facts = self._graphs.with_fields(self._batch.facts, step, step)
        known = None if facts is None else replace(facts, rank=rank)
        return pickle.dumps((known, self._replays.replay, self._replays.experiments))
