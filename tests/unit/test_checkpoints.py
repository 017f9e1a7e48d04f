"""Checkpoints: whole or not there, found, kept, and refused with what was found."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from foundry_log import ExperimentConfig, PerformanceLogger, StructuredLogger, __version__

torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
torch.set_num_threads(1)  # two threads are many times slower on some machines

from foundry_log.training.checkpoints import (  # noqa: E402 - it imports torch
    MANIFEST_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    Checkpoint,
    CheckpointError,
    Checkpoints,
    LoadedCheckpoint,
)

pytestmark = pytest.mark.unit

TENSOR_FILES = [MODEL_FILE, OPTIMIZER_FILE, STATE_FILE]
MODEL = {"weight": torch.arange(3.0), "bias": torch.ones(2)}
OPTIMIZER = {
    "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}},
    "param_groups": [{"lr": 0.1, "params": [0, 1]}],
}
STATE = {"position": 7, "rng": torch.arange(4), "log": {"names": ["a", "b"], "loss": 0.5}}

Damage = Callable[[Path], object]
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, signals or RLIMIT_FSIZE")


class Recorder(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def contexts(self) -> dict[str, dict[str, Any]]:
        """Message to context."""
        return {
            record.__dict__["foundry_message"]: record.__dict__["foundry_context"]
            for record in self.records
        }

    def levels(self) -> Counter[tuple[int, str]]:
        """How often each level had each message."""
        return Counter(
            (record.levelno, record.__dict__["foundry_message"]) for record in self.records
        )


@pytest.fixture
def logger(tiny_config: ExperimentConfig) -> StructuredLogger:
    """A logger that lets everything through."""
    logger = StructuredLogger("test.checkpoints", tiny_config)
    logger.logger.setLevel(logging.DEBUG)
    return logger


@pytest.fixture
def recorder(logger: StructuredLogger) -> Recorder:
    """What the logger says."""
    recorder = Recorder()
    logger.logger.addHandler(recorder)
    return recorder


@pytest.fixture
def performance(logger: StructuredLogger) -> PerformanceLogger:
    """The timers of the checkpoints."""
    return PerformanceLogger(logger)


@pytest.fixture
def make(
    tmp_path: Path, logger: StructuredLogger, performance: PerformanceLogger
) -> Callable[..., Checkpoints]:
    """Makes checkpoints below `tmp_path`."""
    return lambda **options: Checkpoints(tmp_path / "checkpoints", logger, performance, **options)


@pytest.fixture
def checkpoints(make: Callable[..., Checkpoints]) -> Checkpoints:
    """All of them are kept."""
    return make()


def save(checkpoints: Checkpoints, step: int, **options: Any) -> Checkpoint:
    """Save small tensors as the checkpoint of a step."""
    given = {"attempt": 1, "model": MODEL, "optimizer": OPTIMIZER, "state": STATE, **options}
    return checkpoints.save(step, 1, **given)


def load(checkpoints: Checkpoints, path: Path | str, **options: Any) -> LoadedCheckpoint:
    """Load what `save` has saved."""
    return checkpoints.load(path, **{"model": MODEL, "optimizer": OPTIMIZER, **options})


def names(root: Path) -> list[str]:
    """What a directory holds, hidden files too."""
    return sorted(path.name for path in root.iterdir())


def steps(checkpoints: Checkpoints) -> list[int]:
    """Steps of the whole ones."""
    return [checkpoint.step for checkpoint in checkpoints.all()]


def rewrite(path: Path, **fields: Any) -> None:
    """Change fields of a manifest."""
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


def run_python(code: str, *arguments: object) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestSaving:
    """What a checkpoint is, and that it is whole or not there."""

    def test_a_checkpoint_is_a_directory_of_its_step(self, checkpoints: Checkpoints) -> None:
        """Six digits wide, so that names sort as steps do, and nothing else is left beside it."""
        saved = save(checkpoints, 500)
        assert saved.path == checkpoints.root / "step_000500"
        assert names(saved.path) == [MANIFEST_FILE, MODEL_FILE, OPTIMIZER_FILE, STATE_FILE]
        assert names(checkpoints.root) == ["step_000500"]

    def test_the_manifest_says_what_is_in_it(self, checkpoints: Checkpoints) -> None:
        """Where it belongs, and size and CRC-32 of each file."""
        path = save(checkpoints, 500, attempt=2, eval_loss=1.5).path
        manifest = json.loads((path / MANIFEST_FILE).read_bytes())
        assert manifest.pop("saved").endswith("+00:00")
        content = {name: (path / name).read_bytes() for name in TENSOR_FILES}
        assert manifest == {
            "format": 1,
            "step": 500,
            "epoch": 1,
            "attempt": 2,
            "eval_loss": 1.5,
            "files": {name: len(each) for name, each in content.items()},
            "crc32": {name: zlib.crc32(each) for name, each in content.items()},
            "foundry_log": __version__,
        }

    def test_what_is_saved_can_be_found(self, checkpoints: Checkpoints) -> None:
        """The value that `save` gives is the one that is read back."""
        saved = save(checkpoints, 500, attempt=3, eval_loss=1.5)
        assert checkpoints.all() == [saved] == [checkpoints.latest()]
        assert saved.size_bytes == sum((saved.path / name).stat().st_size for name in TENSOR_FILES)

    def test_a_loss_that_is_no_number_reads_back(self, checkpoints: Checkpoints) -> None:
        """NaN and infinity, in strict JSON."""
        losses = [math.nan, math.inf, -math.inf]
        for step, loss in enumerate(losses):
            save(checkpoints, step, eval_loss=loss)
        assert [repr(each.eval_loss) for each in checkpoints.all()] == ["nan", "inf", "-inf"]

    @pytest.mark.parametrize("part", ["model", "optimizer", "state"])
    def test_a_failure_leaves_the_checkpoints_of_before(
        self, checkpoints: Checkpoints, part: str
    ) -> None:
        """Half a checkpoint is none: what was written of it is gone."""
        save(checkpoints, 1)
        with pytest.raises(Exception, match="pickle"):
            save(checkpoints, 2, **{part: {"state": lambda: None}})
        assert names(checkpoints.root) == ["step_000001"]

    def test_a_failure_leaves_the_checkpoint_of_the_same_step(
        self, checkpoints: Checkpoints
    ) -> None:
        """It is replaced when the new one is whole, not before."""
        path = save(checkpoints, 1).path
        with pytest.raises(Exception, match="pickle"):
            save(checkpoints, 1, model={}, optimizer={"state": lambda: None})
        assert load(checkpoints, path).model.keys() == MODEL.keys()

    def test_a_state_that_could_not_be_loaded_is_refused(self, checkpoints: Checkpoints) -> None:
        """At the first checkpoint, and not when the run is to be resumed."""
        with pytest.raises(CheckpointError, match=r"state\.pt cannot be loaded"):
            save(checkpoints, 1, state={"path": Path("data")})
        assert names(checkpoints.root) == []

    def test_a_second_run_replaces_the_checkpoint_of_a_step(self, checkpoints: Checkpoints) -> None:
        """The same step saved again."""
        save(checkpoints, 1)
        path = save(checkpoints, 1, model={"other": torch.zeros(1)}).path
        assert list(torch.load(path / MODEL_FILE, weights_only=True)) == ["other"]
        assert names(checkpoints.root) == ["step_000001"]

    def test_what_a_killed_run_left_is_in_nobodys_way(self, checkpoints: Checkpoints) -> None:
        """Hidden directories, of this step and others, go with the next save."""
        for kind in ("partial", "replaced", "removed"):
            for name in ("step_000001", "step_000002"):
                (checkpoints.root / f".{name}.{kind}").mkdir(parents=True)
                (checkpoints.root / f".{name}.{kind}" / MODEL_FILE).write_bytes(b"left")
        (checkpoints.root / "step_000002").mkdir()
        save(checkpoints, 1)
        assert names(checkpoints.root) == ["step_000001", "step_000002"]

    def test_both_parts_are_timed(
        self, checkpoints: Checkpoints, performance: PerformanceLogger
    ) -> None:
        """As the blocks `save_model` and `save_optimizer`."""
        save(checkpoints, 1)
        assert {name: len(times) for name, times in performance.timers.items()} == {
            "save_model": 1,
            "save_optimizer": 1,
        }

    def test_begin_and_end_are_logged(self, checkpoints: Checkpoints, recorder: Recorder) -> None:
        """With step, epoch and directory; then with size and time."""
        saved = save(checkpoints, 7)
        begin, end = (
            recorder.contexts()[message]
            for message in ("Saving checkpoint", "Checkpoint saved successfully")
        )
        assert (begin["step"], begin["epoch"], begin["checkpoint_dir"]) == (7, 1, str(saved.path))
        assert (end["step"], end["checkpoint_size_gb"]) == (7, saved.size_bytes / 1e9)
        assert end["save_time_seconds"] > 0

    @posix
    def test_a_full_disk_leaves_the_checkpoints_of_before(self, tmp_path: Path) -> None:
        """An OSError, also where torch says something else; nothing of the new one is left."""
        assert run_python(FULL_DISK, tmp_path) == (
            "model OSError\noptimizer OSError\nstate OSError\n"
            "['step_000001']\n[1]\nsaved ['step_000001', 'step_000002']\n"
        )


SETUP = """
import logging, os, random, resource, signal, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from foundry_log import PerformanceLogger, StructuredLogger
from foundry_log.training.checkpoints import Checkpoints

