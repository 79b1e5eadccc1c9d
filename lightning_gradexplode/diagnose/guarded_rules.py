"""Rules for causes, called so that one that raises does not hide the causes that the others find."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lightning_gradexplode.records import Cause, Evidence
from lightning_gradexplode.records.log import logger
from lightning_gradexplode.records.text import describe

Rule = Callable[[Evidence], "Cause | Iterable[Cause] | None"]


def causes_by(name: str, rule: Rule, evidence: Evidence) -> list[Cause]:
    """Return the causes that a rule finds; if it raises, log the error with the name of the rule and return none."""
    try:
        found = rule(evidence)
        return [found] if isinstance(found, Cause) else list(found or ())
    except Exception as error:
        logger.warning("gradexplode: the rule `%s` of the diagnosis has failed: %s", name, describe(error))
        logger.debug("gradexplode: traceback", exc_info=True)
        return []
