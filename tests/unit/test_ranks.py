"""Process group and reduced metrics in one process; for two see integration/test_torchrun.py."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
torch.set_num_threads(1)  # two threads are many times slower on some machines

import torch.distributed as dist  # noqa: E402 - it is torch's
from hypothesis import example, given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from foundry_log.training.ranks import (  # noqa: E402
    Ranks,
    _summable,
    process_group,
    reduce_metrics,
)

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
OPERATIONS: Any = ["mean", "sum", "min", "max"]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="class")
def group_of_one() -> Iterator[None]:
    """A real process group that this process has to itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class TestWithoutGroup:
    """One process alone."""

    @pytest.mark.parametrize("op", OPERATIONS)
    def test_values_come_back_as_they_are(self, op: Any) -> None:
        """Tensors of one element as floats, whatever their shape and type; NaN too."""
        given = {
            "z": 1,
            "loss": torch.tensor([[2.5]], requires_grad=True),
            "count": torch.tensor(3),
            "half": torch.tensor(0.5, dtype=torch.bfloat16),
            "a": math.inf,
        }
        found = reduce_metrics(given, op)

        assert list(found.items()) == [
            ("z", 1.0),
            ("loss", 2.5),
            ("count", 3.0),
            ("half", 0.5),
            ("a", math.inf),
        ]
        assert {type(value) for value in found.values()} == {float}
        assert math.isnan(reduce_metrics({"x": math.nan}, op)["x"])

    def test_an_unknown_operation_is_refused(self) -> None:
        """With the known ones."""
        with pytest.raises(ValueError, match="op='median' is unknown; use 'mean'"):
            reduce_metrics({}, "median")  # type: ignore[arg-type]

    @pytest.mark.parametrize("value", [None, "text", [1.0], torch.ones(2), torch.ones(0)])
    def test_what_is_no_number_is_refused(self, value: Any) -> None:
        """With its name and the remedy."""
        with pytest.raises(ValueError, match=r"metric 'x' is no number .* tensor of one element"):
            reduce_metrics({"ok": 1.0, "x": value})


class TestGroupOfOne:
    """A real group, though a small one."""

    @pytest.mark.parametrize("op", OPERATIONS)
    @given(st.dictionaries(st.text(), st.floats() | st.integers(-(2**53), 2**53), max_size=9))
    def test_values_come_back_as_they_are(
        self, group_of_one: None, op: Any, metrics: dict[str, float]
    ) -> None:
        """Through the collective, whatever the names are."""
        found = reduce_metrics(metrics, op)

        assert list(found) == list(metrics)
        assert all(
            found[name] == value or math.isnan(found[name]) == math.isnan(value) is True
            for name, value in metrics.items()
        )

    def test_more_names_than_the_least_room(self, group_of_one: None) -> None:
        """Whatever their number, around the powers of two too."""
        for count in (123, 124, 125, 252, 253, 1_000):
            metrics = {str(number): float(number) for number in range(count)}
            assert reduce_metrics(metrics) == reduce_metrics(metrics, "min") == metrics

    def test_what_is_no_number_is_refused(self, group_of_one: None) -> None:
        """Behind the collective, so that no rank waits."""
        with pytest.raises(ValueError, match="metric 'x' is no number"):
            reduce_metrics({"x": "text"})  # type: ignore[dict-item]

    def test_the_group_that_is_there_is_used(self, group_of_one: None) -> None:
        """And left alone."""
        with process_group(CPU) as ranks:
            assert ranks == Ranks(0, 1)
        assert dist.is_initialized()


@example([1, 2, 3])
@given(st.lists(st.integers(0, 2**32 - 1) | st.sampled_from([1, 2, 3]), min_size=1, max_size=40))
def test_all_ranks_find_the_same_about_their_checks(checks: list[int]) -> None:
    """Alike or not, none is led to believe otherwise, as 2 would be by the mean of 1, 2 and 3."""
    figures = [_summable(float(check)) for check in checks]
    sums = [sum(column) for column in zip(*figures, strict=True)]
    found = {sums == [part * len(checks) for part in own] for own in figures}

    assert found == {len(set(checks)) == 1}


class TestProcessGroup:
    """When there is one."""

    def test_without_a_launcher_there_is_none(self) -> None:
        """The process is the first of one."""
        with process_group(CPU) as ranks:
            assert ranks == Ranks(rank=0, size=1)
            assert not dist.is_initialized()

    def test_tasks_that_do_not_know_each_other_have_none(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Without an address to meet at; a warning says what each does then, and the remedy."""
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with process_group(CPU) as ranks:
            assert ranks == Ranks(rank=0, size=1)
            assert not dist.is_initialized()
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "Rank 1 of 2 " in record.getMessage() and "set MASTER_ADDR" in record.getMessage()

    def test_the_others_are_not_waited_for_without_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A rank that never comes is an error after the time that was given."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_PORT", str(port))
        with (
            pytest.raises(RuntimeError, match=r"after \d seconds"),
            process_group(CPU, timeout_s=1.0),
        ):
            pass
        assert not dist.is_initialized()

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and nccl")
    def test_figures_of_gpus_are_reduced_there(self) -> None:
        """Numbers, the device's tensors and the CPU's together, by nccl."""
        device = torch.device("cuda", torch.cuda.current_device())
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
        try:
            given = {"a": 1.0, "b": torch.tensor(2.5, device=device), "c": torch.tensor(3)}
            assert reduce_metrics(given) == {"a": 1.0, "b": 2.5, "c": 3.0}
            assert reduce_metrics(given, "max") == {"a": 1.0, "b": 2.5, "c": 3.0}
        finally:
            dist.destroy_process_group()
