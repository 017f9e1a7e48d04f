"""Facts of the process: commit, device, ranks, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foundry_log import process

pytestmark = pytest.mark.unit


def fresh(code: str, folder: Path) -> str:
    """What a fresh interpreter prints whose working directory is `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", f"from foundry_log import process; {code}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def git(folder: Path, *arguments: str) -> str:
    """What git prints in `folder`."""
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_git_hash_is_that_of_the_working_directory(tmp_path: Path) -> None:
    """A real repository answers with the 40 digits of HEAD."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")

    assert fresh("print(process.git_hash())", tmp_path) == git(tmp_path, "rev-parse", "HEAD")


def test_without_a_repository_there_is_a_text(tmp_path: Path) -> None:
    """A directory outside any repository gives the spec's word."""
    assert fresh("print(process.git_hash())", tmp_path) == "git_not_found"


def test_a_repository_without_a_commit_has_no_hash(tmp_path: Path) -> None:
    """`git rev-parse HEAD` prints the word HEAD there, and fails."""
    git(tmp_path, "init", "-q")

    assert fresh("print(process.git_hash())", tmp_path) == "git_not_found"


def test_without_git_there_is_a_text(tmp_path: Path) -> None:
    """No git on the path is no error."""
    code = "import os; os.environ['PATH'] = ''; print(process.git_hash())"

    assert fresh(code, tmp_path) == "git_not_found"


def test_the_git_hash_is_read_once(tmp_path: Path) -> None:
    """A commit made during the run does not change what the run was started from."""
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    code = (
        "import subprocess; before = process.git_hash(); "
        "subprocess.run(['git', '-c', 'user.name=n', '-c', 'user.email=e', 'commit', '-q', "
        "'--allow-empty', '-m', 'x'], check=True); print(before == process.git_hash())"
    )

    assert fresh(code, tmp_path) == "True"


def cuda(**answers: Any) -> SimpleNamespace:
    """A torch whose CUDA gives these answers."""
    functions = {name: (lambda value=value: value) for name, value in answers.items()}
    return SimpleNamespace(
        cuda=SimpleNamespace(**functions), get_default_device=lambda: "cpu", __name__="torch"
    )


class TestDevice:
    """What torch computes on, without making it start."""

    def test_without_torch_it_is_the_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN no torch in the process WHEN asked THEN it is not imported to answer."""
        monkeypatch.delitem(sys.modules, "torch", raising=False)

        assert process.device_name() == "cpu"
        assert "torch" not in sys.modules

    def test_a_gpu_in_use_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN CUDA that the program has initialised WHEN asked THEN its device is the answer."""
        torch = cuda(is_initialized=True, current_device=1)
        monkeypatch.setitem(sys.modules, "torch", torch)

        assert process.device_name() == "cuda:1"

    def test_a_gpu_not_in_use_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN CUDA not initialised WHEN asked THEN nothing that would initialise it is called."""
        torch = cuda(is_initialized=False)  # it has no other function to call
        monkeypatch.setitem(sys.modules, "torch", torch)

        assert process.device_name() == "cpu"

    def test_a_torch_that_cannot_answer_is_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN a torch half imported WHEN asked THEN the answer is the CPU."""
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__name__="torch"))

        assert process.device_name() == "cpu"


TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")


def put(monkeypatch: pytest.MonkeyPatch, **variables: int) -> None:
    """Set variables of the environment."""
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


class TestRanks:
    """What a distributed launcher tells its processes."""

    @pytest.fixture(autouse=True)
    def _no_launcher(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in os.environ:
            if name.startswith("SLURM_") or name in TORCHRUN:
                monkeypatch.delenv(name)

    def test_alone_there_are_none(self) -> None:
        """GIVEN no launcher WHEN asked THEN no field is made up."""
        assert process.rank_fields() == {}
        assert "rank" not in process.base_context("x", "cpu")

    def test_under_torchrun_they_are_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN torchrun's variables WHEN asked THEN ranks and the host are known."""
        for name, value in (("RANK", "3"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "4")):
            monkeypatch.setenv(name, value)

        assert process.rank_fields() == {
            "rank": 3,
            "local_rank": 1,
            "world_size": 4,
            "host": process.host_name(),
        }

    @pytest.mark.parametrize("text", ["first", "", "-1", "1.5", "²"])
    def test_nonsense_is_ignored(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        """GIVEN a RANK that is no number WHEN asked THEN there is none."""
        monkeypatch.setenv("RANK", text)
        monkeypatch.setenv("WORLD_SIZE", "2")

        assert process.rank_fields() == {}
        assert process.rank() is None

    def test_the_node_is_known_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN torchrun on the second of two nodes WHEN asked THEN the node is 1."""
        put(monkeypatch, RANK=2, LOCAL_RANK=0, WORLD_SIZE=4, GROUP_RANK=1, GROUP_WORLD_SIZE=2)

        assert process.rank_fields()["node"] == 1
        assert process.rank_label() == "node 1 rank 2"

    def test_on_one_node_the_label_is_the_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN torchrun on one node WHEN a label is asked for THEN the node is not in it."""
        put(monkeypatch, RANK=1, WORLD_SIZE=2, GROUP_RANK=0, GROUP_WORLD_SIZE=1)

        assert process.rank_label() == "rank 1"

    def test_one_process_is_no_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN torchrun with one process WHEN asked THEN the context knows, files do not."""
        put(monkeypatch, RANK=0, WORLD_SIZE=1)

        assert process.rank_fields()["rank"] == 0
        assert process.rank() is None
        assert process.rank_label() == ""

    def test_a_task_of_slurm_is_a_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN a step of three tasks WHEN asked THEN the same fields come from srun."""
        put(monkeypatch, SLURM_PROCID=2, SLURM_LOCALID=0, SLURM_NTASKS=3, SLURM_NODEID=1)
        assert process.rank_fields() == {}  # sbatch's own script has all these too
        put(monkeypatch, SLURM_STEP_ID=0, SLURM_STEP_NUM_NODES=2)

        assert process.rank_fields() == {
            "rank": 2,
            "local_rank": 0,
            "world_size": 3,
            "node": 1,
            "host": process.host_name(),
        }
        assert process.rank() == 2
        assert process.rank_label() == "node 1 rank 2"

    def test_a_step_of_one_task_is_no_rank(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN srun with one task WHEN asked THEN nothing is known."""
        put(monkeypatch, SLURM_PROCID=0, SLURM_NTASKS=1, SLURM_STEP_ID=0)

        assert process.rank_fields() == {}

    def test_torchrun_inside_of_srun_has_the_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN both WHEN asked THEN the rank is torchrun's."""
        put(monkeypatch, SLURM_PROCID=1, SLURM_NTASKS=2, SLURM_STEP_ID=0, RANK=5, WORLD_SIZE=8)

        assert process.rank_fields() == {"rank": 5, "world_size": 8, "host": process.host_name()}

    @pytest.mark.parametrize(
        ("rank", "each", "first"), [(0, 0, None), (1, 1, 1), (None, None, None)]
    )
    def test_files_carry_the_rank(
        self, monkeypatch: pytest.MonkeyPatch, rank: int | None, each: int, first: int
    ) -> None:
        """GIVEN a choice of files WHEN asked THEN only rank 0 of `first` has plain names."""
        if rank is not None:
            put(monkeypatch, RANK=rank, WORLD_SIZE=2)

        assert (process.file_rank("each"), process.file_rank("first")) == (each, first)

    def test_an_unknown_choice_is_refused(self) -> None:
        """GIVEN a wrong word WHEN asked THEN the right ones are named."""
        with pytest.raises(ValueError, match="rank_files='all' is unknown; use 'each' or 'first'"):
            process.file_rank("all")  # type: ignore[arg-type]


class TestMemory:
    """Memory in use, in GB."""

    def test_of_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN no GPU WHEN asked THEN it is this process's, and the system's in percent."""
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        usage = process.memory_usage()

        assert set(usage) == {"rss", "system_percent"}
        assert 0.001 < usage["rss"] < 1000
        assert 0 < usage["system_percent"] <= 100

    def test_of_the_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN a GPU WHEN asked THEN what is allocated and reserved there is known too."""
        torch = cuda(is_available=True, memory_allocated=int(1e9), memory_reserved=int(2e9))
        monkeypatch.setitem(sys.modules, "torch", torch)
        usage = process.memory_usage()

        assert (usage["gpu_allocated"], usage["gpu_reserved"]) == (1.0, 2.0)

    def test_a_gpu_that_fails_to_answer_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GIVEN a driver in trouble WHEN asked THEN the process's memory is still known."""
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__name__="torch"))

        assert set(process.memory_usage()) == {"rss", "system_percent"}
