"""SystemMonitor: how busy the machine and this process are, in a file of its own."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from foundry_log import process
from foundry_log.encoding import exception_text
from foundry_log.extras import import_extra
from foundry_log.files.filenames import ranked
from foundry_log.handlers.losses import cause_of
from foundry_log.handlers.owned import owned_handler
from foundry_log.records import entry_record
from foundry_log.timer_thread import TimerThread

_log = logging.getLogger("foundry_log.system_metrics")

_GB = 1e9
_MB = 1e6


class SystemMonitor:
    """Writes `{"timestamp", "system": {name: number}}` to `<output_dir>/system_metrics.jsonl`.

    From `start` to `close` a thread of its own writes a line every `interval_s` seconds, the first
    at once and the last at the close. Under a launcher of several processes each writes its own
    file, and its lines carry `rank`. The names:

    - of the machine: `cpu.percent`, `memory.percent`, `disk.percent` (of the file system of
      `output_dir`), each from 0 to 100; `disk.read_mb_per_s`, `disk.write_mb_per_s`,
      `network.sent_mb_per_s`, `network.received_mb_per_s`, in MB of 10^6 bytes
    - of this process: `cpu.process_percent` (100 is one core), `memory.process_rss_gb` (10^9
      bytes), `process.threads`
    - of each GPU of the machine, whatever CUDA_VISIBLE_DEVICES says, counted as `nvidia-smi` does:
      `gpu.0.percent`, `gpu.0.memory_gb`, `gpu.0.memory_percent`, `gpu.0.temperature_c`,
      `gpu.0.power_w`; where nvidia-ml-py is installed (`foundry_log[gpu]`) and there is a driver

    Shares of the CPU and what is per second are means since the line before: the first has none. A
    figure that the platform, the container or a GPU does not give is left out.

    Nothing is raised once it is made. `losses` and `failures` count what went wrong, each cause is
    reported once. The child of a fork does not sample. Thread-safe.

    Args:
        output_dir: of the file; made if it is missing.
        interval_s: seconds between lines, above 0.
        offer: called with `("System", {"system": {…}})` for each line, such as
            `MetricsLogger.offer`, on the monitor's thread, for the last line on the closing one;
            None for nobody.
        file_permissions, one_file_per_process, rank_files: as of `LoggingConfig`; with `first` the
            other ranks neither sample nor write.
        clock: seconds, for what is per second.

    Raises:
        ValueError: `interval_s` or `rank_files` is out of range.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        interval_s: float = 15.0,
        *,
        offer: Callable[[str, dict[str, Any]], object] | None = None,
        file_permissions: int = 0o640,
        one_file_per_process: bool | None = None,
        rank_files: process.RankFiles = "each",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < interval_s < math.inf:
            raise ValueError(f"interval_s={interval_s!r} must be above 0; 15 is usual")
        number = process.file_rank(rank_files)
        self.interval_s = interval_s
        self.metrics_file = ranked(Path(output_dir) / "system_metrics.jsonl", number)
        self.failures: Counter[str] = Counter()
        """Samples that were not taken and offers that were refused, by cause."""
        self._rank = process.rank()
        self._is_silent = rank_files == "first" and number is not None
        self._offer = offer
        if not self._is_silent:
            self._handler = owned_handler(
                self.metrics_file, 100, _log, file_permissions, one_file_per_process
            )
        self._figures = _Figures(Path(os.path.abspath(output_dir)), clock)
        self._timer = TimerThread("foundry_log system metrics", self._sample)

    @property
    def losses(self) -> Mapping[str, int]:
        """Lines that could not be written, by cause."""
        return {} if self._is_silent else self._handler.losses

    def start(self) -> None:
        """Begin to sample; a second call does nothing."""
        if not self._is_silent:
            self._timer.start()

    def close(self) -> None:
        """Write a last line and close the file, after at most five seconds; idempotent."""
        if self._is_silent:
            return
        is_sampling = self._timer.is_started and not self._timer.is_inherited
        if self._timer.close() and is_sampling:
            self._sample()
            self._figures.close()
        self._handler.close()

    def __enter__(self) -> SystemMonitor:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _sample(self) -> float:
        """Write a line and return the seconds until the next one."""
        try:
            figures = self._figures.read()
            self._write(figures)
            if self._offer is not None:
                self._offer("System", {"system": figures})
        except Exception as error:
            self._count(error)
        return self.interval_s

    def _write(self, figures: dict[str, float]) -> None:
        entry: dict[str, Any] = {"system": figures}
        if self._rank is not None:
            entry["rank"] = self._rank
        self._handler.handle(entry_record(_log.name, logging.INFO, "System", entry))

    def _count(self, error: Exception) -> None:
        cause = cause_of(error)
        self.failures[cause] += 1
        if self.failures[cause] == 1:
            _log.warning("System metrics fail: %s", cause, exc_info=error)


