"""Scalars that live on a device, read together: one wait a device in place of one a value.

torch is found where the program has loaded it, and never imported. Safe from any thread.
"""

from __future__ import annotations

import sys
import types
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from foundry_log.encoding import to_plain

_SCALARS = frozenset({str, int, float, bool, type(None)})

_Tensors = dict[str, Any]


def plain_metrics(metrics: Any) -> Any:
    """Return what `to_plain` does, with the scalar tensors among the values read together.

    Never raises. A dict of plain values costs what it costs there.
    """
    if type(metrics) is dict:
        fields = metrics.copy()
        for name, value in fields.items():
            kind = type(value)  # most are floats
            if (kind is not float and kind not in _SCALARS) or type(name) is not str:
                break
        else:
            return fields
    return to_plain(read_together(metrics))


def read_together(metrics: Any) -> Any:
    """Return the mapping with its scalar tensors as Python's numbers, read once for each device.

    What `.item()` gives one by one: integers stay exact, truth values stay bool, NaN is kept;
    with or without gradients, of zero dimensions or one element. All else stays as it is: larger,
    complex, sparse and quantized tensors, and those that torch refuses to read together.

    Args:
        metrics: name to any value. Without a tensor in it, or no mapping at all, it is returned
            itself. Never raises.
    """
    torch = sys.modules.get("torch")
    tensor = vars(torch).get("Tensor") if type(torch) is types.ModuleType else None
    if not isinstance(tensor, type):
        return metrics
    try:
        if not isinstance(metrics, Mapping):
            return metrics
        fields = dict(metrics.items())
        found = {name: value for name, value in fields.items() if isinstance(value, tensor)}
    except Exception:  # a mapping, or a value, that raises when it is merely looked at
        return metrics
    if not found:
        return metrics
    for tensors in _by_device(torch, found):
        try:
            fields.update(_read(torch, tensors))
        except Exception:  # a tensor that only looks like one, or a device without such numbers
            continue
    return fields


def _by_device(torch: Any, found: _Tensors) -> list[_Tensors]:
    devices: dict[Any, _Tensors] = defaultdict(dict)
    for name, value in found.items():
        try:
            if _is_readable(torch, value):
                devices[value.device][name] = value.detach().reshape(())
        except Exception:  # of a class of somebody's own
            continue
    return list(devices.values())


def _is_readable(torch: Any, value: Any) -> bool:
    return (
        value.numel() == 1
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_complex()
    )


def _read(torch: Any, tensors: _Tensors) -> dict[str, Any]:
    """Return the numbers of one device's tensors, of which one read gets all."""
    kinds: dict[Any, _Tensors] = defaultdict(dict)
    for name, value in tensors.items():
        kinds[value.dtype][name] = value
    columns = [torch.stack(list(column.values())) for column in kinds.values()]
    if len(columns) == 1:
        return dict(zip(tensors, columns[0].tolist(), strict=True))
    words = torch.cat([_words(torch, column) for column in columns]).cpu()
    integers, floats = words.tolist(), words.view(torch.float64).tolist()
    numbers: dict[str, Any] = {}
    for dtype, column in kinds.items():
        for name in column:
            place = len(numbers)
            numbers[name] = floats[place] if dtype.is_floating_point else integers[place]
            if dtype is torch.bool:
                numbers[name] = bool(numbers[name])
            elif dtype is getattr(torch, "uint64", None):
                numbers[name] %= 2**64
    return numbers


def _words(torch: Any, column: Any) -> Any:
    """Return numbers of any kind as 64 bits each, which lose nothing, to stand in one tensor."""
    if column.dtype.is_floating_point:
        return column.to(torch.float64).view(torch.int64)
    return column.to(torch.int64)
