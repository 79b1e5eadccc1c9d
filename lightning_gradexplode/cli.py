"""The command ``gradexplode``: reports in the terminal, logs of other tools, a demo, alert rules and a view for W&B."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from lightning_gradexplode import __version__, doctor, offline
from lightning_gradexplode.loggers.wandb_rules import alert_rule_requests, alert_rules, existing_alert_rules
from lightning_gradexplode.loggers.wandb_workspace import save_workspace
from lightning_gradexplode.records import ReportContent
from lightning_gradexplode.records.plain import json_safe, to_plain
from lightning_gradexplode.records.summary import verdict
from lightning_gradexplode.report import find_report, read_report, write_report
from lightning_gradexplode.report.terminal import comparison, comparison_lines, report_lines
from lightning_gradexplode.report.writer import diagnosis_json

EPILOG = """\b
Exit status:
  0  success
  1  failure; the reason is printed in one line
  2  wrong arguments
  3  with --check: the run explodes

\b
Completion:
  eval "$(_GRADEXPLODE_COMPLETE=bash_source gradexplode)"    (or zsh_source)
  _GRADEXPLODE_COMPLETE=fish_source gradexplode | source
"""

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

_EXTRAS = {"wandb": "wandb", "wandb_workspaces": "wandb", "plotly": "report", "click": "cli", "rich": "cli"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # Windows writes files in an encoding without the blocks of curves
    try:
        status = command.main(arguments, prog_name="gradexplode", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.UsageError as error:
        error.show()
        return 2
    except click.Abort:
        return 1
    except BrokenPipeError:
        # Standard output is closed; without this the interpreter would raise when it flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(error.name or "")
        hint = f': pip install "lightning-gradexplode[{extra}]"' if extra else ""
        return _fail(f"{error.name} is not installed{hint}")
    except (OSError, ValueError, ImportError) as error:
        return _fail(str(error))
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error}")


@click.group(epilog=EPILOG)
@click.version_option(__version__, package_name="lightning-gradexplode")
def command() -> None:
    """Find out why the gradients of a run explode: read its report, or a log of any tool."""


@command.command()
@click.argument("folder", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--check", is_flag=True, help="Exit with status 3 if the run explodes.")
def show(folder: Path, as_json: bool, check: bool) -> int:
    """Print the report of a run: what happened, causes, curves.

    FOLDER contains the report. If it has none, the latest report below it is printed.
    """
    return _show(_report_of(folder), as_json, check)


@command.command()
@click.argument("folder", type=FOLDER)
def report(folder: Path) -> None:
    """Write the HTML page of a report again.

    It is written from the steps recorded in FOLDER, also for a run that ended abnormally. Its path is printed.
    """
    found = find_report(folder)
    click.echo(str(write_report(found, read_report(found)).page))


@command.command()
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Compare the reports of two runs.

    FIRST and SECOND contain the reports. Differences are marked by an asterisk.
    """
    table = comparison(*(_report_of(folder) for folder in (first, second)))
    if as_json:
        _echo_json({name: {"first": one, "second": other} for name, one, other in table})
    else:
        _echo(comparison_lines(table, shutil.get_terminal_size().columns))


@command.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--loss", help="Column or metric of the loss (default: found by its name).")
@click.option("--grad-norm", help="Column or metric of the gradient norm (default: found by its name).")
@click.option("--learning-rate", help="Column or metric of the learning rate (default: found by its name).")
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Write a report into this folder, too."
)
@click.option("--json", "as_json", is_flag=True, help="Print findings and diagnosis as JSON.")
@click.option("--check", is_flag=True, help="Exit with status 3 if the run explodes.")
def diagnose(
    log: Path,
    loss: str | None,
    grad_norm: str | None,
    learning_rate: str | None,
    output: Path | None,
    as_json: bool,
    check: bool,
) -> int:
    """Find explosions, and their causes, in a log of any tool.

    LOG is a CSV file, a TensorBoard event file, an offline W&B run, or a folder; of the logs below a folder the latest
    is used.
    """
    file = offline.latest_log(log) if log.is_dir() else log
    metrics = offline.read_metrics(file)
    if file != log:
        click.echo(f"Log: {file}", err=True)
    if (own := file.parent / "gradexplode" / "steps.npz").exists():
        click.echo(f"The run was monitored; gradexplode show {own.parent} prints its own diagnosis", err=True)
    content = offline.examine(
        metrics,
        log.resolve().name,
        offline.find_metric(metrics, loss, "loss"),
        offline.find_metric(metrics, grad_norm, "grad", "norm"),
        offline.find_metric(metrics, learning_rate, "lr") or offline.find_metric(metrics, None, "learning", "rate"),
    )
    if output is not None:
        click.echo(str(write_report(output, content).page), err=True)
    return _show(content, as_json, check)


