"""The trackers as a configuration names them, plain data or an ini file; the real ones, offline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
for package in ("wandb", "tensorboard"):
    pytest.importorskip(
        package, reason=f"needs {package}: pip install 'foundry_log[test-frameworks]'"
    )

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from tests.wandb_files import WandbRun  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.frameworks, pytest.mark.slow]

BY_DICT = """
logging.config.dictConfig({
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {
        "wandb": {
            "class": "foundry_log.WandbHandler",
            "project": "vision", "directory": "tracked", "mode": "offline",
        },
        "board": {"class": "foundry_log.TensorBoardHandler", "directory": "tracked/board"},
    },
    "loggers": {"foundry_log.metrics.demo": {"level": "INFO", "handlers": ["wandb", "board"]}},
})
"""

INI = """
[loggers]
keys = root, metrics
[handlers]
keys = wandb, board
[formatters]
keys =
[logger_root]
handlers =
[logger_metrics]
qualname = foundry_log.metrics.demo
level = INFO
propagate = 0
handlers = wandb, board
[handler_wandb]
class = foundry_log.WandbHandler
args = ("vision",)
kwargs = {"directory": "tracked", "mode": "offline"}
[handler_board]
class = foundry_log.TensorBoardHandler
args = ("tracked/board",)
"""

BY_INI = 'logging.config.fileConfig("trackers.ini", disable_existing_loggers=False)'


@pytest.mark.parametrize("configure", [BY_DICT, BY_INI], ids=["dictConfig", "ini"])
def test_both_get_the_steps(tmp_path: Path, configure: str) -> None:
    """GIVEN trackers by their dotted names WHEN a program logs and ends THEN both have it all."""
    (tmp_path / "trackers.ini").write_text(INI)
    code = f"""
import logging.config
{configure}
from foundry_log import MetricsLogger
metrics = MetricsLogger("demo", "run")
for step in range(1, 6):
    metrics.log_step(step, 0, {{"loss": step / 4}})
"""
    known = {name: each for name, each in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**known, "HOME": str(tmp_path), "WANDB_ERROR_REPORTING": "false"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    expected = {step: step / 4 for step in range(1, 6)}
    assert {row["step"]: row["loss"] for row in WandbRun(tmp_path).rows()} == expected
    read = EventAccumulator(str(tmp_path / "tracked" / "board")).Reload()
    assert {event.step: event.value for event in read.Scalars("loss")} == expected
