"""The monitor in the Trainer of Hugging Face Transformers, against float64 and against the run without it."""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_gradexplode import ExplosionError
from lightning_gradexplode.testing import RecordingLogger
from tests.hosts.details import check_details
from tests.hosts.loops import exact_norm, same_weights
from tests.torch_versions import needs_graph_values

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import accelerate
import transformers

from lightning_gradexplode.hosts.transformers import GradientExplosionTrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


ROUNDING = 0.0 if int(transformers.__version__.partition(".")[0]) >= 5 else 5.1e-5
"""What a logged loss may be off by: before version 5 the Trainer rounds it to four digits."""


def language_model() -> Any:
    """Return a GPT-2 of one layer with random weights."""
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 12, "vocab_size": 40}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def sentences(count: int = 36) -> list[dict[str, Tensor]]:
    """Return sequences of token numbers."""
    tokens = torch.randint(0, 40, (count, 12), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


class Probe(transformers.TrainerCallback):  # type: ignore[misc]
    """Keeps what the last micro-batch's backward pass has left, from a hook on every parameter."""

    def __init__(self, model: nn.Module, monitor: GradientExplosionTrainerCallback | None) -> None:
        self.model, self.monitor = model, monitor
        self.truths: list[float] = []
        self.recorded: list[tuple[int, float | None, float | None]] = []
        self.details: list[tuple[Any, dict[str, Any]]] = []
        self._latest: dict[nn.Parameter, Tensor] = {}
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self._keep)  # type: ignore[no-untyped-call]

    def _keep(self, parameter: Any) -> None:
        self._latest[parameter] = parameter.grad.detach().double().clone()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        norms = torch.stack([one.norm() for one in self._latest.values()])
        self.truths.append(float(norms.norm()))
        last = None if self.monitor is None else self.monitor.last
        if last is not None:
            self.recorded.append((last.step, last.grad_norm, last.loss))
            latest = {self._names[one]: gradient.flatten().numpy() for one, gradient in self._latest.items()}
            self.details.append((last, latest))


def train(
    folder: Path,
    monitor: GradientExplosionTrainerCallback | None,
    model: Any = None,
    resume: bool = False,
    data: Any = None,
    kind: Any = None,
    **arguments: Any,
) -> tuple[Any, Probe, Any]:
    """Train; return the model, what the probe kept, and the trainer."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
        "seed": 3,
        **arguments,
    }
    model = language_model() if model is None else model
    probe = Probe(model, monitor)
    callbacks = [*([] if monitor is None else [monitor]), probe]
    trainer = (kind or transformers.Trainer)(
        model=model,
        args=transformers.TrainingArguments(**settings),
        train_dataset=sentences() if data is None else data,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return model, probe, trainer


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"max_grad_norm": 0.05},
        {"gradient_accumulation_steps": 4, "max_grad_norm": 0.05},
        {"num_train_epochs": 2, "max_steps": -1, "gradient_accumulation_steps": 2},
        {"bf16": True},
        {"optim": "sgd", "lr_scheduler_type": "cosine"},
        {"torch_compile": True, "torch_compile_backend": "eager", "max_grad_norm": 0.05},
        {"gradient_checkpointing": True, "max_grad_norm": 0.05},
    ],
)
def test_norm_and_loss_are_those_of_the_step(arguments: dict[str, Any], tmp_path: Path) -> None:
    """The norm is float64's before clipping, the loss the one that the Trainer logs, the weights those without us."""
    monitor = GradientExplosionTrainerCallback(report=False)
    model, probe, trainer = train(tmp_path, monitor, **arguments)
    plain, _, _ = train(tmp_path, None, **arguments)
    assert not monitor.failed
    assert same_weights(model, plain)
    assert [step for step, _, _ in probe.recorded] == list(range(1, trainer.state.global_step + 1))
    assert [norm for _, norm, _ in probe.recorded] == pytest.approx(probe.truths, rel=1e-9)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    rel = 1e-2 if "bf16" in arguments else 1e-4
    assert [loss for _, _, loss in probe.recorded] == pytest.approx(logged, rel=rel, abs=ROUNDING)
    assert monitor.last is not None
    assert trainer.state.log_history[-2]["gradexplode/grad_norm"] == pytest.approx(probe.truths[-1], rel=1e-9)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("accumulate", [1, 3])
