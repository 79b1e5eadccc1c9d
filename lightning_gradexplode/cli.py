"""The command `gradexplode`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from lightning_gradexplode.loggers.wandb_rules import alert_rule_requests, alert_rules, existing_alert_rules


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and give its exit status: 0, 1 for what could not be done, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed: pip install lightning-gradexplode[wandb]")
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error}")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gradexplode", description="Helpers around GradientExplosionMonitor.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    rules = commands.add_parser(
        "wandb-rules",
        help="create or update alert rules in a W&B project",
        description="Create W&B Automations on the monitor's metrics, or bring them up to date. Needs a W&B account "
        "that may use Automations. A second call changes nothing.",
    )
    rules.add_argument("--project", required=True, help="the W&B project; it has to exist")
    rules.add_argument("--entity", help="the team or user that owns it (default: the account's own)")
    tell = rules.add_mutually_exclusive_group()
    tell.add_argument(
        "--slack", nargs="?", const=True, default=False, metavar="CHANNEL", help="send to the team's Slack integration"
    )
    tell.add_argument("--webhook", metavar="NAME", help="call the team's webhook of this name")
    what = rules.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print what would be sent, and ask no server")
    what.add_argument("--list", action="store_true", help="list the rules that are there, and change nothing")
    rules.set_defaults(run=_wandb_rules)
    return parser


def _wandb_rules(options: argparse.Namespace) -> int:
    if options.dry_run:
        requests = alert_rule_requests(options.project, slack=options.slack, webhook=options.webhook)
        print(json.dumps(requests, indent=2))
    elif options.list:
        for one in existing_alert_rules(options.project, options.entity):
            print(f"{'on ' if one.enabled else 'off'}  {one.name}  ({one.event.event_type.value})")
    else:
        for rule in alert_rules(options.project, options.entity, slack=options.slack, webhook=options.webhook):
            print(f"{rule.outcome:9}  {rule.name}  ({rule.event})")
    return 0


def _fail(message: str) -> int:
    print(f"gradexplode: {message}", file=sys.stderr)
    return 1
