"""A run's summary for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from foundry_log.run_directory import RunDirectory
from foundry_log.training.result import TrainingResult, bits_per_byte

Timings = Mapping[str, Mapping[str, float]]


def run_summary(
    result: TrainingResult,
    directory: RunDirectory,
    timings: Timings,
    errors: Mapping[str, int],
) -> str:
    """Return what a run came to, where its time went and where its files are, as lines of text.

    Args:
        result: of the run, finished or not.
        directory: the run's.
        timings: what `PerformanceLogger.timing_report` gives; blocks that do not overlap.
        errors: what `ErrorTracker.get_error_summary` gives.
    """
    lines = [
        *_outcome(result, errors),
        "",
        *_times(result.seconds, timings),
        "",
        f"Files in {directory.path}",
        *_files(directory),
    ]
    return "\n".join(lines)


def _outcome(result: TrainingResult, errors: Mapping[str, int]) -> Iterator[str]:
    end = "interrupted after" if result.interrupted else "ended after"
    yield (
        f"Training {end} {_count(result.steps, 'step')} ({_count(result.epochs, 'epoch')} "
        f"completed) in {result.seconds:.1f} s on {result.device}"
    )
    yield ""
    yield f"  loss at the start  {_loss(result.first_loss, result.bytes_per_token)}"
    yield f"  loss at the end    {_loss(result.last_loss, result.bytes_per_token)}"
    yield f"  held-out text      {_loss(result.eval_loss, result.bytes_per_token)}"
    memory = result.peak_memory_gb
    yield f"  memory             {'not measured' if memory is None else f'{memory:.2f} GB at most'}"
    by_type = ", ".join(f"{count} {name}" for name, count in errors.items())
    yield f"  errors             {by_type or 'none'}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _loss(loss: float | None, bytes_per_token: float | None) -> str:
    if loss is None or bytes_per_token is None:
        return "not measured yet"
    return f"{loss:.3f} nats per token, {bits_per_byte(loss, bytes_per_token):.3f} bits per byte"


def _times(seconds: float, timings: Timings) -> Iterator[str]:
    yield "Where the time went"
    for name, timer in timings.items():
        each = f"{timer['count']:.0f} x {timer['mean'] * 1000:.2f} ms"
        yield _time(name, timer["total"], seconds, each)
    rest = max(0.0, seconds - sum(timer["total"] for timer in timings.values()))
    yield _time("everything else", rest, seconds, "")


def _time(name: str, part: float, whole: float, each: str) -> str:
    return f"  {name:<16}{part:8.2f} s {part / max(whole, 1e-9):7.1%}  {each:>20}".rstrip()


def _files(directory: RunDirectory) -> Iterator[str]:
    for path, content in (
        (directory.log, "every record, for people"),
        (directory.jsonl, "every record, one JSON object a line"),
        (directory.metrics, "the figures of each logged step and completed epoch"),
        (directory.errors, "each error with its traceback"),
        (directory.system_metrics, "CPU, memory, disk, network and GPU over time"),
        (directory.timing_report, "statistics of each timed block"),
        (directory.info, "configuration, versions, git state, machine"),
    ):
        yield f"  {path.name:<20}{_size(path):>11}  {content}"
    checkpoints = sorted(directory.checkpoints.glob("step_*"))
    names = ", ".join(path.name for path in checkpoints) or "none"
    yield f"  {'checkpoints/':<20}{'':>11}  {names}"


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1000:.1f} kB" if path.exists() else "no file"