def test_details_are_those_before_the_clipping_of_the_trainer(accumulate: int, tmp_path: Path) -> None:
    """Largest element and histograms are those before ``max_grad_norm``, the norm after it is the other number."""
    monitor = GradientExplosionTrainerCallback(report=False, histogram_every_n_steps=1)
    _, probe, _ = train(tmp_path, monitor, max_grad_norm=0.05, gradient_accumulation_steps=accumulate)
    assert len(probe.details) == 8
    for record, gradients in probe.details:
        check_details(record, gradients)
        assert record.grad_norm_clipped == pytest.approx(0.05, rel=1e-3)


def test_scalars_are_logged_at_the_steps_of_the_trainer(tmp_path: Path) -> None:
    """With logging_steps=2 every second step of the Trainer's own count is logged."""
    log = RecordingLogger()
    train(tmp_path, GradientExplosionTrainerCallback(loggers=[log], report=False), logging_steps=2)
    assert [step for step, _ in log.values("gradexplode/grad_norm")] == [2, 4, 6, 8]


def test_a_step_that_the_scaler_leaves_out_is_a_finding(tmp_path: Path) -> None:
    """An overflow in half precision is found at its step, the norms are unscaled, and training goes on."""

    class Scaled(transformers.Trainer):  # type: ignore[misc]
        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-116)
            return super().create_optimizer(*args, **kwargs)

    monitor = GradientExplosionTrainerCallback(report=False)
    _, probe, trainer = train(tmp_path, monitor, kind=Scaled, max_grad_norm=0.0)
    scale = trainer.accelerator.scaler.get_scale()
    assert {one.step for one in monitor.findings if one.sign == "nonfinite-gradient"} == {1}
    assert not monitor.exploded
    norms = [norm for _, norm, _ in probe.recorded][1:]
    assert norms == pytest.approx([truth / scale for truth in probe.truths[1:]], rel=1e-6)
    assert monitor.last is not None
    assert monitor.last.step == 8


def test_stop_ends_the_training(tmp_path: Path) -> None:
    """A rate that is far too high explodes; the Trainer stops at that step, and the report explains it."""
    monitor = GradientExplosionTrainerCallback(on_explosion="stop")
    settings: dict[str, Any] = {"optim": "sgd", "learning_rate": 300.0, "max_grad_norm": 0.0}
    _, _, trainer = train(tmp_path, monitor, max_steps=60, lr_scheduler_type="constant", **settings)
    assert monitor.exploded
    assert trainer.state.global_step < 60
    assert monitor.report_folder == tmp_path / "gradexplode"
    assert (tmp_path / "gradexplode" / "index.html").exists()
    diagnosis = monitor.diagnosis()
    assert diagnosis is not None
    kinds = [cause.kind for cause in diagnosis.causes]
    assert "learning-rate" in kinds
    assert "accumulated-gradients" not in kinds  # the Trainer's sum over tokens is divided by their number


def test_the_first_step_is_not_taken_for_that_of_a_resumed_run(tmp_path: Path) -> None:
    """Adam without a state at the Trainer's step 1 is usual; a rate far too high is the cause."""
    monitor = GradientExplosionTrainerCallback(on_explosion="stop", report=False)
    train(tmp_path, monitor, learning_rate=300.0, max_grad_norm=0.0, lr_scheduler_type="constant")
    diagnosis = monitor.diagnosis()
    assert diagnosis is not None
    assert [cause.kind for cause in diagnosis.causes][:1] == ["learning-rate"]
    assert "optimizer-state" not in [cause.kind for cause in diagnosis.causes]


