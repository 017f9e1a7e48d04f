"""Tensors among metrics: read once a device, and equal to what each gives by itself."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
torch.set_num_threads(1)

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402 - needs torch

from foundry_log.encoding import to_plain  # noqa: E402
from foundry_log.tensors import plain_metrics, read_together  # noqa: E402

pytestmark = pytest.mark.unit


class Reads(TorchDispatchMode):  # type: ignore[misc]
    """Counts what waits for a device: reads of one value, and copies to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def scalars() -> dict[str, Any]:
    """One of each kind that training has."""
    return {
        "float32": torch.tensor(0.1, dtype=torch.float32),
        "float64": torch.tensor(0.1, dtype=torch.float64),
        "float16": torch.tensor(0.1, dtype=torch.float16),
        "bfloat16": torch.tensor(0.1, dtype=torch.bfloat16),
        "int64": torch.tensor(2**62 + 1),
        "negative": torch.tensor(-(2**62) - 1),
        "int8": torch.tensor(-7, dtype=torch.int8),
        "uint8": torch.tensor(255, dtype=torch.uint8),
        "bool": torch.tensor(True),
        "nan": torch.tensor(math.nan),
        "infinity": torch.tensor(-math.inf, dtype=torch.bfloat16),
        "with a gradient": torch.tensor(2.5, requires_grad=True) * 2,
        "parameter": torch.nn.Parameter(torch.tensor([1.5])),
        "one element": torch.tensor([[3.0]]),
        "tiny": torch.tensor(5e-324, dtype=torch.float64),
    }


@pytest.mark.parametrize("name", scalars())
def test_each_is_what_item_gives(name: str) -> None:
    """Among all the others, and alone: the same number of the same type."""
    expected = scalars()[name].item()
    for values in (scalars(), {name: scalars()[name]}):
        found = read_together(values)[name]
        assert type(found) is type(expected)
        assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.skipif(not hasattr(torch, "uint64"), reason="this torch has no uint64")
def test_large_unsigned_integers_are_exact() -> None:
    """Beside a float they travel as 64 bits."""
    large = torch.tensor(2**63 + 5, dtype=torch.uint64)
    assert read_together({"a": large, "b": torch.tensor(0.5)}) == {"a": 2**63 + 5, "b": 0.5}


@pytest.mark.parametrize("kinds", [1, 4])
def test_no_value_is_read_by_itself(kinds: int) -> None:
    """GIVEN forty scalars of one kind or four THEN no read of one value, and one tensor of all."""
    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.bool][:kinds]
    values = {f"{n}": torch.tensor(n % 2).to(dtypes[n % kinds]) for n in range(40)}
    with Reads() as reads:
        found = read_together(values)
    assert found == {f"{n}": n % 2 for n in range(40)}
    assert reads.calls["_local_scalar_dense"] == 0
    assert reads.calls["stack"] + reads.calls["cat"] <= 2 * kinds + 1
    with Reads() as reads:
        to_plain({name: value.item() for name, value in values.items()})
    assert reads.calls["_local_scalar_dense"] == 40  # the counter's proof


def test_a_step_without_tensors_costs_nothing() -> None:
    """The mapping itself comes back, and torch is not asked."""
    values = {"loss": 1.0, "list": [1], "name": "x"}
    with Reads() as reads:
        assert read_together(values) is values
        assert plain_metrics(values) == values
    assert not reads.calls


def test_what_is_no_scalar_stays() -> None:
    """Larger, complex and sparse tensors, and other values, in their order."""
    values = {
        "vector": torch.ones(3),
        "loss": torch.tensor(0.5),
        "complex": torch.tensor(1j),
        "sparse": torch.ones(1).to_sparse(),
        "empty": torch.ones(0),
        "meta": torch.ones((), device="meta"),
        "text": "x",
    }
    found = read_together(values)
    assert list(found) == list(values)
    assert found.pop("loss") == 0.5
    assert all(found[name] is values[name] for name in found)


def test_the_devices_that_fail_do_not_spoil_the_others() -> None:
    """GIVEN a device that has no numbers to read THEN those of the CPU are read."""
    values = {"meta": torch.ones((), device="meta"), "loss": torch.tensor(0.5)}
    plain = plain_metrics(values)
    assert plain["loss"] == 0.5
    assert isinstance(plain["meta"], str)


def test_the_callers_mapping_is_not_changed() -> None:
    """A loop may use one dict for all steps."""
    values = {"loss": torch.tensor(0.5)}
    assert plain_metrics(values) == {"loss": 0.5}
    assert torch.is_tensor(values["loss"])


@pytest.mark.parametrize("odd", [[1, 2], None, 5, {1: torch.tensor(2.0)}])
def test_metrics_of_any_kind_raise_nothing(odd: Any) -> None:
    """What is no mapping of names goes on as it is."""
    assert plain_metrics(odd) == ({"1": 2.0} if isinstance(odd, dict) else odd)


def test_a_mapping_or_value_that_raises_when_looked_at() -> None:
    """Gives what `to_plain` makes of it."""

    class Hostile(dict[str, Any]):
        def items(self) -> Any:
            raise RuntimeError("no")

    class Strange(torch.Tensor):
        def numel(self) -> int:
            raise RuntimeError("no")

    hostile = Hostile(loss=1.0)
    assert plain_metrics(hostile) == to_plain(hostile)
    values = {"strange": torch.ones(1).as_subclass(Strange), "loss": torch.tensor(0.5)}
    assert read_together(values)["loss"] == 0.5


def test_torch_is_not_imported() -> None:
    """Where the program has not done so, nothing is a tensor."""
    code = (
        "import sys; from foundry_log.tensors import plain_metrics; "
        "print(plain_metrics({'loss': [1.0]}), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "{'loss': [1.0]} False\n"