torch.set_num_threads(1)
logger = StructuredLogger("test", SimpleNamespace(experiment_name="test"))

def checkpoints_at(path, **options):
    return Checkpoints(Path(path), logger, PerformanceLogger(logger), **options)

def save(checkpoints, step, serial=0, **parts):
    tensors = {name: {"a": torch.full((64,), serial)} for name in ("model", "optimizer", "state")}
    return checkpoints.save(step, 1, attempt=1, **{**tensors, **parts})
"""

FULL_DISK = (
    SETUP
    + """
checkpoints = checkpoints_at(sys.argv[1])
save(checkpoints, 1)
unlimited = resource.RLIM_INFINITY
for part in ("model", "optimizer", "state"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, unlimited))
    try:
        save(checkpoints, 2, **{part: {"a": torch.zeros(100_000)}})
    except OSError as error:
        print(part, type(error).__name__)
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
print(sorted(os.listdir(sys.argv[1])))
print([each.step for each in checkpoints.all()])
save(checkpoints, 2)
print("saved", sorted(os.listdir(sys.argv[1])))
"""
)

KILLS = (
    SETUP
    + """
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}
MODEL = {"a": torch.zeros(64)}

def in_child(work):
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def dies_before(number):
    # The audit hook sees each operation on files before it is done.
    left = [number]
    def count(event, arguments):
        if event in FILE_EVENTS:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