def test_raise_leaves_no_hook_behind(tmp_path: Path) -> None:
    """The error comes out of train(), and the model has no hook of ours any more."""
    model = language_model()
    monitor = GradientExplosionTrainerCallback(on_explosion="raise", report=False)
    settings: dict[str, Any] = {"optim": "sgd", "learning_rate": 300.0, "max_grad_norm": 0.0, "max_steps": 60}
    with pytest.raises(ExplosionError):
        train(tmp_path, monitor, model=model, lr_scheduler_type="constant", **settings)
    assert monitor.exploded
    assert not model._forward_hooks


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_nonfinite_batch_is_skipped_and_named(accumulate: int, tmp_path: Path) -> None:
    """With "skip" a batch with NaN does not reach the weights; it is named if it is any micro-batch of its step."""

    class Classifier(nn.Module):
        """A model with inputs of numbers."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
            logits = self.layer(inputs)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = [{"inputs": torch.randn(4), "labels": torch.tensor(number % 2)} for number in range(32)]
    rows[17]["inputs"][2] = float("nan")
    monitor = GradientExplosionTrainerCallback(on_explosion="skip", report=False)
    model, _, _ = train(tmp_path, monitor, model=Classifier(), data=rows, gradient_accumulation_steps=accumulate)
    assert all(bool(one.isfinite().all()) for one in model.parameters())
    diagnosis = monitor.diagnosis()
    assert diagnosis is not None
    assert diagnosis.causes[0].kind == "nonfinite-input"
    assert monitor.last is not None
    assert monitor.last.step == 8


def test_a_resumed_run_decides_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    """The state goes through trainer_state.json; the thresholds of clip="auto" and the weights are equal."""
    arguments: dict[str, Any] = {"max_steps": 40, "save_strategy": "steps", "save_steps": 20, "save_total_limit": 5}
    whole = GradientExplosionTrainerCallback(clip="auto", report=False)
    one, _, _ = train(tmp_path / "a", whole, **arguments)
    resumed = GradientExplosionTrainerCallback(clip="auto", report=False)
    half = tmp_path / "a" / "checkpoint-20"
    saved = json.loads((half / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["gradexplode"]["version"]
    other, _, _ = train(tmp_path / "b", resumed, resume=half, **arguments)  # type: ignore[arg-type]
    assert same_weights(one, other)
    assert whole.last is not None
    assert resumed.last is not None
    assert resumed.last.step == 40
    assert resumed.last.clip_val == whole.last.clip_val


@pytest.mark.parametrize("announced", [False, True])
def test_a_loss_of_ones_own(announced: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A loss that is computed from the logits: norm and loss are those of the Trainer, also if it is announced."""
    monitor = GradientExplosionTrainerCallback(report=False)

    class Own(transformers.Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            outputs = model(input_ids=inputs["input_ids"])
            loss = outputs.logits.square().mean()
            if announced:
                monitor.loss(loss)
            return (loss, outputs) if return_outputs else loss

    _, probe, trainer = train(tmp_path, monitor, kind=Own, max_grad_norm=0.01, gradient_accumulation_steps=2)
    assert [norm for _, norm, _ in probe.recorded] == pytest.approx(probe.truths, rel=1e-9)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    losses = [loss for _, _, loss in probe.recorded]
    assert losses == pytest.approx(logged, rel=1e-4, abs=ROUNDING)
    assert not [one for one in caplog.messages if "is not known" in one]


@pytest.mark.parametrize("how", ["label smoothing", "compute_loss_func"])
def test_the_loss_is_known_where_the_trainer_computes_it(how: str, tmp_path: Path) -> None:
    """With label smoothing, or by a function of the user's; in two micro-batches each."""

    def by_logits(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        total: Tensor = nn.functional.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten(), reduction="sum")
        return total / float(num_items_in_batch)

    class Function(transformers.Trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, compute_loss_func=by_logits, **kwargs)

    monitor = GradientExplosionTrainerCallback(report=False)
    settings: dict[str, Any] = {"label_smoothing_factor": 0.1} if how == "label smoothing" else {"kind": Function}
    _, probe, trainer = train(tmp_path, monitor, gradient_accumulation_steps=2, **settings)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert [loss for _, _, loss in probe.recorded] == pytest.approx(logged, rel=1e-4, abs=ROUNDING)


def test_accelerate_is_as_before_after_a_run(tmp_path: Path) -> None:
    """Its method is replaced while the Trainer trains."""
    original = accelerate.Accelerator.backward
    train(tmp_path, GradientExplosionTrainerCallback(report=False))
    assert accelerate.Accelerator.backward is original


@needs_graph_values
def test_the_cause_is_found_in_a_loss_of_ones_own(tmp_path: Path) -> None:
    """The graph of the loss is read, though the Trainer holds the loss only divided, and no step can be replayed."""
    monitor = GradientExplosionTrainerCallback(report=False)
    targets = [torch.full((8,), 0.5) for _ in range(16)]
    targets[5][1] = math.nan

    class Own(transformers.Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            result = model(inputs["input_ids"]).logits.mean((1, 2))
            return torch.nn.functional.mse_loss(result, targets.pop(0)[: len(result)])

    train(tmp_path, monitor, kind=Own)
    diagnosis = monitor.diagnosis()
    assert diagnosis is not None
    assert (diagnosis.causes[0].kind, diagnosis.causes[0].where) == ("nonfinite-target", "target of mse_loss, row 1")


def test_a_loss_that_the_model_computes_beside_the_one_that_is_trained_is_no_evidence(tmp_path: Path) -> None:
    """The model gets the labels, and the loss is one of preferences, as in trainers of other packages."""

    class Preferences(transformers.Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            scores = model(**inputs).logits.log_softmax(-1).gather(-1, inputs["labels"][..., None]).sum((1, 2))
            return -nn.functional.logsigmoid(scores[::2] - scores[1::2]).mean()

    monitor = GradientExplosionTrainerCallback(report=False)
    train(tmp_path, monitor, kind=Preferences, learning_rate=1.0, max_grad_norm=0.0, max_steps=20)
    diagnosis = monitor.diagnosis()
    assert diagnosis is not None
    assert diagnosis.causes[0].kind == "learning-rate"


@pytest.mark.parametrize("announced", [False, True])
def test_no_output_outlives_its_step(announced: bool, tmp_path: Path) -> None:
    """The hooks of a model's outputs and of a loss do not keep them, and with them the graphs of their steps."""
    monitor = GradientExplosionTrainerCallback(report=False)
    outputs: list[weakref.ref[Tensor]] = []

    class Watched(transformers.Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            output = model(**inputs)
            if announced:
                monitor.loss(output.loss)
            outputs.extend(map(weakref.ref, (output.loss, output.logits)))
            return output.loss

    train(tmp_path, monitor, kind=Watched)
    assert len(outputs) == 16
    assert not any(one() is not None for one in outputs)


def test_label_smoothing_and_evaluation_do_not_disturb_the_norm(tmp_path: Path) -> None:
    """Forward passes of an evaluation are not the step's."""

    class Evaluating(transformers.Trainer):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, eval_dataset=sentences(8), **kwargs)

    monitor = GradientExplosionTrainerCallback(report=False)
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "label_smoothing_factor": 0.1}
    _, probe, _ = train(tmp_path, monitor, kind=Evaluating, **settings)
    assert [step for step, _, _ in probe.recorded] == list(range(1, 9))
    assert [norm for _, norm, _ in probe.recorded] == pytest.approx(probe.truths, rel=1e-9)


def test_the_model_can_be_copied_and_pickled_while_it_is_trained(tmp_path: Path) -> None:
    """A copy has hooks that do nothing, as callbacks that keep an average of the weights make one."""
    copies: list[Any] = []

    class Copies(transformers.Trainer):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if not copies:
                copies.extend([copy.deepcopy(self.model), pickle.loads(pickle.dumps(self.model))])
            return super().training_step(*args, **kwargs)

    monitor = GradientExplosionTrainerCallback(report=False)

    model = language_model()
    Copies(
        model=model,
        args=transformers.TrainingArguments(output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True),
        train_dataset=sentences(),
        callbacks=[monitor],
    ).train()
    for one in copies:
        one.train()
        one(**{name: value[None] for name, value in sentences(1)[0].items()}).loss.backward()
    assert monitor.last is not None
    assert monitor.last.step == 2


def test_tensorboard_gets_scalars_and_histograms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written to the folder of the Trainer's own log, or one beside it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    train(
        tmp_path, GradientExplosionTrainerCallback(report=False, histogram_every_n_steps=4), report_to=["tensorboard"]
    )
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("gradexplode/grad_norm")] == list(range(1, 9))
    assert events.Tags()["histograms"]


def test_loggers_that_are_not_known_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Scalars then go to the file."""
    monitor = GradientExplosionTrainerCallback(report=False)
    with caplog.at_level(logging.WARNING):
        args = transformers.TrainingArguments(output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True)
        trainer = transformers.Trainer(language_model(), args, train_dataset=sentences(), callbacks=[monitor])
        args.report_to = ["dvclive"]
        trainer.train()
    assert len([one for one in caplog.messages if "nothing is written to dvclive" in one]) == 1
    assert (tmp_path / "gradexplode.csv").exists() or monitor.last is not None


def test_the_probe_agrees_with_that_of_other_loops() -> None:
    """The number of the probe is that of the helper of the other tests."""
    model = language_model()
    model(**{name: value[None] for name, value in sentences(1)[0].items()}).loss.backward()
    norms = torch.stack([one.grad.double().norm() for one in model.parameters() if one.grad is not None])
    assert float(norms.norm()) == pytest.approx(exact_norm(model.parameters()), rel=1e-12)
