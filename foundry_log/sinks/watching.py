"""Histograms of a model's gradients and parameters, taken in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BINS = 64
LOGS = ("gradients", "parameters", "all")

Histogram = tuple[list[float], list[float]]
"""Counts, and the edges of their bins: one more."""


class Watch:
    """Hooks on the parameters of a torch module; each costs a histogram every `log_freq` passes.

    Nothing is raised into the backward pass.

    Args:
        model: a `torch.nn.Module`; what of it has a gradient is watched.
        log: `gradients`, `parameters` or `all`.
        log_freq: backward passes from one histogram to the next, 1 or more; the first has one.
        take: is given a name such as `gradients/layer.weight`, and the histogram; on the thread of
            the backward pass.
        fail: is given what goes wrong.

    Raises:
        TypeError: `model` is no module.
        ValueError: `log` or `log_freq` is out of range.
    """

    def __init__(
        self,
        model: Any,
        log: str,
        log_freq: int,
        take: Callable[[str, Histogram], object],
        fail: Callable[[Exception], object],
    ) -> None:
        if not callable(getattr(model, "named_parameters", None)):
            raise TypeError(f"model={model!r} is no torch.nn.Module")
        if log not in LOGS:
            raise ValueError(f"log={log!r} is nothing to watch; use one of {', '.join(LOGS)}")
        if log_freq < 1:
            raise ValueError(f"log_freq={log_freq} must be 1 or more backward passes")
        self._log = log
        self._log_freq = log_freq
        self._take = take
        self._fail = fail
        self._handles = [
            parameter.register_hook(self._hook(name, parameter))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str, parameter: Any) -> Callable[[Any], None]:
        passes = 0

        def hook(gradient: Any) -> None:
            nonlocal passes
            passes += 1
            if (passes - 1) % self._log_freq:
                return
            try:
                if self._log != "parameters":
                    self._send(f"gradients/{name}", gradient)
                if self._log != "gradients":
                    self._send(f"parameters/{name}", parameter)
            except Exception as error:
                self._fail(error)

        return hook

    def _send(self, name: str, tensor: Any) -> None:
        found = histogram(tensor)
        if found is not None:
            self._take(name, found)


def histogram(tensor: Any) -> Histogram | None:
    """Return the histogram of a tensor's finite values; None where there is none."""
    values = tensor.detach().float().flatten()
    values = values[values.isfinite()]
    if not values.numel():
        return None
    low, high = values.min().item(), values.max().item()
    if low == high:
        return [float(values.numel())], [low, high]
    counts = values.histc(BINS, low, high).tolist()
    return counts, [low + (high - low) * n / BINS for n in range(BINS + 1)]