def dies_after(seconds):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)

def check(checkpoints, step, old, new):
    found = checkpoints.latest()
    assert found in checkpoints.all(), (found, os.listdir(checkpoints.root))
    loaded = checkpoints.load(found.path, model=MODEL, optimizer=None)
    serials = {int(part["a"][0]) for part in (loaded.model, loaded.state)}
    assert (found.step, serials) in ((step, {new}), old), (found, serials)
    save(checkpoints, step + 1, new)
    left = sorted(os.listdir(checkpoints.root))
    assert left[-1] == f"step_{step + 1:06d}" and not left[0].startswith("."), left
    if checkpoints._keep_last == 1:
        assert len(left) == 1, left

def prepared(base, name, **options):
    checkpoints = checkpoints_at(Path(base) / name, **options)
    save(checkpoints, 1, 1)
    return checkpoints
"""
)

EVERY_KILL = (
    KILLS
    + """
def work(checkpoints, step, number):
    dies_before(number)
    save(checkpoints, step, 2)

for step, options in ((1, {}), (2, {}), (2, {"keep_last": 1})):
    number, status = 0, -signal.SIGKILL
    while status:
        number += 1
        checkpoints = prepared(sys.argv[1], f"{step}.{len(options)}.{number}", **options)
        status = in_child(lambda: work(checkpoints, step, number))
        assert status in (0, -signal.SIGKILL), status
        check(checkpoints, step, (1, {1}), 2)
    assert number > 8, number  # operations of a save
print("none lost")
"""
)

RANDOM_KILLS = (
    KILLS
    + """
def work(checkpoints, seconds):
    dies_after(seconds)
    for serial in range(2, 10_000):
        save(checkpoints, 1, serial)

kills = 0
for number in range(20):
    checkpoints = prepared(sys.argv[1], str(number))
    status = in_child(lambda: work(checkpoints, random.uniform(0.001, 0.03)))
    assert status == -signal.SIGALRM, status
    found = checkpoints.latest()
    loaded = checkpoints.load(found.path, model=MODEL, optimizer=None)
    assert found.step == 1 and loaded.model["a"][0] == loaded.state["a"][0], found
    kills += 1
