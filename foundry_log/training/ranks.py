"""Several ranks of a distributed run: their process group, and one figure made of all of theirs."""

from __future__ import annotations

import logging
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist

from foundry_log.process import rank, rank_fields
from foundry_log.training.devices import current

_log = logging.getLogger(__name__)

_LEAST_ROOM = 128  # places; a few names more or less seldom cross a power of two


class Ranks(NamedTuple):
    """Which of how many processes this one is."""

    rank: int = 0
    size: int = 1


@contextmanager
def process_group(device: torch.device, timeout_s: float = 600.0) -> Iterator[Ranks]:
    """Have torch's default process group inside the block, where a launcher has started several.

    One that the program has initialised is used and left alone. Without a launcher there is none,
    nor, with a warning, where MASTER_ADDR is not set: torchrun sets it, for srun it is yours to do.

    Args:
        device: computed on; nccl connects GPUs, gloo the rest.
        timeout_s: seconds after which a rank that waits for another one raises.

    Yields:
        This process's place among the others.

    Raises:
        RuntimeError: the others did not come within `timeout_s`.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    number = rank()
    if number is None or "MASTER_ADDR" not in os.environ:
        if number is not None:
            _log.warning(
                "Rank %d of %d does not know where the others are, and computes alone: set "
                "MASTER_ADDR and MASTER_PORT, or give each process a directory of its own",
                number,
                rank_fields()["world_size"],
            )
        yield Ranks()
        return
    place = Ranks(number, rank_fields()["world_size"])
    with current(device):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=timeout_s),
        )
        try:
            yield place
        finally:
            dist.destroy_process_group()


def reduce_metrics(
    metrics: Mapping[str, float | torch.Tensor],
    op: Literal["mean", "sum", "min", "max"] = "mean",
    group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """Return each metric reduced over the ranks, the same on every rank.

    All ranks of the group call it, with the same names, in any order. A rank without a value gives
    NaN; a NaN of any rank makes the result NaN. It costs one collective for all names together, and
    tensors are read once, together. Without an initialised process group, or outside of `group`,
    the values come back as they are.

    Args:
        metrics: name to number, or to a tensor of one element, on any device.
        op: what is made of the ranks' values.
        group: None for all ranks.

    Raises:
        ValueError: `op` is unknown; or, on every rank, the names differ or a value is no number.
            Where one rank has so many more names that the tensors differ in size (powers of two,
            128 at the least), the back end fails in its own way instead.
    """
    if op not in ("mean", "sum", "min", "max"):
        raise ValueError(f"op={op!r} is unknown; use 'mean', 'sum', 'min' or 'max'")
    if not _is_shared(group):
        return dict(zip(metrics, _column(metrics, _CPU).tolist(), strict=True))
    device = _device_of(group)
    ordered = {name: metrics[name] for name in sorted(metrics, key=ascii)}
    problem: ValueError | None = None
    try:
        values, check = _column(ordered, device), _check_of(ordered)
    except ValueError as error:  # the others wait for this rank, and learn from its check
        values, check = torch.zeros(len(ordered), dtype=torch.float64, device=device), math.inf
        problem = error
    if op in ("mean", "sum"):
        reduced = _sums(values, check, group)
    else:
        reduced = _largest(values if op == "max" else -values, check, group)
    if problem is not None:
        raise problem
    if reduced is None:
        raise ValueError(
            f"the ranks do not give the same metrics, or one gives a value that is no number; "
            f"this one gives {', '.join(map(str, ordered)) or 'none'}: give each name on every "
            "rank, with NaN where there is no value"
        )
    if op == "mean":
        reduced = [total / dist.get_world_size(group) for total in reduced]
    elif op == "min":
        reduced = [-largest for largest in reduced]
    results = dict(zip(ordered, reduced, strict=True))
    return {name: results[name] for name in metrics}


_CPU = torch.device("cpu")


def _is_shared(group: Any) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_rank(group) >= 0


def _device_of(group: Any) -> torch.device:
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return _CPU


def _column(metrics: Mapping[str, Any], device: torch.device) -> torch.Tensor:
    """Return the values in one tensor on `device`; those on another one are fetched together.

    Raises:
        ValueError: a value is no number.
    """
    values = list(metrics.values())
    places: dict[torch.device, list[int]] = {}
    numbers = []
    for place, (name, value) in enumerate(metrics.items()):
        is_tensor = isinstance(value, torch.Tensor)
        if is_tensor:
            places.setdefault(value.device, []).append(place)
        try:
            if is_tensor and value.numel() != 1:
                raise ValueError(f"a tensor of shape {tuple(value.shape)}")
            numbers.append(math.nan if is_tensor else float(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"metric {name!r} is no number ({error}); give a number or a tensor of one element"
            ) from error
    column = torch.tensor(numbers, dtype=torch.float64, device=device)
    for there in places.values():
        together = torch.stack([values[place].detach().reshape(()) for place in there])
        column[there] = together.to(device).double()
    return column


def _check_of(metrics: Mapping[str, Any]) -> float:
    return float(zlib.crc32(ascii(list(metrics)).encode()))


def _sums(values: torch.Tensor, check: float, group: Any) -> list[float] | None:
    """Return the sums over the ranks; None unless all ranks have the same check."""
    checks = _summable(check)
    seen, sums = _all_reduced(checks, values, dist.ReduceOp.SUM, group)
    return sums if seen == [part * dist.get_world_size(group) for part in checks] else None


def _summable(check: float) -> list[float]:
    """Return figures whose sums over the ranks are one rank's, times their count, if all are alike.

    If all have the same sum and the same sum of squares, their variance is 0. Halves of 16 bits
    keep both exact for up to 2^21 ranks.
    """
    return [part for half in divmod(check, 2**16) for part in (half, half * half)]


def _largest(values: torch.Tensor, check: float, group: Any) -> list[float] | None:
    """Return the maxima over the ranks, NaN where a rank has it; None as `_sums` does.

    Back ends do not agree on the maximum of NaN and a number, so NaN travels beside the values.
    """
    missing, checks = values.isnan(), [check, -check]
    body = torch.cat([values.masked_fill(missing, -math.inf), missing.double()])
    seen, found = _all_reduced(checks, body, dist.ReduceOp.MAX, group)
    if seen != checks:
        return None
    largest, flags = found[: len(values)], found[len(values) :]
    return [math.nan if flag else value for value, flag in zip(largest, flags, strict=True)]


def _all_reduced(
    checks: list[float], body: torch.Tensor, operation: Any, group: Any
) -> tuple[list[float], list[float]]:
    """Return checks and body reduced over the ranks, by the one collective there is.

    They stand in a tensor with room to spare, so that other names have their checks compared before
    the back end stumbles over their number.
    """
    first, last = len(checks), len(checks) + len(body)
    room = max(_LEAST_ROOM, 1 << (last - 1).bit_length())
    packed = torch.zeros(room, dtype=torch.float64, device=body.device)
    packed[:first] = torch.tensor(checks, dtype=torch.float64)
    packed[first:last] = body
    dist.all_reduce(packed, op=operation, group=group)
    reduced: list[float] = packed.tolist()
    return reduced[:first], reduced[first:last]
