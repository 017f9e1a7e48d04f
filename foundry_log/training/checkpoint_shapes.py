"""Whether the tensors of a checkpoint fit a model and its optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from foundry_log.training.checkpoint_files import CheckpointError

_DIFFERENCES_NAMED = 5


def check_model(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse tensors of other names or shapes than the model's.

    Raises:
        CheckpointError: with the first differences, and the fields that decide shapes.
    """
    differences = [f"missing {name}" for name in expected if name not in found]
    differences += [f"unexpected {name}" for name in found if name not in expected]
    differences += _shape_differences("", found, expected)
    if differences:
        raise CheckpointError(
            f"{path} is of another model: {_first(differences)}. Shapes come from model.*, "
            "tokenizer.vocab_size and data.sequence_length: resume with those of the run that "
            "saved it"
        )


def check_optimizer(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a state of another number or shape of parameters than the optimizer's.

    Raises:
        CheckpointError: with the first differences.
    """
    try:
        differences = _optimizer_differences(found, expected)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} does not hold the state of an optimizer") from error
    if differences:
        raise CheckpointError(
            f"{path} is of another optimizer: {_first(differences)}. Resume with the model and the "
            "optimizer of the run that saved it"
        )


def _optimizer_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    sizes, expected_sizes = (
        [len(group["params"]) for group in each["param_groups"]] for each in (found, expected)
    )
    if len(sizes) != len(expected_sizes):
        return [f"found {len(sizes)} parameter groups, expected {len(expected_sizes)}"]
    differences = [
        f"group {number}: found {size} parameters, expected {expected_size}"
        for number, (size, expected_size) in enumerate(zip(sizes, expected_sizes, strict=True))
        if size != expected_size
    ]
    for parameter, values in expected["state"].items():
        known = found["state"].get(parameter, {})
        differences += _shape_differences(f"parameter {parameter} ", known, values)
    return differences


def _shape_differences(
    prefix: str, found: Mapping[str, Any], expected: Mapping[str, Any]
) -> list[str]:
    shapes = [
        (name, _shape(found[name]), _shape(value))
        for name, value in expected.items()
        if name in found
    ]
    return [
        f"{prefix}{name}: found {shape}, expected {expected_shape}"
        for name, shape, expected_shape in shapes
        if shape != expected_shape
    ]


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _first(differences: list[str]) -> str:
    rest = len(differences) - _DIFFERENCES_NAMED
    named = "; ".join(differences[:_DIFFERENCES_NAMED])
    return f"{named}; and {rest} more" if rest > 0 else named