print(kills, "kills")
"""
)


@posix
class TestKills:
    """Real processes that the kernel ends in the middle of a save."""

    def test_a_kill_before_any_operation_on_files_leaves_a_whole_one(self, tmp_path: Path) -> None:
        """While one is replaced, added, or takes the place of the one before: each moment once."""
        assert run_python(EVERY_KILL, tmp_path) == "none lost\n"

    def test_a_kill_at_any_time_leaves_a_whole_one(self, tmp_path: Path) -> None:
        """In the middle of a write too: a step is saved again and again until an alarm kills."""
        assert run_python(RANDOM_KILLS, tmp_path) == "20 kills\n"

    def test_one_that_was_being_replaced_stands_for_its_step(
        self, checkpoints: Checkpoints
    ) -> None:
        """Between the two renames it has another name; asking finds it and changes nothing."""
        path = save(checkpoints, 5, attempt=2).path
        path.rename(checkpoints.root / ".step_000005.replaced")
        assert steps(checkpoints) == [5]
        assert load(checkpoints, path).checkpoint == checkpoints.latest()
        assert names(checkpoints.root) == [".step_000005.replaced"]

    @pytest.mark.parametrize("act", [lambda c: save(c, 6), lambda c: c.set_aside(5)])
    def test_what_writes_next_puts_it_back(
        self, checkpoints: Checkpoints, act: Callable[[Checkpoints], object]
    ) -> None:
        """Under its own name."""
        path = save(checkpoints, 5).path
        path.rename(checkpoints.root / ".step_000005.replaced")
        act(checkpoints)
        assert load(checkpoints, path).checkpoint.path == path
        assert ".step_000005.replaced" not in names(checkpoints.root)


class TestFinding:
    """Which checkpoints there are."""

    def test_without_a_directory_there_are_none(self, checkpoints: Checkpoints) -> None:
        """Nothing is made by asking."""
        assert (checkpoints.all(), checkpoints.latest(), checkpoints.best()) == ([], None, None)
        assert checkpoints.set_aside(0) == []
        assert not checkpoints.root.exists()

    def test_they_come_by_step_and_not_by_name(self, checkpoints: Checkpoints) -> None:
        """A million steps have seven digits."""
        for step in (1_000_000, 999_999, 5):
            save(checkpoints, step)
        assert steps(checkpoints) == [5, 999_999, 1_000_000]
        latest = checkpoints.latest()
        assert latest and latest.path.name == "step_1000000"

    def test_the_latest_may_be_damaged(self, checkpoints: Checkpoints) -> None:
        """It is no whole one, and yet not passed over."""
        save(checkpoints, 1)
        damaged = save(checkpoints, 2, attempt=3)
        (damaged.path / MODEL_FILE).unlink()
        assert steps(checkpoints) == [1]
        assert checkpoints.latest() == damaged

    def test_the_latest_may_be_without_a_manifest(self, checkpoints: Checkpoints) -> None:
        """Its name has the step."""
        path = save(checkpoints, 2).path
        (path / MANIFEST_FILE).unlink()
        assert checkpoints.latest() == Checkpoint(path, 2, 0, 0, None, 0)

    def test_the_best_has_the_lowest_finite_loss(self, checkpoints: Checkpoints) -> None:
        """NaN, infinities and unknown losses are not compared; the first of equals it is."""
        losses = [None, 2.0, math.nan, 1.5, -math.inf, 1.5, math.inf]
        for step, loss in enumerate(losses):
            save(checkpoints, step, eval_loss=loss)
        best = checkpoints.best()
        assert best and (best.step, best.eval_loss) == (3, 1.5)

    def test_other_things_are_no_checkpoints(self, checkpoints: Checkpoints) -> None:
        """Files, other names, and what is hidden."""
        save(checkpoints, 1)
        for name in ("step_best", "step_12", ".step_000009.partial", ".step_000009.removed"):
            (checkpoints.root / name).mkdir()
        (checkpoints.root / "step_000010").write_text("a file")
        assert checkpoints.latest() == checkpoints.all()[0]


class TestKeeping:
    """Which of them stay."""

    def test_the_last_n_stay(self, make: Callable[..., Checkpoints]) -> None:
        """The saved one is among them."""
        checkpoints = make(keep_last=2)
        for step in range(1, 6):
            save(checkpoints, step)
        assert names(checkpoints.root) == ["step_000004", "step_000005"]

    def test_the_best_stays_too(self, make: Callable[..., Checkpoints]) -> None:
        """Until there is a better one."""
        checkpoints = make(keep_last=1, keep_best=True)
        stay = []
        for step, loss in enumerate([3.0, 1.0, math.nan, 2.0, 0.5, None]):
            save(checkpoints, step, eval_loss=loss)
            stay.append(steps(checkpoints))
        assert stay == [[0], [1], [1, 2], [1, 3], [4], [4, 5]]

    def test_all_stay_unless_asked(self, make: Callable[..., Checkpoints]) -> None:
        """`keep_best` alone removes nothing."""
        checkpoints = make(keep_best=True)
        for step in range(4):
            save(checkpoints, step)
        assert steps(checkpoints) == [0, 1, 2, 3]

    def test_what_is_not_of_this_run_is_not_touched(self, make: Callable[..., Checkpoints]) -> None:
        """Set aside, of later steps, damaged, without manifest, or something else altogether."""
        everything = make()
        for step in (1, 2, 3, 9):
            save(everything, step)
        everything.set_aside(8)
        save(everything, 8)
        (everything.root / "step_000001" / MANIFEST_FILE).unlink()
        (everything.root / "step_000002" / MODEL_FILE).write_bytes(b"")
        (everything.root / "notes").mkdir()
        save(make(keep_last=1), 5)
        assert names(everything.root) == [
            "notes",
            "step_000001",
            "step_000002",
            "step_000005",
            "step_000008",
            "step_000009.attempt1",
        ]

    def test_one_that_is_removed_is_logged(
        self, make: Callable[..., Checkpoints], recorder: Recorder
    ) -> None:
        """At DEBUG, with step and directory."""
        checkpoints = make(keep_last=1)
        first = save(checkpoints, 1)
        save(checkpoints, 2)
        assert recorder.levels()[logging.DEBUG, "Checkpoint removed"] == 1
        context = recorder.contexts()["Checkpoint removed"]
        assert (context["step"], context["checkpoint_dir"]) == (1, str(first.path))

    def test_a_removal_that_fails_is_a_warning(
        self, make: Callable[..., Checkpoints], recorder: Recorder
    ) -> None:
        """A file stands where the directory is renamed to; the run goes on."""
        checkpoints = make(keep_last=1)
        first = save(checkpoints, 1)
        (checkpoints.root / ".step_000001.removed").write_text("in the way")
        save(checkpoints, 2)
        context = recorder.contexts()["Checkpoint could not be removed"]
        assert context["checkpoint_dir"] == str(first.path)
        assert "step_000001" in context["reason"]
        assert recorder.levels()[logging.WARNING, "Checkpoint could not be removed"] > 0
        assert steps(checkpoints) == [1, 2]

    def test_keeping_none_is_refused(self, make: Callable[..., Checkpoints]) -> None:
        """With the remedy."""
        with pytest.raises(ValueError, match=r"keep_last=0 .* give at least 1, or None"):
            make(keep_last=0)


class TestSettingAside:
    """An earlier attempt's later steps."""

    def test_later_steps_get_the_name_of_their_attempt(self, checkpoints: Checkpoints) -> None:
        """None of them is taken for the latest, and they can be loaded by their new names."""
        for step in (500, 600, 700):
            save(checkpoints, step, attempt=step // 300)
        moved = checkpoints.set_aside(500)
        assert [path.name for path in moved] == ["step_000600.attempt2", "step_000700.attempt2"]
        assert steps(checkpoints) == [500]
        latest = checkpoints.latest()
        assert latest and latest.step == 500
        assert load(checkpoints, moved[1]).checkpoint.step == 700

    def test_it_is_logged(self, checkpoints: Checkpoints, recorder: Recorder) -> None:
        """From where to where."""
        saved = save(checkpoints, 600)
        (target,) = checkpoints.set_aside(0)
        context = recorder.contexts()["Checkpoint set aside"]
        assert (context["step"], context["checkpoint_dir"]) == (600, str(saved.path))
        assert context["set_aside_as"] == str(target)

    def test_a_name_that_is_taken_gets_a_number(self, checkpoints: Checkpoints) -> None:
        """Nothing that was set aside is lost."""
        for _ in range(3):
            save(checkpoints, 600)
            checkpoints.set_aside(0)
        assert names(checkpoints.root) == [
            "step_000600.attempt1",
            "step_000600.attempt1.2",
            "step_000600.attempt1.3",
        ]

    def test_one_without_manifest_is_set_aside_too(self, checkpoints: Checkpoints) -> None:
        """Nobody knows its attempt."""
        (save(checkpoints, 600).path / MANIFEST_FILE).unlink()
        assert [path.name for path in checkpoints.set_aside(0)] == ["step_000600.attempt_unknown"]


class TestLoading:
    """What comes back."""

    def test_everything_comes_back(self, checkpoints: Checkpoints) -> None:
        """Tensors, numbers, text and lists, and what the manifest says."""
        saved = save(checkpoints, 1)
        loaded = load(checkpoints, saved.path)
        assert loaded.checkpoint == saved
        assert torch.equal(loaded.model["weight"], MODEL["weight"])
        assert loaded.optimizer and loaded.optimizer["param_groups"] == OPTIMIZER["param_groups"]
        assert torch.equal(loaded.state.pop("rng"), STATE["rng"])
        assert loaded.state == {key: value for key, value in STATE.items() if key != "rng"}

    def test_a_real_model_and_optimizer_go_on(self, checkpoints: Checkpoints) -> None:
        """As if they had never stopped; the new optimizer has no state yet to compare with."""
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        path = save(checkpoints, 1, model=model.state_dict(), optimizer=optimizer.state_dict()).path
        again = torch.nn.Linear(2, 1)
        other = torch.optim.AdamW(again.parameters())
        loaded = load(checkpoints, path, model=again.state_dict(), optimizer=other.state_dict())
        again.load_state_dict(loaded.model)
        other.load_state_dict(loaded.optimizer)
        assert torch.equal(again.weight, model.weight)
        assert other.state_dict()["state"][0]["step"] == 1

    def test_the_optimizer_may_be_left_out(self, checkpoints: Checkpoints) -> None:
        """For whoever only evaluates."""
        assert load(checkpoints, save(checkpoints, 1).path, optimizer=None).optimizer is None

    def test_it_is_logged(self, checkpoints: Checkpoints, recorder: Recorder) -> None:
        """With step, epoch, directory, and the time it took."""
        path = save(checkpoints, 7).path
        load(checkpoints, path)
        for message in ("Loading checkpoint", "Checkpoint loaded"):
            context = recorder.contexts()[message]
            assert (context["step"], context["epoch"]) == (7, 1)
            assert context["checkpoint_dir"] == str(path)
        assert recorder.contexts()["Checkpoint loaded"]["load_time_seconds"] > 0

    def test_one_of_another_run_loads_by_its_path(
        self, checkpoints: Checkpoints, tmp_path: Path
    ) -> None:
        """Copied to elsewhere, under any name, given as text."""
        moved = save(checkpoints, 7).path.rename(tmp_path / "published")
        assert load(checkpoints, str(moved)).checkpoint.step == 7

    def test_the_current_directory_is_a_path_too(
        self, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a checkpoint, or of what is refused with an offer."""
        saved = save(checkpoints, 7)
        monkeypatch.chdir(saved.path)
        assert load(checkpoints, ".").checkpoint == saved
        monkeypatch.chdir(checkpoints.root)
        with pytest.raises(CheckpointError, match=r"step_000007$"):
            load(checkpoints, ".")


def cut(share: float) -> Damage:
    """Cut a file to a part of its length; below 0, by so many bytes."""
    return lambda path: os.truncate(
        path,
        int(path.stat().st_size * share) if share >= 0 else path.stat().st_size + int(share),
    )


def flip(path: Path) -> None:
    """Change one bit in the middle, where a tensor's values are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "cut to nothing": (cut(0), r"is truncated: found 0 bytes, expected [\d,]+"),
    "cut in half": (cut(0.5), r"is truncated: found [\d,]+ bytes, expected [\d,]+"),
    "cut by a byte": (cut(-1), r"is truncated: found [\d,]+ bytes, expected [\d,]+"),
    "longer": (
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        r"is too long: found [\d,]+ bytes, expected [\d,]+",
    ),
    "garbage": (
        lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
        r"is damaged: found CRC-32 [0-9a-f]{8}, expected [0-9a-f]{8}",
    ),
    "a bit flipped": (flip, r"is damaged: found CRC-32 [0-9a-f]{8}, expected [0-9a-f]{8}"),
    "missing": (Path.unlink, r"is missing, expected [\d,]+ bytes"),
}
MANIFEST_DAMAGES: dict[str, tuple[Damage, str]] = {
    "cut to nothing": (cut(0), "cannot be read: not a line of strict JSON"),
    "cut in half": (cut(0.5), "cannot be read: not a line of strict JSON"),
    "cut by its brace": (cut(-2), "cannot be read: not a line of strict JSON"),
    "garbage": (lambda path: path.write_bytes(b"\xff" * 99), "cannot be read"),
    "a list": (lambda path: path.write_bytes(b"[]"), "cannot be read: not a JSON object but list"),
    "missing": (Path.unlink, r"is not a checkpoint: it has no checkpoint\.json"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    "another format": (
        lambda path: rewrite(path, format=2, foundry_log="9.0"),
        r"found format=2 of foundry_log 9\.0, expected 1",
    ),
    "no step": (lambda path: rewrite(path, step=None), "found step=None, expected a count"),
    "a step below 0": (lambda path: rewrite(path, step=-1), "found step=-1, expected a count"),
    "a true attempt": (lambda path: rewrite(path, attempt=True), "found attempt=True, expected"),
    "a loss of text": (
        lambda path: rewrite(path, eval_loss="low"),
        "found eval_loss='low', expected a number or null",
    ),
    "no sizes": (lambda path: rewrite(path, files=[]), r"found files=\[\], expected a count for"),
    "one size": (
        lambda path: rewrite(path, files={MODEL_FILE: 1}),
        r"found files=.*, expected a count for each of model\.pt, optimizer\.pt, state\.pt",
    ),
    "a crc of text": (
        lambda path: rewrite(path, crc32=dict.fromkeys(TENSOR_FILES, "1")),
        "found crc32=.*, expected a count for each of",
    ),
}
MATRIX = [
    *((name, *case) for name in TENSOR_FILES for case in DAMAGES.values()),
    *((MANIFEST_FILE, *case) for case in MANIFEST_DAMAGES.values()),
]
MATRIX_IDS = [
    *(f"{name} {damage}" for name in TENSOR_FILES for damage in DAMAGES),
    *(f"{MANIFEST_FILE} {damage}" for damage in MANIFEST_DAMAGES),
]


class TestRefusingDamage:
    """What was found, what was expected, and which one to take instead."""

    @pytest.mark.parametrize(("name", "damage", "text"), MATRIX, ids=MATRIX_IDS)
    def test_a_damaged_file_is_refused_and_the_one_before_offered(
        self, checkpoints: Checkpoints, name: str, damage: Damage, text: str
    ) -> None:
        """Whichever file it is, and whatever happened to it."""
        for step in (1, 2, 3):
            save(checkpoints, step)
        latest = checkpoints.latest()
        assert latest
        damage(latest.path / name)
        offer = f"; the checkpoint before it is whole: resume from {checkpoints.root}/step_000002$"
        with pytest.raises(CheckpointError, match=f"step_000003.*{text}.*{offer}"):
            load(checkpoints, latest.path)
        again = checkpoints.latest()
        assert again and again.path == latest.path

    @pytest.mark.parametrize("content", [b"no file of torch", b""])
    def test_what_torch_cannot_load_is_refused(
        self, checkpoints: Checkpoints, content: bytes
    ) -> None:
        """Its manifest agrees with it, as when somebody else wrote both."""
        self.put(save(checkpoints, 1).path, content)
        with pytest.raises(CheckpointError, match=r"model\.pt cannot be loaded: \w+: "):
            load(checkpoints, checkpoints.root / "step_000001")

    def test_code_in_a_checkpoint_does_not_run(
        self, checkpoints: Checkpoints, tmp_path: Path
    ) -> None:
        """A pickle that would make a file."""

        class Mischief:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "made"),)

        torch.save({"weight": Mischief()}, tmp_path / "mischief")
        self.put(save(checkpoints, 1).path, (tmp_path / "mischief").read_bytes())
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            load(checkpoints, checkpoints.root / "step_000001")
        assert not (tmp_path / "made").exists()

    def test_what_is_no_dict_is_refused(self, checkpoints: Checkpoints, tmp_path: Path) -> None:
        """A list of tensors, for one."""
        torch.save([torch.ones(1)], tmp_path / "list")
        self.put(save(checkpoints, 1).path, (tmp_path / "list").read_bytes())
        with pytest.raises(CheckpointError, match=r"model\.pt: found a list, expected a dict"):
            load(checkpoints, checkpoints.root / "step_000001")

    @staticmethod
    def put(checkpoint: Path, content: bytes) -> None:
        """Replace the model's file, with size and CRC-32 to match."""
        manifest = json.loads((checkpoint / MANIFEST_FILE).read_bytes())
        (checkpoint / MODEL_FILE).write_bytes(content)
        rewrite(
            checkpoint / MANIFEST_FILE,
            files={**manifest["files"], MODEL_FILE: len(content)},
            crc32={**manifest["crc32"], MODEL_FILE: zlib.crc32(content)},
        )

    def test_only_whole_ones_are_offered(self, checkpoints: Checkpoints) -> None:
        """Their content is looked at too."""
        for step in (1, 2, 3):
            flip(save(checkpoints, step).path / MODEL_FILE)
        save(checkpoints, 1)
        with pytest.raises(CheckpointError, match=r"the checkpoint before it .*/step_000001$"):
            load(checkpoints, checkpoints.root / "step_000003")

    def test_a_later_one_is_offered_where_none_is_before(self, checkpoints: Checkpoints) -> None:
        """It is said that it is not the one before."""
        flip(save(checkpoints, 1).path / MODEL_FILE)
        save(checkpoints, 2)
        with pytest.raises(
            CheckpointError, match=r"no .* before .* another one is: .*/step_000002$"
        ):
            load(checkpoints, checkpoints.root / "step_000001")

    def test_where_none_is_whole_that_is_said(self, checkpoints: Checkpoints) -> None:
        """Nothing is offered."""
        flip(save(checkpoints, 1).path / MODEL_FILE)
        with pytest.raises(CheckpointError, match=f"no whole checkpoint in {checkpoints.root}$"):
            load(checkpoints, checkpoints.root / "step_000001")

    def test_one_of_version_0_3_is_refused(self, checkpoints: Checkpoints) -> None:
        """With the reason."""
        path = save(checkpoints, 1).path
        (path / MANIFEST_FILE).unlink()
        (path / STATE_FILE).unlink()
        with pytest.raises(CheckpointError, match=r"no checkpoint\.json: foundry_log 0\.3 and"):
            load(checkpoints, path)


