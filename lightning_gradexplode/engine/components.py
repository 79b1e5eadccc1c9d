"""The components of one training run, built once and shared by the phases of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_gradexplode.arguments import Arguments
from lightning_gradexplode.distributed.exchange import StepExchange
from lightning_gradexplode.engine.accumulation import AccumulationWindow
from lightning_gradexplode.engine.agreement import Agreement
from lightning_gradexplode.engine.calm_steps import CalmSteps
from lightning_gradexplode.engine.clipping import GradientClipper
from lightning_gradexplode.engine.current_batch import CurrentBatch
from lightning_gradexplode.engine.device_guard import DeviceGuard
from lightning_gradexplode.engine.diagnoses import Diagnoses
from lightning_gradexplode.engine.evidence import EvidenceCollector
from lightning_gradexplode.engine.findings import FindingLog
from lightning_gradexplode.engine.loss_graphs import LossGraphs
from lightning_gradexplode.engine.optimizers import OptimizerList
from lightning_gradexplode.engine.reporting import IncidentReporter
from lightning_gradexplode.engine.responses import ResponseRunner
from lightning_gradexplode.engine.schedule import LoggingSchedule
from lightning_gradexplode.engine.state import VERSION, load_parts, save_parts, upgraded
from lightning_gradexplode.engine.step import Step
from lightning_gradexplode.engine.step_inputs import StepInputKeeper
from lightning_gradexplode.hosts.base import TrainingLoop
from lightning_gradexplode.loggers import LoggerCollection
from lightning_gradexplode.loggers.console import Console
from lightning_gradexplode.measure.module_gradients import ModuleGradientProbe
from lightning_gradexplode.records import Finding, Severity, StepRecord


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """The components of one training run.

    Args:
        arguments: The monitor's arguments.
        loop: The training loop.
        is_automatic: Whether the loop itself calls backward and the optimizer.
        acts: Whether a response may change the run.
        is_distributed: Whether the run has several processes.
        counts_end_of_backward: The attribute of the loop, read once at the start.
        gradients_are_final: The attribute of the loop, read once at the start.
        may_change_gradients: The attribute of the loop, read once at the start.
        batch: The current batch.
        optimizers: The optimizers with their states.
        exchange: The exchange between processes.
        agreement: Makes all processes use the same findings and thresholds.
        schedule: The steps at which scalars and histograms are due.
        window: The losses and gradients of the current accumulation window.
        calm_steps: Steps that can show no rise.
        clipper: Applies the clip policies.
        device_guard: Holds back non-finite updates on their device, if the numbers are read later.
        responses: The responses to CRITICAL findings.
        loggers: The loggers.
        console: The console; None on processes that do not log.
        evidence: The evidence of incidents.
        inputs: The inputs of the current step, by which it can be computed again.
        diagnoses: Diagnoses them.
        graphs: What was read from the graphs of losses.
        log: The findings.
        reporter: Writes reports.
        module_gradients: Measures the error gradients of modules.
    """

    arguments: Arguments
    loop: TrainingLoop
    is_automatic: bool
    acts: bool
    is_distributed: bool
    counts_end_of_backward: bool
    gradients_are_final: bool
    may_change_gradients: bool
    batch: CurrentBatch
    optimizers: OptimizerList
    exchange: StepExchange
    agreement: Agreement
    schedule: LoggingSchedule
    window: AccumulationWindow
    calm_steps: CalmSteps
    clipper: GradientClipper
    device_guard: DeviceGuard
    responses: ResponseRunner
    loggers: LoggerCollection
    console: Console | None
    evidence: EvidenceCollector
    inputs: StepInputKeeper
    diagnoses: Diagnoses
    graphs: LossGraphs
    log: FindingLog
    reporter: IncidentReporter
    module_gradients: ModuleGradientProbe

    @classmethod
    def build(cls, arguments: Arguments, loop: TrainingLoop) -> Components:
        """Build the components of a run.

        Args:
            arguments: The monitor's arguments.
            loop: The training loop.
        """
        clips = arguments.clip is not None
        acting = [type(one).__name__ for one in arguments.responses if not one.only_warns]
        reports = loop.report_folder(arguments.report)  # first, since loggers may broadcast their folder
        exchange = StepExchange(loop.process_group)
        agreement = Agreement(exchange, arguments)
        optimizers = OptimizerList(loop, arguments)
        console = Console() if loop.is_main_process else None
        loggers = LoggerCollection(
            loop.loggers if loop.is_main_process else [], len(optimizers.states) > 1, arguments.alert_level
        )
        window = AccumulationWindow(loop)
        log = FindingLog(loggers, console, clips)
        evidence = EvidenceCollector(loop, arguments, optimizers.states, window, log.incidents)
        diagnoses = Diagnoses(evidence)
        clipper = GradientClipper(loop, clips, agreement)
        responses = ResponseRunner(loop, arguments.responses, optimizers.states)
        return cls(
            arguments=arguments,
            loop=loop,
            is_automatic=loop.is_automatic,
            acts=bool(acting),
            is_distributed=exchange.world.size > 1,
            counts_end_of_backward=loop.counts_end_of_backward,
            gradients_are_final=loop.gradients_are_final,
            may_change_gradients=loop.may_change_gradients,
            batch=CurrentBatch(number=loop.step),
            optimizers=optimizers,
            exchange=exchange,
            agreement=agreement,
            schedule=LoggingSchedule(*arguments.intervals(loop.log_every_n_steps), loop.first_step),
            window=window,
            calm_steps=CalmSteps(arguments, loop, optimizers.states, window, log, responses, clipper),
            clipper=clipper,
            # In a loop of the user's own the gradients are measured right before the step.
            device_guard=DeviceGuard(loop.may_change_gradients and not loop.counts_end_of_backward),
            responses=responses,
            loggers=loggers,
            console=console,
            evidence=evidence,
            inputs=evidence.inputs,
            diagnoses=diagnoses,
            graphs=evidence.graphs,
            log=log,
            reporter=IncidentReporter(loop, reports, log, evidence, diagnoses, loggers, console, acting),
            module_gradients=ModuleGradientProbe(loop.module, loop.process_group, loop.is_compiled),
        )

    def find(self, step: Step, record: StepRecord, is_over: bool = False) -> list[Finding]:
        """Return the findings of a step, the same on all processes if they have consequences at this step.

        Args:
            step: The step.
            record: Its record so far.
            is_over: Whether the record is complete, with the update.
        """
        agreement, detectors = self.agreement, step.state.detectors

        def check() -> list[Finding]:
            if is_over:
                return detectors.check_after_update(record, step.is_deferred)
            return detectors.check_before_update(record, is_new=not step.preliminary.is_screened)

        has_to_agree = agreement.is_needed(step) and (not is_over or detectors.can_check_after_update(record))
        findings = agreement.findings(check, detectors) if has_to_agree else check()
        if detectors.failures:
            agreement.record_failures(detectors)
            step.state.log_failures()
        return findings

    def add_findings(self, step: Step, findings: Sequence[Finding]) -> Sequence[Finding]:
        """Keep and log a step's findings; if one of them is new, scalars and histograms of the step are due.

        Returns:
            Those that are new to their incident.
        """
        step.add_findings(findings)
        new = self.keep_findings(step.number, findings)
        if any(finding.severity >= Severity.WARNING for finding in new):
            step.scalars_due, step.histograms_due = self.schedule.due(step.number)
        return new

    def keep_findings(self, number: int, findings: Sequence[Finding]) -> Sequence[Finding]:
        """Keep and log findings; if one of them is new, scalars and histograms are due from a step on.

        Returns:
            Those that are new to their incident.
        """
        new = self.log.add(findings)
        grave = [finding for finding in new if finding.severity >= Severity.WARNING]
        if grave:
            self.schedule.alert(number, [f"{finding.sign} {finding.severity}" for finding in grave])
        return new

    def state_dict(self) -> dict[str, Any]:
        """Return the state that later decisions depend on, in plain values, with a version."""
        return {"version": VERSION, "optimizers": self.optimizers.state_dicts(), **save_parts(self._parts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[str]:
        """Restore the state that `state_dict` returned, of this version or an earlier one; nothing if it is empty.

        Returns:
            A line for each part whose state does not fit and is not restored.
        """
        if not state:
            return []
        state = upgraded(state)
        return load_parts(self._parts, state) + self.optimizers.load_states(state.get("optimizers"))

    @property
    def _parts(self) -> dict[str, Any]:
        return {
            "findings": self.log,
            "schedule": self.schedule,
            "responses": self.responses,
            "diagnosis": self.diagnoses,
        }
