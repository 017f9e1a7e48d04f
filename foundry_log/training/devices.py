"""What to compute on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from foundry_log.process import memory_usage, rank_fields


def device_choice(configured: str | None) -> str:
    """Return the configured device, or where there is none `cuda` if torch has a GPU, else `cpu`.

    Under a launcher `cuda` without a number is the GPU of the local rank, or the only one that the
    process may see. Never fails; see `usable_device`.
    """
    name = configured or ("cuda" if torch.cuda.is_available() else "cpu")
    local_rank = rank_fields().get("local_rank")
    if name != "cuda" or local_rank is None or torch.cuda.device_count() < 2:
        return name
    return f"cuda:{local_rank}"


def usable_device(name: str, field: str = "training.device") -> torch.device:
    """Return the device of that name once a value has been stored on it and read back.

    Args:
        name: such as `cpu`.
        field: what the name was given as.

    Raises:
        ValueError: it is no device, or not one of this machine.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{field}={name!r} cannot be used ({reason}); this machine has "
            f"{', '.join(_usable_names())}"
        ) from error
    return device


def current(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which `device` is what torch's figures of the GPU are about."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def reproducible(device: torch.device, seed: int) -> Iterator[None]:
    """Make torch's random numbers follow from `seed`; the process's own go on afterwards."""
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        set_seed(device, seed)
        yield


def set_seed(device: torch.device, seed: int) -> None:
    """Make the random numbers of the CPU, and of the device if it is a GPU, follow from `seed`."""
    torch.default_generator.manual_seed(seed % 2**63)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed % 2**63)


def memory_in_use(device: torch.device) -> float:
    """Return GB (10^9 bytes): of the GPU, torch's allocated memory; otherwise of this process."""
    usage = memory_usage()
    return usage.get("gpu_allocated", 0.0) if device.type == "cuda" else usage["rss"]


def _usable_names() -> list[str]:
    names = ["'cpu'", *(f"'cuda:{number}'" for number in range(torch.cuda.device_count()))]
    return [*names, "'mps'"] if torch.backends.mps.is_available() else names
