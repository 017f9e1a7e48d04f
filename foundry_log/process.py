"""Facts of this process and its machine: git commit, device, rank, host, memory.

Nothing is read at import. Each function says what it costs.
"""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Literal

GIT_NOT_FOUND = "git_not_found"


@functools.cache
def git_hash() -> str:
    """Return the 40 hex digits of HEAD in the working directory, or `git_not_found`.

    Asks git once per process, when first called (some 5 ms); later calls cost nothing.
    """
    text = git_output("rev-parse", "HEAD")
    return text if text and len(text) == 40 else GIT_NOT_FOUND


def git_output(*arguments: str) -> str | None:
    """Return what `git ARGUMENTS` prints, stripped, or None where there is no git or no repository.

    Waits at most 5 seconds and never takes a lock in the repository.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip()


def device_name() -> str:
    """Return what torch computes on, such as `cuda:0`, or `cpu`.

    Never imports torch and never initialises CUDA: before the program has done so itself, torch's
    default device is the answer.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return "cpu"
    try:
        if torch.cuda.is_initialized():
            return f"cuda:{torch.cuda.current_device()}"
        return str(torch.get_default_device())
    except Exception:  # a torch too old to be asked, or one that is half imported
        return "cpu"


def host_name() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def rank_fields() -> dict[str, Any]:
    """Return `rank`, `local_rank`, `world_size`, `node` and `host` under a launcher, else `{}`.

    Source: the environment variables of `torchrun` (RANK, LOCAL_RANK, WORLD_SIZE, GROUP_RANK);
    where it has set no rank, those of a SLURM job step of several tasks (SLURM_PROCID,
    SLURM_LOCALID, SLURM_NTASKS, SLURM_NODEID). What a launcher does not tell is left out.
    """
    fields = _launched()
    return {**fields, "host": host_name()} if fields else {}


def rank() -> int | None:
    """Return this process's rank, from 0, where a launcher has started several; None elsewhere.

    Reads the environment alone, in a few µs.
    """
    fields = _launched()
    return fields["rank"] if fields.get("world_size", 1) > 1 else None


def file_rank(rank_files: RankFiles) -> int | None:
    """Return the rank that this process's files carry in their names; None for plain names.

    Raises:
        ValueError: `rank_files` is neither `each` nor `first`.
    """
    if rank_files not in ("each", "first"):
        raise ValueError(f"rank_files={rank_files!r} is unknown; use 'each' or 'first'")
    number = rank()
    return None if number == 0 and rank_files == "first" else number


def rank_label() -> str:
    """Return `rank 1`, or with several nodes `node 0 rank 1`; empty where `rank` is None."""
    number = rank()
    if number is None:
        return ""
    node = _launched().get("node")
    several = any(_number(name) > 1 for name in ("GROUP_WORLD_SIZE", "SLURM_STEP_NUM_NODES"))
    return f"node {node} rank {number}" if several and node is not None else f"rank {number}"


RankFiles = Literal["each", "first"]
"""Which ranks write files: `each` a set of its own, or the `first` alone."""

_TORCHRUN = {
    "rank": "RANK",
    "local_rank": "LOCAL_RANK",
    "world_size": "WORLD_SIZE",
    "node": "GROUP_RANK",
}
_SLURM = {
    "rank": "SLURM_PROCID",
    "local_rank": "SLURM_LOCALID",
    "world_size": "SLURM_NTASKS",
    "node": "SLURM_NODEID",
}


def _launched() -> dict[str, int]:
    """Return what the launcher tells, empty where it tells no rank.

    A script of sbatch has variables of a task too, but it is no step's.
    """
    fields = _numbers(_TORCHRUN)
    if "rank" not in fields and "SLURM_STEP_ID" in os.environ and _number("SLURM_NTASKS") > 1:
        fields = _numbers(_SLURM)
    return fields if "rank" in fields else {}


def _numbers(variables: Mapping[str, str]) -> dict[str, int]:
    numbers = {field: _number(name) for field, name in variables.items()}
    return {field: number for field, number in numbers.items() if number >= 0}


def _number(variable: str) -> int:
    """Return an environment variable's number, -1 where there is none."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else -1


def base_context(experiment: str, device: str | None = None) -> dict[str, Any]:
    """Return the fields that every record of a run carries: experiment, git_hash, device, ranks.

    Args:
        experiment: name of the run.
        device: such as `cpu` or `cuda:1`; None asks `device_name`.
    """
    return {
        "experiment": experiment,
        "git_hash": git_hash(),
        "device": str(device or device_name()),
        **rank_fields(),
    }


def memory_usage() -> dict[str, float]:
    """Return memory in GB (10^9 bytes) by name: of the GPU if torch has one, and of this process.

    `rss` is this process's resident memory, `system_percent` the machine's use from 0 to 100;
    `gpu_allocated` and `gpu_reserved` are there only with a GPU. Costs about 50 µs.
    """
    import psutil  # 10 ms to import, and only runs that ask for memory need it

    usage = {
        "rss": psutil.Process().memory_info().rss / 1e9,
        "system_percent": float(psutil.virtual_memory().percent),
    }
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_available():
            usage["gpu_allocated"] = torch.cuda.memory_allocated() / 1e9
            usage["gpu_reserved"] = torch.cuda.memory_reserved() / 1e9
    except Exception:
        pass  # a driver that fails to answer must not stop the run that asked for figures
    return usage