class TestRefusingPaths:
    """What is no checkpoint at all."""

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("step_000650", "step_000650 does not exist; the .* before .*step_000600$"),
            ("step_000550", "step_000550 does not exist; the .* before .*step_000500$"),
            ("latest", "latest does not exist; the latest whole one there: .*step_000600$"),
            ("", "not a checkpoint but a directory of them; the latest whole .*step_000600$"),
            ("notes", r"notes is not a checkpoint: it has no checkpoint\.json; .*step_000600$"),
            ("a.txt", r"a\.txt is a file, and a checkpoint is a directory; .*step_000600$"),
            ("no/where", "where does not exist; there is no whole checkpoint in .*no$"),
        ],
    )
    def test_a_wrong_path_is_refused(self, checkpoints: Checkpoints, path: str, text: str) -> None:
        """The nearest before it is named, or the latest."""
        for step in (500, 600):
            save(checkpoints, step)
        (checkpoints.root / "notes").mkdir()
        (checkpoints.root / "a.txt").write_text("notes")
        with pytest.raises(CheckpointError, match=text):
            load(checkpoints, checkpoints.root / path)

    def test_a_refusal_is_a_value_error(self) -> None:
        """For whoever knows only the standard library's."""
        assert issubclass(CheckpointError, ValueError)


