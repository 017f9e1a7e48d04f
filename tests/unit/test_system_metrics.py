"""SystemMonitor: figures of the machine, in a file of their own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from foundry_log import read_jsonl
from foundry_log.system_metrics import SystemMonitor

pytestmark = pytest.mark.unit

DEADLINE_S = 20
GAUGES = {"memory.percent", "memory.process_rss_gb", "disk.percent", "process.threads"}
RATES = {"cpu.percent", "cpu.process_percent"}
"""What every platform has; figures of disks and of the network some containers do not."""


class Offers:
    """Takes offers, and tells when there are enough of them."""

    def __init__(self, enough: int) -> None:
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self.are_enough = threading.Event()
        self._enough = enough

    def __call__(self, kind: str, entry: dict[str, Any]) -> None:
        self.taken.append((kind, entry))
        if len(self.taken) >= self._enough:
            self.are_enough.set()


class Clock:
    """So many seconds later at each question."""

    def __init__(self, step_s: float) -> None:
        self.now = 0.0
        self._step_s = step_s

    def __call__(self) -> float:
        self.now += self._step_s
        return self.now


def sampled(directory: Path, **options: Any) -> list[dict[str, Any]]:
    """The lines of a monitor that has begun and ended."""
    offers = Offers(1)
    with SystemMonitor(directory, 3600, offer=offers, **options) as monitor:
        assert offers.are_enough.wait(DEADLINE_S)
    return list(read_jsonl(monitor.metrics_file))


def test_it_samples_at_once_and_once_more_at_the_close(tmp_path: Path) -> None:
    """Two lines, however long the interval is; each is a time stamp and numbers."""
    lines = sampled(tmp_path / "made")
    assert [list(line) for line in lines] == [["timestamp", "system"]] * 2
    assert lines[0]["system"].keys() >= GAUGES
    for line in lines:
        assert all(type(value) is float for value in line["system"].values()), line


def test_figures_are_those_of_this_machine(tmp_path: Path) -> None:
    """Percentages lie between 0 and 100, and the process has its memory and threads."""
    last = sampled(tmp_path)[-1]["system"]
    for name in ("cpu.percent", "memory.percent", "disk.percent"):
        assert 0 <= last[name] <= 100, name
    rss_gb = psutil.Process().memory_info().rss / 1e9
    assert last["memory.process_rss_gb"] == pytest.approx(rss_gb, rel=0.5)
    assert last["process.threads"] >= 1


def test_what_is_per_second_is_since_the_line_before(tmp_path: Path) -> None:
    """The first line has no rates; the CPU time between two lines counts by the clock given."""
    first, last = around_a_tenth_of_cpu_time(tmp_path, 10)
    assert not any(name in RATES or name.endswith("per_s") for name in first)
    assert last.keys() >= RATES
    # 0.1 s of one core in 10 s are 1 %; what the monitor itself took comes on top.
    assert 0.99 < last["cpu.process_percent"] < 100


def test_the_machine_is_never_busier_than_it_can_be(tmp_path: Path) -> None:
    """The seconds of its cores grow in steps, which are more than has passed at times."""
    _, last = around_a_tenth_of_cpu_time(tmp_path, 1e-6)
    assert last["cpu.percent"] == 100


def around_a_tenth_of_cpu_time(directory: Path, seconds: float) -> Iterator[dict[str, float]]:
    """The figures before and after 0.1 s of work, by a clock for which that took `seconds`."""
    offers = Offers(1)
    with SystemMonitor(directory, 3600, offer=offers, clock=Clock(seconds)) as monitor:
        assert offers.are_enough.wait(DEADLINE_S)
        before = sum(psutil.Process().cpu_times()[:2])
        while sum(psutil.Process().cpu_times()[:2]) < before + 0.1:
            pass
    return (line["system"] for line in read_jsonl(monitor.metrics_file))


def test_it_goes_on_by_itself(tmp_path: Path) -> None:
    """Every interval one line and one offer."""
    offers = Offers(4)
    with SystemMonitor(tmp_path, 0.001, offer=offers) as monitor:
        assert offers.are_enough.wait(DEADLINE_S)
    lines = list(read_jsonl(monitor.metrics_file))
    assert [entry["system"] for _, entry in offers.taken] == [line["system"] for line in lines]
    assert {kind for kind, _ in offers.taken} == {"System"}


def test_starting_and_closing_twice_is_once(tmp_path: Path) -> None:
    """One thread, one last line."""
    offers = Offers(1)
    monitor = SystemMonitor(tmp_path, 3600, offer=offers)
    monitor.close()
    assert not monitor.metrics_file.exists()
    monitor.start()
    monitor.start()
    assert offers.are_enough.wait(DEADLINE_S)
    monitor.close()
    monitor.close()
    assert len(list(read_jsonl(monitor.metrics_file))) == 2


def test_an_offer_that_is_refused_is_counted_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The lines stand in the file all the same."""
    offers = Offers(3)

    def offer(kind: str, entry: dict[str, Any]) -> None:
        offers(kind, entry)
        raise ValueError("no")

    with SystemMonitor(tmp_path, 0.001, offer=offer) as monitor:
        assert offers.are_enough.wait(DEADLINE_S)
    assert monitor.failures == {"ValueError": len(offers.taken)}
    assert len(list(read_jsonl(monitor.metrics_file))) == len(offers.taken)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage() for record in warnings] == ["System metrics fail: ValueError"]


