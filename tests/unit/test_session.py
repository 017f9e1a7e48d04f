"""The three ways to set up: `configure`, `dictConfig` and `fileConfig`."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_log import (
    ExperimentConfig,
    LoggingConfig,
    MetricsLogger,
    bound,
    configure,
)

pytestmark = pytest.mark.unit

INI = Path(__file__).parents[2] / "logging.ini"


def strict_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, refusing what is not strict JSON."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture
def restored_root() -> Iterator[logging.Logger]:
    """The root logger, given back as it was: dictConfig and fileConfig replace its handlers."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def existing() -> logging.Logger:
    """A logger that was there before any set-up."""
    return logging.getLogger("library.that.logs")


class TestConfigure:
    """The three-line set-up."""

    def test_an_existing_logger_gains_strict_json(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN a logger WHEN configure is called THEN its records are lines of strict JSON."""
        with configure(LoggingConfig(), tmp_path) as session, bound(step=3):
            existing.info("loaded %d", 5, extra={"loss": float("nan")})

        [line] = strict_lines(session.directory.jsonl)
        assert line["message"] == "loaded 5"
        assert line["logger"] == "library.that.logs"
        assert line["context"] == {"step": 3, "loss": None}
        assert line["non_finite"] == {"/context/loss": "NaN"}

    def test_people_get_a_log_too(self, tmp_path: Path, existing: logging.Logger) -> None:
        """GIVEN configure WHEN a record is logged THEN run.log has it as text."""
        with configure(LoggingConfig(), tmp_path) as session:
            existing.info("loaded", extra={"rows": 5})

        assert session.directory.log.read_text().endswith(
            "INFO     library.that.logs: loaded  rows=5\n"
        )

    def test_an_experiment_gives_its_base_context(
        self, tmp_path: Path, existing: logging.Logger, tiny_config: ExperimentConfig
    ) -> None:
        """GIVEN an ExperimentConfig WHEN a plain logger logs THEN the experiment is known."""
        with configure(tiny_config, tmp_path) as session:
            existing.info("loaded")

        [line] = strict_lines(session.directory.jsonl)
        assert line["context"]["experiment"] == "test"
        assert line["context"]["device"] == "cpu"
        assert line["context"]["git_hash"]

    def test_files_go_to_the_experiments_directory_by_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: ExperimentConfig
    ) -> None:
        """GIVEN no directory WHEN configure is called THEN it is `<experiment>/output`."""
        monkeypatch.chdir(tmp_path)
        with configure(tiny_config) as session:
            logging.getLogger("a").info("hello")

        assert session.directory.path == Path("test/output")
        assert (tmp_path / "test" / "output" / "run.jsonl").exists()

    def test_without_an_experiment_files_go_to_logs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """GIVEN nothing at all WHEN configure is called THEN files are in ./logs."""
        monkeypatch.chdir(tmp_path)
        with configure():
            logging.getLogger("a").info("hello")

        assert [line["message"] for line in strict_lines(tmp_path / "logs" / "run.jsonl")] == [
            "hello"
        ]

    def test_context_is_below_scopes_and_calls(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN fields of the configuration WHEN a scope or call names them THEN those win."""
        fields = {"a": "configuration", "b": "configuration", "c": "configuration"}
        with configure(LoggingConfig(), tmp_path, context=fields) as session:
            with bound(b="scope", c="scope"):
                existing.info("x", extra={"c": "call"})

        [line] = strict_lines(session.directory.jsonl)
        assert line["context"] == {"a": "configuration", "b": "scope", "c": "call"}

    def test_applied_twice_it_doubles_nothing(
        self, tmp_path: Path, existing: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """GIVEN two calls WHEN a record is logged THEN each place has it once."""
        with configure(LoggingConfig(), tmp_path), configure(LoggingConfig(), tmp_path) as session:
            existing.info("once")

        assert len(strict_lines(session.directory.jsonl)) == 1
        assert len(session.directory.log.read_text().splitlines()) == 1
        assert capsys.readouterr().err.count("once") == 1

    def test_a_second_directory_takes_over_and_gives_back(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN a session inside a session WHEN it closes THEN the outer one goes on."""
        with configure(LoggingConfig(), tmp_path / "a") as outer:
            with configure(LoggingConfig(), tmp_path / "b") as inner:
                existing.info("inner")
            existing.info("outer")

        assert [line["message"] for line in strict_lines(outer.directory.jsonl)] == ["outer"]
        assert [line["message"] for line in strict_lines(inner.directory.jsonl)] == ["inner"]

    def test_sessions_closed_in_the_other_order_leave_nothing(self, tmp_path: Path) -> None:
        """GIVEN two sessions WHEN the older closes first THEN root is as before all."""
        root = logging.getLogger()
        before = (root.handlers[:], root.level)
        first = configure(LoggingConfig(), tmp_path / "a")
        second = configure(LoggingConfig(), tmp_path / "b")
        first.close()
        assert set(second.handlers) <= set(root.handlers)
        second.close()

        assert (root.handlers, root.level) == before

    def test_closing_twice_is_no_error(self, tmp_path: Path) -> None:
        """GIVEN a closed session WHEN it is closed again THEN nothing happens."""
        session = configure(LoggingConfig(), tmp_path)
        session.close()
        session.close()

    def test_an_existing_console_handler_stands_back(
        self, tmp_path: Path, existing: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """GIVEN basicConfig's handler WHEN configure is called THEN the terminal has one line."""
        root = logging.getLogger()
        old = logging.StreamHandler(sys.stderr)
        root.addHandler(old)
        try:
            with configure(LoggingConfig(), tmp_path):
                assert old not in root.handlers
                existing.info("once")
            assert old in root.handlers
        finally:
            root.removeHandler(old)

        assert capsys.readouterr().err.count("once") == 1

    def test_a_handler_of_others_stays(self, tmp_path: Path, existing: logging.Logger) -> None:
        """GIVEN a handler that writes elsewhere WHEN configure is called THEN it goes on."""
        root = logging.getLogger()
        elsewhere = io.StringIO()
        handler = logging.StreamHandler(elsewhere)
        root.addHandler(handler)
        try:
            with configure(LoggingConfig(), tmp_path):
                existing.info("kept")
        finally:
            root.removeHandler(handler)

        assert elsewhere.getvalue() == "kept\n"

    def test_levels_hold_for_each_place(
        self, tmp_path: Path, existing: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """GIVEN WARNING on the console and INFO in files WHEN logging THEN each shows its own."""
        config = LoggingConfig(console_level="WARNING", file_level="INFO")
        with configure(config, tmp_path) as session:
            existing.debug("debug")
            existing.info("info")
            existing.warning("warning")

        assert [line["message"] for line in strict_lines(session.directory.jsonl)] == [
            "info",
            "warning",
        ]
        shown = capsys.readouterr().err
        assert "warning" in shown
        assert "info" not in shown

    def test_the_run_is_described(self, tmp_path: Path, tiny_config: ExperimentConfig) -> None:
        """GIVEN configure WHEN it returns THEN run_info.json has configuration and environment."""
        with configure(tiny_config, tmp_path) as session:
            info = json.loads(session.directory.info.read_text())

        assert info["config"]["experiment_name"] == "test"
        assert info["config"]["training"]["train_steps"] == 10
        assert info["packages"]["msgspec"]
        assert info["argv"] == sys.argv
        assert {"hash", "branch", "modified_files"} == set(info["git"])
        assert info["host"]
        assert info["python"]

    def test_a_directory_that_cannot_be_written_leaves_the_console(
        self, tmp_path: Path, existing: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """GIVEN a directory below a file WHEN records are logged THEN the console has them all.

        Each file handler reports once and counts the rest.
        """
        (tmp_path / "file").write_text("")
        with configure(LoggingConfig(), tmp_path / "file" / "logs") as session:
            for number in range(5):
                existing.info("record %d", number)
            losses = [dict(getattr(handler, "losses", {})) for handler in session.handlers]

        shown = capsys.readouterr().err
        assert all(f"record {number}" in shown for number in range(5))
        assert shown.count("--- Logging error ---") == 2
        assert "run_info.json could not be written" in shown
        # five records and the warning about run_info.json
        assert losses == [{"NotADirectoryError ENOTDIR": 6}] * 2 + [{}]

    def test_what_is_no_configuration_is_refused(self) -> None:
        """GIVEN a dict WHEN configure is called THEN the error says how to make one of it."""
        with pytest.raises(TypeError, match=r"LoggingConfig\(\*\*settings\)"):
            configure({"console_level": "INFO"})  # type: ignore[arg-type]

    def test_a_wrong_call_changes_nothing(self, tmp_path: Path) -> None:
        """GIVEN wrong arguments WHEN configure raises THEN the root logger is as before."""
        root = logging.getLogger()
        before = (root.handlers[:], root.level)
        with pytest.raises(TypeError):
            configure("INFO", tmp_path)  # type: ignore[arg-type]

        assert (root.handlers, root.level) == before

    def test_lines_survive_without_close(self, tmp_path: Path) -> None:
        """GIVEN a program that never closes WHEN it is killed THEN its lines are there."""
        code = (
            "import logging, os, signal, foundry_log\n"
            "foundry_log.configure(foundry_log.LoggingConfig(), 'out')\n"
            "logging.getLogger('a').info('acknowledged')\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)

        [line] = strict_lines(tmp_path / "out" / "run.jsonl")
        assert line["message"] == "acknowledged"


@pytest.mark.usefixtures("restored_root")
class TestDictConfig:
    """`logging.config.dictConfig(LoggingConfig().to_dict_config(...))`."""

    def test_an_existing_logger_gains_strict_json(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN a logger WHEN dictConfig is applied THEN it lives and writes strict JSON."""
        logging.config.dictConfig(LoggingConfig().to_dict_config(tmp_path, context={"team": "a"}))
        existing.info("hello", extra={"loss": float("inf")})

        [line] = strict_lines(tmp_path / "run.jsonl")
        assert line["message"] == "hello"
        assert line["context"] == {"team": "a", "loss": None}

    def test_applied_twice_it_doubles_nothing(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN two applications WHEN a record is logged THEN the file has it once."""
        for _ in range(2):
            logging.config.dictConfig(LoggingConfig().to_dict_config(tmp_path))
        existing.info("once")

        assert len(strict_lines(tmp_path / "run.jsonl")) == 1

    def test_configure_over_it_doubles_nothing(
        self, tmp_path: Path, existing: logging.Logger, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """GIVEN dictConfig WHEN configure follows on the same files THEN each line is once."""
        logging.config.dictConfig(LoggingConfig().to_dict_config(tmp_path))
        with configure(LoggingConfig(), tmp_path):
            existing.info("once")

        assert len(strict_lines(tmp_path / "run.jsonl")) == 1
        assert capsys.readouterr().err.count("once") == 1

    def test_it_closes_no_metrics(self, tmp_path: Path) -> None:
        """GIVEN a MetricsLogger WHEN dictConfig closes all handlers THEN steps are written."""
        metrics = MetricsLogger("x", tmp_path)
        metrics.log_step(1, 0, {"loss": 1.0})
        data = LoggingConfig().to_dict_config(tmp_path)
        logging.config.dictConfig({**data, "disable_existing_loggers": True})
        metrics.log_step(2, 0, {"loss": 2.0})

        assert [line["step"] for line in strict_lines(metrics.metrics_file)] == [1, 2]
        metrics.close()


@pytest.mark.usefixtures("restored_root")
class TestFileConfig:
    """`logging.config.fileConfig("logging.ini")` from any directory."""

    def test_an_existing_logger_gains_strict_json(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: logging.Logger
    ) -> None:
        """GIVEN any working directory WHEN fileConfig is applied THEN files are in ./logs."""
        monkeypatch.chdir(tmp_path)
        logging.config.fileConfig(INI, disable_existing_loggers=False)
        existing.info("hello", extra={"loss": float("-inf")})

        [line] = strict_lines(tmp_path / "logs" / "run.jsonl")
        assert line["message"] == "hello"
        assert line["non_finite"] == {"/context/loss": "-Infinity"}
        assert "\x1b" not in (tmp_path / "logs" / "run.log").read_text()

    def test_applied_twice_it_doubles_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: logging.Logger
    ) -> None:
        """GIVEN two applications WHEN a record is logged THEN each file has it once."""
        monkeypatch.chdir(tmp_path)
        for _ in range(2):
            logging.config.fileConfig(INI, disable_existing_loggers=False)
        existing.info("once")

        assert len(strict_lines(tmp_path / "logs" / "run.jsonl")) == 1
        assert len((tmp_path / "logs" / "run.log").read_text().splitlines()) == 1

    def test_a_new_logger_needs_no_second_argument(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """GIVEN `fileConfig(path)` alone WHEN a logger is made afterwards THEN it writes."""
        monkeypatch.chdir(tmp_path)
        logging.config.fileConfig(INI)
        logging.getLogger(f"made.after.{os.getpid()}").info("hello")

        assert len(strict_lines(tmp_path / "logs" / "run.jsonl")) == 1
