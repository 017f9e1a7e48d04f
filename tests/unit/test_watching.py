"""Histograms of gradients and parameters, and what they never do to the backward pass."""

from __future__ import annotations

import math
from typing import Any

import pytest

from foundry_log.sinks.watching import BINS, Histogram, Watch, histogram

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
torch.set_num_threads(1)

pytestmark = pytest.mark.unit


def watched(log: str = "gradients", log_freq: int = 1) -> tuple[Any, Watch, list[Any], list[Any]]:
    """A model, its watch, what that has taken, and what has failed."""
    model = torch.nn.Linear(2, 1)
    taken: list[Any] = []
    failed: list[Any] = []
    watch = Watch(model, log, log_freq, lambda *got: taken.append(got), failed.append)
    return model, watch, taken, failed


def backward(model: Any) -> None:
    """One backward pass."""
    model(torch.tensor([[1.0, 2.0]])).sum().backward()


def test_a_histogram_has_every_finite_value() -> None:
    """Counts add up, the edges are lowest and highest."""
    values = torch.tensor([[1.0, math.nan, 3.0], [2.0, math.inf, 2.0]])
    counts, edges = histogram(values) or ([], [])
    assert (sum(counts), len(counts), len(edges)) == (4, BINS, BINS + 1)
    assert (edges[0], edges[-1]) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("values", "found"),
    [([], None), ([math.nan], None), ([2.0, 2.0], ([2.0], [2.0, 2.0]))],
)
def test_there_may_be_nothing_to_count(values: list[float], found: Histogram | None) -> None:
    """No value, no finite one, one and the same."""
    assert histogram(torch.tensor(values)) == found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_numbers_are_counted(dtype: Any) -> None:
    """Torch's own `histc` does not know half precision everywhere."""
    counts, _ = histogram(torch.arange(10, dtype=dtype)) or ([], [])
    assert sum(counts) == 10


def test_each_pass_that_is_due_hands_on_each_tensor() -> None:
    """The first, and then each `log_freq`-th."""
    model, watch, taken, failed = watched("all", log_freq=3)
    for _ in range(4):
        backward(model)
    watch.remove()
    backward(model)

    names = [name for name, _ in taken]
    assert len(names) == 8
    assert set(names) == {
        f"{kind}/{name}" for kind in ("gradients", "parameters") for name in ("weight", "bias")
    }
    assert not failed


def test_a_failure_does_not_reach_the_backward_pass() -> None:
    """It is handed on."""

    def refuse(name: str, found: Histogram) -> None:
        raise OSError(name)

    model = torch.nn.Linear(2, 1)
    failed: list[Exception] = []
    watch = Watch(model, "gradients", 1, refuse, failed.append)
    backward(model)
    watch.remove()

    assert {str(each) for each in failed} == {"gradients/weight", "gradients/bias"}
    assert model.weight.grad is not None


@pytest.mark.parametrize(
    ("model", "log", "log_freq", "message"),
    [
        (3, "all", 1, "model=3 is no torch.nn.Module"),
        (torch.nn.Linear(1, 1), "nothing", 1, "log='nothing' is nothing to watch"),
        (torch.nn.Linear(1, 1), "all", 0, "log_freq=0 must be 1 or more backward passes"),
    ],
)
def test_a_wrong_value_is_refused(model: Any, log: str, log_freq: int, message: str) -> None:
    """When watching begins."""
    with pytest.raises((TypeError, ValueError), match=message):
        Watch(model, log, log_freq, print, print)