def test_a_figure_that_cannot_be_read_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """GIVEN: A directory that cannot be made, so that nobody can tell how full its disk is
    WHEN: Sampling
    THEN: The other figures are there, and DEBUG says once which one is not.
    """
    caplog.set_level(logging.DEBUG, "foundry_log.system_metrics")
    (tmp_path / "file").write_text("")
    offers = Offers(3)
    with SystemMonitor(tmp_path / "file" / "below", 0.001, offer=offers):
        assert offers.are_enough.wait(DEADLINE_S)
    for _, entry in offers.taken:
        assert "memory.percent" in entry["system"]
        assert "disk.percent" not in entry["system"]
    said = [text for text in caplog.messages if "disk.percent" in text]
    assert len(said) == 1
    assert said[0].startswith("No disk.percent here: ")


def test_lines_that_cannot_be_written_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that stands where the directory should be costs lines, not the thread."""
    (tmp_path / "file").write_text("")
    offers = Offers(3)
    with SystemMonitor(tmp_path / "file", 0.001, offer=offers) as monitor:
        assert offers.are_enough.wait(DEADLINE_S)
    assert sum(monitor.losses.values()) == len(offers.taken)
    assert "lost" in capsys.readouterr().err


@pytest.mark.parametrize("interval_s", [0, -1, float("nan"), float("inf")])
def test_an_interval_that_is_none_is_refused(tmp_path: Path, interval_s: float) -> None:
    """Field, value, rule and remedy."""
    with pytest.raises(ValueError, match=r"interval_s=\S+ must be above 0; 15 is usual"):
        SystemMonitor(tmp_path, interval_s)


class TestRanks:
    """Under a launcher of several processes."""

    @pytest.fixture(autouse=True)
    def launched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")

    def test_each_has_a_file_and_names_itself_in_it(self, tmp_path: Path) -> None:
        """Rank 1's file and lines."""
        lines = sampled(tmp_path)
        assert os.listdir(tmp_path) == ["system_metrics@rank1.jsonl"]
        assert [list(line) for line in lines] == [["timestamp", "system", "rank"]] * 2
        assert lines[0]["rank"] == 1

    def test_with_first_the_others_are_silent(self, tmp_path: Path) -> None:
        """No thread, no file."""
        with SystemMonitor(tmp_path, 0.001, rank_files="first") as monitor:
            assert "foundry_log system metrics" not in _threads()
        assert (os.listdir(tmp_path), monitor.losses) == ([], {})

    def test_with_first_rank_0_has_the_plain_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if it were alone, but for its rank in the lines."""
        monkeypatch.setenv("RANK", "0")
        assert {line["rank"] for line in sampled(tmp_path, rank_files="first")} == {0}
        assert os.listdir(tmp_path) == ["system_metrics.jsonl"]


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


FORKS = """
import os, sys, threading, warnings
from foundry_log.system_metrics import SystemMonitor
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point
first = threading.Event()
with SystemMonitor(sys.argv[1], 3600, offer=lambda *_: first.set()) as monitor:
    assert first.wait(20)
    child = os.fork()
    if not child:
        monitor.start()
        monitor.close()
        os._exit(threading.active_count() - 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(len(monitor.metrics_file.read_text().splitlines()))
print(len(monitor.metrics_file.read_text().splitlines()))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_sample(tmp_path: Path) -> None:
    """It may start and close the monitor that it has inherited: only the parent writes."""
    command = [sys.executable, "-c", FORKS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n1\n2\n", done.stderr


class TestGpus:
    """What pynvml says, read by real processes."""

    def test_without_a_driver_there_are_no_figures_and_no_warning(self, tmp_path: Path) -> None:
        """An nvidia-ml-py that finds no library is as good as none."""
        broken = "class NVMLError(Exception): pass\ndef nvmlInit(): raise NVMLError('no library')\n"
        lines, said = self._sampled(tmp_path, broken)
        assert not any(name.startswith("gpu.") for name in lines[0]["system"])
        assert said == ""

    def test_without_the_package_there_are_no_figures_and_no_warning(self, tmp_path: Path) -> None:
        """It is an extra."""
        lines, said = self._sampled(tmp_path, "raise ImportError('not installed')")
        assert not any(name.startswith("gpu.") for name in lines[0]["system"])
        assert said == ""

    def test_all_gpus_are_named_by_their_number(self, tmp_path: Path) -> None:
        """Each figure in its unit, whatever CUDA_VISIBLE_DEVICES hides."""
        lines, said = self._sampled(tmp_path, NVML.format(fails="False"))
        for number in range(2):
            assert {
                name: value
                for name, value in lines[0]["system"].items()
                if name.startswith(f"gpu.{number}.")
            } == {
                f"gpu.{number}.percent": 40.0 + number,
                f"gpu.{number}.memory_gb": 20.0,
                f"gpu.{number}.memory_percent": 25.0,
                f"gpu.{number}.temperature_c": 61.0,
                f"gpu.{number}.power_w": 350.5,
            }
        assert said == ""

    def test_a_call_that_fails_is_left_out_and_reported_once(self, tmp_path: Path) -> None:
        """Two GPUs that do not tell their power are one warning; their other figures stay."""
        lines, said = self._sampled(tmp_path, NVML.format(fails="True"))
        assert "gpu.0.power_w" not in lines[0]["system"]
        assert lines[-1]["system"]["gpu.1.temperature_c"] == 61.0
        assert said == "No gpu.0.power_w here: Not Supported\n"

    def test_the_real_package_is_asked_or_absent(self, tmp_path: Path) -> None:
        """What is installed here, with a GPU or without one, harms nothing."""
        lines, _ = self._sampled(tmp_path, None)
        assert lines[0]["system"].keys() >= GAUGES

    def _sampled(self, directory: Path, pynvml: str | None) -> tuple[list[dict[str, Any]], str]:
        """The lines of a process in which `import pynvml` finds this code, and what it logs."""
        packages = directory / "packages"
        packages.mkdir()
        if pynvml is not None:
            (packages / "pynvml.py").write_text(pynvml)
        done = subprocess.run(
            [sys.executable, "-c", GPU_PROGRAM, str(directory / "out")],
            env={
                **os.environ,
                "CUDA_VISIBLE_DEVICES": "1",
                "PYTHONPATH": os.pathsep.join([str(packages), *sys.path]),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        file = directory / "out" / "system_metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()], done.stderr


GPU_PROGRAM = """
import sys, threading
from foundry_log.system_metrics import SystemMonitor
twice = threading.Semaphore(0)
with SystemMonitor(sys.argv[1], 0.001, offer=lambda *_: twice.release()):
    for _ in range(2):
        assert twice.acquire(timeout=20)
"""

NVML = """
from types import SimpleNamespace
NVML_TEMPERATURE_GPU = 0
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(number): return number
def nvmlDeviceGetUtilizationRates(gpu): return SimpleNamespace(gpu=40 + gpu, memory=1)
def nvmlDeviceGetMemoryInfo(gpu): return SimpleNamespace(total=80 * 10**9, used=20 * 10**9)
def nvmlDeviceGetTemperature(gpu, sensor): return 61
def nvmlDeviceGetPowerUsage(gpu):
    if {fails}:
        raise NVMLError("Not Supported")
    return 350500
"""
