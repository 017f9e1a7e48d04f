"""What the environment says of the model: its deployment, where it is, and who asks it."""

from __future__ import annotations

import os
from collections.abc import Sequence

_VERSION = ("APP_OPENAI_API_VERSION", "AZURE_OPENAI_API_VERSION")
_ENDPOINT = ("APP_OPENAI_API_BASE", "AZURE_OPENAI_ENDPOINT")
_MODEL = ("APP_OPENAI_ENGINE", "AZURE_OPENAI_DEPLOYMENT_NAME")
_KEY = ("APP_OPENAI_API_KEY", "AZURE_OPENAI_API_KEY")
_BUDGET = ("COUNTER_APP_BASE_URL", "TOKEN_COUNTER_URL")


def settings(model: str | None, *, needs_client: bool, needs_budget: bool) -> dict[str, str]:
    """Return `model` and `key`, and what else is needed: `version`, `endpoint`, `budget`.

    Args:
        model: name of the deployment; None for the environment's.
        needs_client: whether an openai client is to be made.
        needs_budget: whether the budget server is the environment's.

    Raises:
        ValueError: something is missing; all that is, is named.
    """
    names = {"model": _MODEL}
    found = {"model": model or _variable(_MODEL)}
    if needs_client:
        names |= {"version": _VERSION, "endpoint": _ENDPOINT}
        found |= {"version": _variable(_VERSION), "endpoint": _variable(_ENDPOINT)}
    if needs_budget:
        names["budget"] = _BUDGET
        found["budget"] = _budget_url()
    missing = [" or ".join(names[name]) for name, value in found.items() if not value]
    if missing:
        raise ValueError(f"environment variables are missing: set {'; '.join(missing)}")
    return {**found, "key": _variable(_KEY)}


def _variable(names: Sequence[str]) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _budget_url() -> str:
    """Return what a `TokenClient` takes: an empty first variable hides the second there, too."""
    own, other = _BUDGET
    return os.environ.get(own, os.environ.get(other, "")).strip()
