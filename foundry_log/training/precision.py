"""The number format of matrix products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from foundry_log.training.devices import current


class Precision:
    """Runs the forward pass in fewer bits where that is wanted; weights stay in float32.

    In float16 the loss is scaled up before the backward pass, so that small gradients are not lost
    (Micikevicius et al. 2018, "Mixed Precision Training"), and a step whose gradients overflow is
    left out.

    Args:
        name: `auto`, `float32`, `bfloat16` or `float16`; see `TrainingConfig.precision`.
        device: to compute on.

    Raises:
        ValueError: the device has no such products.

    Attributes:
        dtype: of the matrix products.
        scaler: torch's; does nothing unless `dtype` is float16.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._device = device
        self.dtype = _dtype(name, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, self.dtype)

    @property
    def name(self) -> str:
        """Such as `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return _best(device)
    if name == "float16" and device.type != "cuda":
        raise ValueError(
            f"training.precision='float16' needs a GPU, and the device is {str(device)!r}; use "
            "'bfloat16', 'float32' or 'auto'"
        )
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _best(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    with current(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
