"""Errors that mean that memory ran out, and what was in use when they came."""

from __future__ import annotations

from typing import Any

import torch

from foundry_log.encoding import exception_text
from foundry_log.process import memory_usage
from foundry_log.training.devices import current

_TEXTS = ("DefaultCPUAllocator", "not enough memory", "out of memory")
"""In the RuntimeErrors of torch's CPU allocator, of the CUDA driver, and of other devices."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, the host's or a device's. Never raises."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in exception_text(error) for text in _TEXTS)


def memory_context(error: BaseException, device: torch.device | str) -> dict[str, Any]:
    """Return what helps to understand an error that means that memory ran out; `{}` for others.

    `memory_gb` as of `process.memory_usage`, and on a CUDA device `allocator_summary`, the text of
    `torch.cuda.memory_summary`. What cannot be had is left out. Never raises.

    Args:
        error: what was raised.
        device: that was computed on.
    """
    if not is_out_of_memory(error):
        return {}
    context: dict[str, Any] = {}
    try:
        device = torch.device(device)
        with current(device):
            context["memory_gb"] = memory_usage()
        if device.type == "cuda":
            context["allocator_summary"] = torch.cuda.memory_summary(device)
    except Exception:
        pass  # an error that is being logged must not be replaced by another
    return context
