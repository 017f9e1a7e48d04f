"""Two ranks under a real torchrun: their files, consoles, figures, and the death of one of them."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from foundry_log import read_jsonl

pytest.importorskip("torch.distributed", reason="needs torch: pip install 'foundry_log[torch]'")

pytestmark = [pytest.mark.integration, pytest.mark.long]

SOURCE = Path(__file__).parents[2]
CONSOLE = "console.txt"
START = """
import json, logging, math, os, signal, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from foundry_log import ErrorTracker, LoggingConfig, StructuredLogger, bound, configure
from foundry_log.training.ranks import process_group, reduce_metrics

torch.set_num_threads(1)
folder, log = Path(sys.argv[1]), logging.getLogger("app")
device = torch.device("cpu")
"""
EVERYTHING = (
    START
    + """
from torch.profiler import profile

def logged(directory, **settings):
    config = LoggingConfig(**settings)
    with configure(config, directory):
        tracker = ErrorTracker(log, directory, rank_files=config.rank_files)
        for turn in range(6):
            if turn % ranks.size == ranks.rank:
                log.info("turn %d", turn)
            dist.barrier()
        with tracker.catch():
            raise ValueError(f"of rank {ranks.rank}")
        tracker.close()

def collectives(trace):
    return [e.key for e in trace.key_averages() for _ in range(e.count) if "gloo:" in e.key]

def outcome(*arguments, **options):
    try:
        return reduce_metrics(*arguments, **options)
    except ValueError as error:
        return str(error)

with process_group(device, timeout_s=60) as ranks:
    logged(folder / "each")
    logged(folder / "first", rank_files="first")

    rank, found = ranks.rank, {}
    loss = torch.tensor(1.5 + rank, requires_grad=True)
    given = {"loss": loss, "rank": rank, "only_1": math.nan if rank == 0 else 1.0}
    if rank == 1:
        given = dict(reversed(given.items()))
    for op in ("mean", "sum", "min", "max"):
        with profile() as trace:
            found[op] = reduce_metrics(given, op)
        found["order of " + op] = list(found[op]) == list(given)
        found["collectives of " + op] = collectives(trace)
    found["infinite"] = reduce_metrics({"x": math.inf if rank else 1.0})
    with profile() as trace:
        found["none"] = reduce_metrics({})
        found["many"] = sum(reduce_metrics({str(n): n for n in range(1000)}).values())
    found["collectives of two calls"] = collectives(trace)
    for op in ("mean", "max"):
        found["other names " + op] = outcome({"a": 1.0, f"b{rank}": 2.0}, op)
        found["more names " + op] = outcome({"a": 1.0, **({"b": 2.0} if rank else {})}, op)
        found["no number " + op] = outcome({"a": "text" if rank else 1.0}, op)
        found["a vector " + op] = outcome({"a": torch.ones(3) if rank == 0 else 1.0}, op)
    found["in step"] = reduce_metrics({"x": rank}, "sum")
    alone = dist.new_group([0])
    found["group"] = reduce_metrics({"x": float(rank)}, "sum", alone)
    found["place"] = ranks
    with process_group(device) as inner:
        found["inner"] = inner
    found["still there"] = dist.is_initialized()
    (folder / f"{rank}.json").write_text(json.dumps(found))
assert not dist.is_initialized()
"""
)
DYING = (
    START
    + """
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(time.monotonic()))

def say(number):
    log.info("message %d", number)
    os.write(1, b"%d %d %d\\n" % (ranks.rank, number, os.getpid()))

with process_group(device, timeout_s=60) as ranks, configure(directory=folder, handle_signals=True):
    tracker = ErrorTracker(log, folder)
    number, after, deadline = 0, 0, time.monotonic() + 60
    while after < 50 and time.monotonic() < deadline:
        say(number)
        number += 1
        after += bool(told)
        if number % 20 == 0 and not tracker.get_error_summary():
            with tracker.catch(RuntimeError):
                reduce_metrics({"number": number})
    tracker.close()
