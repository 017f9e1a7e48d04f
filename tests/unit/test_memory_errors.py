"""Out of memory: told from other errors, and described by what was in use."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
torch.set_num_threads(1)

from foundry_log.training.memory_errors import is_out_of_memory, memory_context  # noqa: E402

pytestmark = pytest.mark.unit

ABSURD = 1 << 60


def raised(action: Callable[[], object]) -> BaseException:
    """What an action raises."""
    with pytest.raises(BaseException) as caught:
        action()
    return caught.value


@pytest.mark.parametrize(
    "action",
    [lambda: torch.empty(ABSURD, dtype=torch.uint8), lambda: bytearray(ABSURD)],
    ids=["torch", "python"],
)
def test_a_real_failure_on_the_host_is_described(action: Callable[[], object]) -> None:
    """The memory of the process and of the machine, in GB."""
    context = memory_context(raised(action), "cpu")
    assert list(context) == ["memory_gb"]
    assert context["memory_gb"]["rss"] > 0
    assert 0 < context["memory_gb"]["system_percent"] <= 100


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
    ],
)
def test_each_device_has_its_words_for_it(error: RuntimeError) -> None:
    """As their allocators write them."""
    assert is_out_of_memory(error)


class BrokenError(RuntimeError):
    """Has no text."""

    def __str__(self) -> str:
        raise OSError("no text")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        KeyboardInterrupt(),
        BrokenError(),
    ],
)
def test_other_errors_have_no_such_context(error: BaseException) -> None:
    """Nothing is read for them."""
    assert memory_context(error, "cpu") == {}


@pytest.mark.parametrize("device", ["cuda:99", "no device"])
def test_a_device_that_cannot_be_asked_raises_nothing(device: str) -> None:
    """The error that is being logged is not replaced by another."""
    assert "allocator_summary" not in memory_context(MemoryError(), device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_failure_on_a_gpu_has_the_allocators_summary() -> None:
    """What torch prints of its pools."""
    error = raised(lambda: torch.empty(ABSURD, dtype=torch.uint8, device="cuda"))
    context = memory_context(error, "cuda")
    assert "Allocated memory" in context["allocator_summary"]
    assert "gpu_allocated" in context["memory_gb"]
