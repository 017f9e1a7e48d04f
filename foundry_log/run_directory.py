"""The files of one run and the record of what it ran on."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from foundry_log.clock import timestamp
from foundry_log.dict_config import JSONL_NAME, LOG_NAME
from foundry_log.encoding import encode_document
from foundry_log.files.documents import PERMISSIONS, write_document
from foundry_log.process import git_hash, git_output, host_name, rank_fields
from foundry_log.redaction import Redactor

PACKAGES = ("foundry_log", "torch", "numpy", "pydantic", "python-json-logger", "msgspec", "psutil")


@dataclass(frozen=True)
class RunDirectory:
    """Where each file of a run is; nothing is made by asking."""

    path: Path

    @classmethod
    def of(cls, base: str | os.PathLike[str], experiment: str) -> RunDirectory:
        """Return the directory of an experiment: `<base>/<experiment>/output`."""
        return cls(Path(base) / experiment / "output")

    @property
    def log(self) -> Path:
        """The log for people."""
        return self.path / LOG_NAME

    @property
    def jsonl(self) -> Path:
        """The log as JSON Lines."""
        return self.path / JSONL_NAME

    @property
    def metrics(self) -> Path:
        """One line a logged step or completed epoch."""
        return self.path / "metrics.jsonl"

    @property
    def errors(self) -> Path:
        """One line an error."""
        return self.path / "errors.jsonl"

    @property
    def timing_report(self) -> Path:
        """Statistics of each timed block."""
        return self.path / "timing_report.json"

    @property
    def info(self) -> Path:
        """The resolved configuration and what the run ran on."""
        return self.path / "run_info.json"

    @property
    def system_metrics(self) -> Path:
        """One line of CPU, memory, disk, network and GPU every few seconds."""
        return self.path / "system_metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One directory a checkpoint."""
        return self.path / "checkpoints"


def write_run_info(
    directory: RunDirectory,
    config: Mapping[str, Any],
    redactor: Redactor | None = None,
    permissions: int = PERMISSIONS,
) -> None:
    """Write `run_info.json`: the configuration, versions, git state, command and machine.

    Asks git three times, some 15 ms in all.

    Args:
        directory: the run's; made if missing.
        config: the resolved configuration as plain data.
        redactor: takes secrets out of the command and the rest; None leaves them.
        permissions: of the file, before the umask.

    Raises:
        OSError: the file cannot be written.
    """
    facts = environment()
    if redactor is not None:
        command = redactor.text("\t".join(facts["argv"]))  # as a whole: `--token` names the next
        facts = redactor.value({**facts, "argv": command.split("\t")})
    write_document(directory.info, encode_document({"config": config, **facts}), permissions)


def environment() -> dict[str, Any]:
    """Return what a run needs to be understood later: versions, git state, command, machine."""
    return {
        "started": timestamp(time.time()),
        "argv": sys.argv,
        "working_directory": os.getcwd(),
        "host": host_name(),
        "pid": os.getpid(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git": {
            "hash": git_hash(),
            "branch": git_output("rev-parse", "--abbrev-ref", "HEAD"),
            "modified_files": (git_output("status", "--porcelain") or "").splitlines()[:100],
        },
        "ranks": rank_fields(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