@command.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("gradexplode-demo"),
    help="Folder for the logs and reports.",
    show_default=True,
)
def demo(folder: Path) -> None:
    """Train a small network whose gradients explode.

    It is trained again with clipping. This takes less than a minute and downloads nothing.
    """
    from lightning_gradexplode import demo as program

    _echo(program.run(folder))


@command.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def doctor_command(as_json: bool) -> None:
    """Print installed versions and what they support."""
    table = doctor.examine()
    if as_json:
        _echo_json(dict(table))
    else:
        _echo(f"{name:22} {text}" for name, text in table)


@command.command()
@click.option("--project", required=True, help="The W&B project; it must exist.")
@click.option("--entity", help="The team or user that owns it (default: the account's own).")
@click.option(
    "--slack",
    is_flag=False,
    flag_value="",
    metavar="[CHANNEL]",
    help="Send alerts to the team's first Slack integration, or to that of a channel.",
)
@click.option("--webhook", metavar="NAME", help="Send alerts to the team's webhook integration of this name.")
@click.option("--dry-run", is_flag=True, help="Print the rules without contacting the server.")
@click.option("--list", "is_list", is_flag=True, help="List the existing rules, and change nothing.")
def wandb_rules(
    project: str, entity: str | None, slack: str | None, webhook: str | None, dry_run: bool, is_list: bool
) -> None:
    """Create or update alert rules in a W&B project.

    Running the command again changes nothing.
    """
    if slack is not None and webhook:
        raise click.UsageError("--slack and --webhook cannot be combined")
    if dry_run and is_list:
        raise click.UsageError("--dry-run and --list cannot be combined")
    channel = slack or slack is not None
    if dry_run:
        _echo_json(alert_rule_requests(project, slack=channel, webhook=webhook))
    elif is_list:
        for one in existing_alert_rules(project, entity):
            click.echo(f"{'on ' if one.enabled else 'off'}  {one.name}  ({one.event.event_type.value})")
    else:
        for rule in alert_rules(project, entity, slack=channel, webhook=webhook):
            click.echo(f"{rule.outcome:9}  {rule.name}  ({rule.event})")


@command.command()
@click.option("--project", required=True, help="The W&B project.")
@click.option("--entity", required=True, help="The team or user that owns it.")
@click.option("--name", default="Gradient explosion", show_default=True, help="Name of the saved view.")
def wandb_workspace(project: str, entity: str, name: str) -> None:
    """Save a view with the monitor's panels in a W&B project.

    Its URL is printed.
    """
    click.echo(save_workspace(project, entity, name))


def _report_of(folder: Path) -> ReportContent:
    """Return the report in a folder, or the latest one below it, whose folder is then printed."""
    found = find_report(folder)
    content = read_report(found)
    if found != folder:
        click.echo(f"Report: {found}", err=True)
    return content


def _show(content: ReportContent, as_json: bool, check: bool) -> int:
    if as_json:
        _echo_json({**diagnosis_json(content), "findings": [finding.as_dict() for finding in content.findings]})
    else:
        _echo(report_lines(content, shutil.get_terminal_size().columns))
    return 3 if check and verdict(content.diagnosis, content.findings) == "exploding" else 0


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _echo_json(plain: Any) -> None:
    click.echo(json.dumps(json_safe(to_plain(plain)), indent=2, allow_nan=False))


def _fail(message: str) -> int:
    print(f"gradexplode: {' '.join(message.split())}", file=sys.stderr)
    return 1
