"""What travels between the folders of the package: plain, frozen records.

A record holds numbers and names only, never a tensor or a trainer, so that detectors, logger adapters and reports can
be written and tested without anything else.
"""

from lightning_gradexplode.records.arrays import FloatArray, IntArray
from lightning_gradexplode.records.batch_facts import BatchFacts, FieldFacts, ReadAs
from lightning_gradexplode.records.combine import combine
from lightning_gradexplode.records.diagnosis import CAUSE_KINDS, Cause, Diagnosis
from lightning_gradexplode.records.evidence import Attempt, Evidence, History
from lightning_gradexplode.records.finding import Finding, Severity
from lightning_gradexplode.records.histogram import BUCKET_EDGES, Histogram
from lightning_gradexplode.records.module_gradients import ModuleGradients
from lightning_gradexplode.records.norms import Norms
from lightning_gradexplode.records.replay import (
    Activation,
    AppliedWeight,
    Experiments,
    LossTerm,
    Operand,
    Operation,
    OwnFunction,
    Replay,
    StartTrial,
    UpdateFault,
)
from lightning_gradexplode.records.report import Report, ReportContent
from lightning_gradexplode.records.run_facts import ModuleFacts, OptimizerFacts, ParameterFacts, RunFacts
from lightning_gradexplode.records.step_record import LEFT_OUT, StepRecord

__all__ = [
    "BUCKET_EDGES",
    "CAUSE_KINDS",
    "LEFT_OUT",
    "Activation",
    "AppliedWeight",
    "Attempt",
    "BatchFacts",
    "Cause",
    "Diagnosis",
    "Evidence",
    "Experiments",
    "FieldFacts",
    "Finding",
    "FloatArray",
    "Histogram",
    "History",
    "IntArray",
    "LossTerm",
    "ModuleFacts",
    "ModuleGradients",
    "Norms",
    "Operand",
    "Operation",
    "OptimizerFacts",
    "OwnFunction",
    "ParameterFacts",
    "ReadAs",
    "Replay",
    "Report",
    "ReportContent",
    "RunFacts",
    "Severity",
    "StartTrial",
    "StepRecord",
    "UpdateFault",
    "combine",
]