"""
)


class Run(NamedTuple):
    """What torchrun did."""

    folder: Path
    console: str

    def entries(self, name: str) -> list[dict[str, Any]]:
        return list(read_jsonl(self.folder / name))

    def results(self, rank: int) -> Any:
        return json.loads((self.folder / f"{rank}.json").read_text())


@contextmanager
def torchrun(script: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Have two ranks of the script run, which gets the folder; the console is a file."""
    (folder / "script.py").write_text(script)
    arguments = ["--standalone", "--nproc-per-node", "2", str(folder / "script.py"), str(folder)]
    paths = [str(SOURCE), os.environ.get("PYTHONPATH", "")]
    with (
        open(folder / CONSOLE, "w") as console,
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=console,
            text=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()  # one that is still there ends its ranks too


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two ranks that do everything once."""
    folder = tmp_path_factory.mktemp("ranks")
    with torchrun(EVERYTHING, folder) as process:
        process.wait(120)
    console = (folder / CONSOLE).read_text()
    assert process.returncode == 0, console
    return Run(folder, console)


class TestFiles:
    """One set a rank, or of the first alone."""

    def test_each_rank_has_a_set_of_its_own(self, run: Run) -> None:
        """The sets are alike; the description of the run is one."""
        names = {path.name for path in (run.folder / "each").iterdir() if path.name[0] != "."}
        kinds = ("run@rank{}.log", "run@rank{}.jsonl", "errors@rank{}.jsonl")
        expected = {kind.format(rank) for kind in kinds for rank in (0, 1)}

        assert names == {*expected, "run_info.json"}

    def test_the_first_alone_leaves_exactly_one_set(self, run: Run) -> None:
        """Under plain names; only the other's errors are beside it."""
        names = {path.name for path in (run.folder / "first").iterdir() if path.name[0] != "."}

        assert names == {
            "run.log",
            "run.jsonl",
            "errors.jsonl",
            "errors@rank1.jsonl",
            "run_info.json",
        }
        messages = [entry["message"] for entry in run.entries("first/run.jsonl")]
        assert messages == ["turn 0", "turn 2", "turn 4", "ValueError: of rank 0"]

    def test_the_context_knows_the_ranks(self, run: Run) -> None:
        """In each line, without being asked."""
        for rank in (0, 1):
            for entry in run.entries(f"each/run@rank{rank}.jsonl"):
                fields = entry["context"]
                assert (fields["rank"], fields["local_rank"]) == (rank, rank)
                assert (fields["world_size"], fields["node"]) == (2, 0)
                assert fields["host"]

    def test_readers_merge_ranks_by_time(self, run: Run) -> None:
        """The ranks took turns, a barrier after each."""
        messages = [entry["message"] for entry in run.entries("each/run.jsonl")]

        assert messages[:6] == [f"turn {turn}" for turn in range(6)]
        assert sorted(messages[6:]) == [f"ValueError: of rank {rank}" for rank in (0, 1)]

    @pytest.mark.parametrize("rank_files", ["each", "first"])
    def test_errors_of_every_rank_are_kept(self, run: Run, rank_files: str) -> None:
        """Each with its rank, found under the plain name."""
        errors = run.entries(f"{rank_files}/errors.jsonl")

        assert {entry["rank"]: entry["error_message"] for entry in errors} == {
            0: "of rank 0",
            1: "of rank 1",
        }


def test_the_console_shows_the_first_rank_and_warnings_of_all(run: Run) -> None:
    """Each record says whose it is; twice, for the console does not hang on the files."""
    shown = [line for line in run.console.splitlines() if re.match(r"\[.*\] \d\d:\d\d:\d\d ", line)]
    expected = [f"[rank 0] INFO app: turn {turn}" for turn in (0, 2, 4)]
    expected += [f"[rank {rank}] ERROR app: ValueError: of rank {rank}" for rank in (0, 1)]

    assert sorted(re.sub(r"\] \S+ (\S+) +", r"] \1 ", line) for line in shown) == sorted(
        expected * 2
    )


class TestReduceMetrics:
    """One figure of two ranks."""

    @pytest.mark.parametrize(
        ("op", "loss", "rank"),
        [("mean", 2.0, 0.5), ("sum", 4.0, 1.0), ("min", 1.5, 0.0), ("max", 2.5, 1.0)],
    )
    def test_every_rank_gets_the_result(self, run: Run, op: str, loss: float, rank: float) -> None:
        """Whatever the order of its names; a NaN of one rank stays one."""
        for number in (0, 1):
            found = run.results(number)
            assert (found[op]["loss"], found[op]["rank"]) == (loss, rank)
            assert math.isnan(found[op]["only_1"])
            assert found[f"order of {op}"]

    @pytest.mark.parametrize("op", ["mean", "sum", "min", "max"])
    def test_it_costs_one_collective(self, run: Run, op: str) -> None:
        """Counted by torch's profiler."""
        assert run.results(0)[f"collectives of {op}"] == ["gloo:all_reduce"]

    def test_any_number_of_names_costs_one(self, run: Run) -> None:
        """None, and a thousand."""
        found = run.results(1)
        assert (found["none"], found["many"]) == ({}, 499_500)
        assert found["collectives of two calls"] == ["gloo:all_reduce"] * 2

    def test_infinity_is_a_number(self, run: Run) -> None:
        """And no reason to doubt the names."""
        assert run.results(0)["infinite"] == {"x": math.inf}

    @pytest.mark.parametrize("op", ["mean", "max"])
    @pytest.mark.parametrize("case", ["other names", "more names", "no number", "a vector"])
    def test_what_does_not_fit_is_refused_on_every_rank(self, run: Run, case: str, op: str) -> None:
        """No rank gets garbage, none waits for ever, and the next call is in step."""
        for rank in (0, 1):
            text = run.results(rank)[f"{case} {op}"]
            assert isinstance(text, str)
            assert "give" in text
            assert run.results(rank)["in step"] == {"x": 1.0}

    def test_the_rank_at_fault_is_told_which_value_it_is(self, run: Run) -> None:
        """The others are told that it is somebody."""
        assert "metric 'a' is no number" in run.results(1)["no number mean"]
        assert "shape (3,)" in run.results(0)["a vector max"]
        assert "the ranks do not give the same metrics" in run.results(0)["no number mean"]

    def test_a_rank_outside_of_the_group_keeps_its_values(self, run: Run) -> None:
        """As without any group."""
        assert [run.results(rank)["group"] for rank in (0, 1)] == [{"x": 0.0}, {"x": 1.0}]


def test_a_group_that_is_there_is_used_and_left(run: Run) -> None:
    """The block inside ends; the group outside stays."""
    for rank in (0, 1):
        found = run.results(rank)
        assert found["place"] == found["inner"] == [rank, 2]
        assert found["still there"]


def test_the_death_of_a_rank_costs_no_record_and_stops_no_logging(tmp_path: Path) -> None:
    """Rank 1 is killed with SIGKILL; rank 0 learns of it, is told to end, and logs on to its end.

    What either had acknowledged stands once, merged by time.
    """
    told: dict[str, set[int]] = {"0": set(), "1": set()}
    with torchrun(DYING, tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.fullmatch(r"([01]) (\d+) (\d+)\n", line)
            if found is None:
                continue  # what the killed rank had not finished
            told[found[1]].add(int(found[2]))
            if line.startswith("1 100 "):
                os.kill(int(found[3]), signal.SIGKILL)
        process.wait(120)
    console = (tmp_path / CONSOLE).read_text()
    entries = list(read_jsonl(tmp_path / "run.jsonl"))
    for rank, numbers in told.items():
        messages = [e["message"] for e in entries if e["context"]["rank"] == int(rank)]
        said = [int(text.split()[1]) for text in messages if text.startswith("message ")]
        assert numbers <= set(said), console
        assert said == sorted(set(said))
    assert max(told["0"]) > max(told["1"]) >= 100
    # The record of the signal is of another thread, which may write it a moment late.
    stamps = [entry["timestamp"] for entry in entries if entry["logger"] == "app"]
    assert stamps == sorted(stamps)
    (reason,) = [entry for entry in entries if "SIGTERM" in entry["message"]]
    assert reason["context"]["rank"] == 0
    (error,) = read_jsonl(tmp_path / "errors.jsonl")
    assert (error["rank"], error["error_type"][-5:]) == (0, "Error")
