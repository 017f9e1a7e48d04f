"""What a run needs, besides weights and optimizer, to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from foundry_log.training.ranks import Ranks


def agreed(value: int, ranks: Ranks) -> int:
    """Return the first rank's value, once every rank has come here."""
    return int(of_each(value, ranks)[0])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's generators, the CPU's and the device's."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Bring back what `random_state` gave, as far as this device has it."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def check_same_data(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose place in the data is another one in this run's.

    Args:
        found: what decides the order of the examples, of the checkpoint's run.
        expected: the same of this run.

    Raises:
        ValueError: they differ; each difference is named.
    """
    differences = [
        f"{name}={expected[name]!r}, and the checkpoint's run had {found.get(name)!r}"
        for name in expected
        if found.get(name) != expected[name]
    ]
    if differences:
        raise ValueError(
            "The place in the data cannot be found again: this run has "
            + "; ".join(differences)
            + ". Use the values of the checkpoint's run, or train without resume"
        )


def of_each(value: Any, ranks: Ranks) -> list[Any]:
    """Return the value of each rank, first to last; a collective of all. Tensors are the CPU's."""
    if ranks.size == 1:
        return [value]
    values = [None] * ranks.size
    dist.all_gather_object(values, value)
    return values