class _Figures:
    """Reads all figures; what cannot be read is left out, and reported once."""

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock
        self._totals: dict[str, float] = {}
        self._read_at = 0.0
        self._gpus: _Gpus | None = None
        self._reported: set[str] = set()

    def read(self) -> dict[str, float]:
        if self._gpus is None:
            self._gpus = _Gpus()
        this = psutil.Process()
        present = dict(self._readable(_machine(this, self._folder), logging.DEBUG))
        rates = self._rates(dict(self._readable(_totals(this), logging.DEBUG)))
        if "cpu.percent" in rates:  # its seconds grow in steps of a hundredth
            rates["cpu.percent"] = min(rates["cpu.percent"], 100.0)
        present.update(rates)
        present.update(self._readable(self._gpus.figures(), logging.WARNING))
        return present

    def close(self) -> None:
        if self._gpus is not None:
            self._gpus.close()
            self._gpus = None

    def _readable(self, figures: _Readers, level: int) -> Iterator[tuple[str, float]]:
        for name, read in figures:
            try:
                yield name, float(read())
            except Exception as error:
                # Of a GPU once per cause: with eight of them a driver that is gone takes forty.
                cause = name if level == logging.DEBUG else cause_of(error)
                if cause not in self._reported:
                    self._reported.add(cause)
                    _log.log(level, "No %s here: %s", name, exception_text(error))

    def _rates(self, totals: dict[str, float]) -> dict[str, float]:
        """Return by how much each total has grown a second since the last time."""
        before, self._totals = self._totals, totals
        read_at, self._read_at = self._read_at, self._clock()
        seconds = self._read_at - read_at
        return {
            name: (total - before[name]) / seconds
            for name, total in totals.items()
            # A total that has shrunk belongs to a disk or an interface that was taken away.
            if seconds > 0 and total >= before.get(name, math.inf)
        }


_Readers = Iterator[tuple[str, Callable[[], Any]]]


def _machine(this: Any, folder: Path) -> _Readers:
    yield "memory.percent", lambda: psutil.virtual_memory().percent
    yield "memory.process_rss_gb", lambda: this.memory_info().rss / _GB
    yield "disk.percent", lambda: psutil.disk_usage(str(folder)).percent
    yield "process.threads", this.num_threads


def _totals(this: Any) -> _Readers:
    """Yield what only grows, in the unit that its growth a second is to have."""
    yield "cpu.percent", lambda: 100 * _busy_seconds() / psutil.cpu_count()
    yield "cpu.process_percent", lambda: 100 * sum(this.cpu_times()[:2])
    yield "disk.read_mb_per_s", lambda: psutil.disk_io_counters().read_bytes / _MB
    yield "disk.write_mb_per_s", lambda: psutil.disk_io_counters().write_bytes / _MB
    yield "network.sent_mb_per_s", lambda: psutil.net_io_counters().bytes_sent / _MB
    yield "network.received_mb_per_s", lambda: psutil.net_io_counters().bytes_recv / _MB


def _busy_seconds() -> float:
    """Return the seconds that all cores together have worked since the machine was started.

    psutil's own percentage is since the last call of the same thread, whoever made it.
    """
    times = psutil.cpu_times()._asdict()
    # Linux counts the time of guests twice: it is in `user` and `nice` too.
    idle = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(seconds for name, seconds in times.items() if name not in idle))


class _Gpus:
    """All NVIDIA GPUs of the machine; none without nvidia-ml-py or a driver."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        try:
            self._nvml: Any = import_extra("pynvml", "gpu", "SystemMonitor")
            self._nvml.nvmlInit()
            numbers = range(self._nvml.nvmlDeviceGetCount())
            self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(number) for number in numbers]
        except Exception as error:  # no package, no driver, or one that does not fit the other
            _log.debug("No figures of GPUs: %s", exception_text(error))

    def figures(self) -> _Readers:
        for number, gpu in enumerate(self._handles):
            for name, read in self._figures_of(gpu):
                yield f"gpu.{number}.{name}", read

    def _figures_of(self, gpu: Any) -> _Readers:
        nvml = self._nvml
        yield "percent", lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu
        yield "memory_gb", lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used / _GB
        yield "memory_percent", lambda: _percent_used(nvml.nvmlDeviceGetMemoryInfo(gpu))
        sensor = nvml.NVML_TEMPERATURE_GPU
        yield "temperature_c", lambda: nvml.nvmlDeviceGetTemperature(gpu, sensor)
        yield "power_w", lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000

    def close(self) -> None:
        if self._handles:
            try:
                self._nvml.nvmlShutdown()
            except Exception as error:
                _log.debug("NVML does not shut down: %s", exception_text(error))


def _percent_used(memory: Any) -> float:
    return float(100 * memory.used / memory.total)
