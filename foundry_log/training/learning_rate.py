"""The learning rate's course."""

from __future__ import annotations

import math

FLOOR = 0.1
"""Part of the peak that is left at the last step."""


def learning_rate(step: int, total_steps: int, peak: float, warmup_steps: int) -> float:
    """Return the rate of a step: a line up to `peak`, then a cosine down to a tenth of it.

    Source: Loshchilov and Hutter 2017, "SGDR", without restarts.

    Args:
        step: from 1 to `total_steps`.
        total_steps: of the run.
        peak: the highest rate, reached at step `warmup_steps`.
        warmup_steps: steps of the line; 0 starts at the peak.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    course = max(1, total_steps - warmup_steps)
    done = min(1.0, (step - warmup_steps) / course)
    return peak * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2)