def groups(*sizes: int) -> dict[str, Any]:
    """The state of a new optimizer with groups of those sizes."""
    return {"state": {}, "param_groups": [{"params": list(range(size))} for size in sizes]}


class TestRefusingShapes:
    """A checkpoint of another model or optimizer."""

    @pytest.mark.parametrize(
        ("model", "text"),
        [
            ({**MODEL, "head": torch.ones(1)}, "missing head"),
            ({"weight": MODEL["weight"]}, "unexpected bias"),
            ({**MODEL, "bias": torch.ones(4)}, r"bias: found \(2,\), expected \(4,\)"),
            ({**MODEL, "bias": torch.ones(2, 1)}, r"bias: found \(2,\), expected \(2, 1\)"),
            ({**MODEL, "bias": {"scale": 1}}, r"bias: found \(2,\), expected dict"),
        ],
    )
    def test_another_model_is_refused(
        self, checkpoints: Checkpoints, model: Mapping[str, Any], text: str
    ) -> None:
        """With each difference and the fields that decide shapes; no other one would fit better."""
        path = save(checkpoints, 1).path
        fields = r"model\.\*, tokenizer\.vocab_size and data\.sequence_length"
        with pytest.raises(CheckpointError, match=f"of another model: {text}. Shapes.*{fields}"):
            load(checkpoints, path, model=model)

    def test_five_differences_are_named(self, checkpoints: Checkpoints) -> None:
        """The others are counted."""
        path = save(checkpoints, 1).path
        model = {**MODEL, **{f"layer.{n}": torch.ones(1) for n in range(8)}}
        with pytest.raises(CheckpointError, match=r"missing layer\.4; and 3 more\."):
            load(checkpoints, path, model=model)

    @pytest.mark.parametrize(
        ("optimizer", "text"),
        [
            (groups(1, 1), "found 1 parameter groups, expected 2"),
            (groups(3), "group 0: found 2 parameters, expected 3"),
            (
                {**OPTIMIZER, "state": {0: {"exp_avg": torch.ones(4)}}},
                r"parameter 0 exp_avg: found \(3,\), expected \(4,\)",
            ),
        ],
    )
    def test_another_optimizer_is_refused(
        self, checkpoints: Checkpoints, optimizer: Mapping[str, Any], text: str
    ) -> None:
        """Groups, parameters, and the shapes of what it has."""
        path = save(checkpoints, 1).path
        with pytest.raises(CheckpointError, match=f"of another optimizer: {text}. Resume with"):
            load(checkpoints, path, optimizer=optimizer)

    @pytest.mark.parametrize("content", [{}, {"state": {}, "param_groups": [3]}])
    def test_what_is_no_optimizer_is_refused(
        self, checkpoints: Checkpoints, content: dict[str, Any]
    ) -> None:
        """A dict without groups."""
        path = save(checkpoints, 1, optimizer=content).path
        with pytest.raises(CheckpointError, match="does not hold the state of an optimizer"):
            load(checkpoints, path)
