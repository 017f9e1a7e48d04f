"""The three ways to set up: `configure`, `dictConfig` and `fileConfig`."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_log import (
    ErrorTracker,
    ExperimentConfig,
    LoggingConfig,
    MetricsLogger,
    bound,
    configure,
    read_jsonl,
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

    @pytest.mark.parametrize("rank", [0, 1])
    def test_the_first_rank_describes_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
    ) -> None:
        """GIVEN two ranks WHEN configure is called THEN rank 0 alone writes run_info.json."""
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        with configure(directory=tmp_path, console=False) as session:
            logging.getLogger("app").info("here")

        assert session.directory.info.exists() == (rank == 0)
        assert (tmp_path / f"run@rank{rank}.log").exists()
        (line,) = read_jsonl(session.directory.jsonl)
        assert line["context"]["rank"] == rank

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


class TestBackgroundWriting:
    """The same files, written by a thread."""

    def test_every_file_is_written_by_the_thread(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN background_writing WHEN records are logged THEN flush and close see them in."""
        threads: set[str] = set()
        config = LoggingConfig(background_writing=True, background_queue_size=5)
        with configure(config, tmp_path, context={"team": "a"}, console=False) as session:
            (queue,) = session.handlers
            queue.handlers[0].addFilter(
                lambda record: threads.add(threading.current_thread().name) or True
            )
            with bound(step=3):
                for number in range(50):
                    existing.info("record %d", number)
            session.flush()
            assert len(strict_lines(session.directory.jsonl)) == 50
            existing.info("last")

        lines = strict_lines(session.directory.jsonl)
        assert [line["message"] for line in lines] == [f"record {n}" for n in range(50)] + ["last"]
        assert lines[0]["context"] == {"team": "a", "step": 3}
        assert len(session.directory.log.read_text().splitlines()) == 51
        assert threads == {"foundry_log-background"}
        assert threading.active_count() == 1

    def test_a_second_session_over_it_doubles_nothing(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN two sessions on one directory WHEN both end THEN each record stands once."""
        config = LoggingConfig(background_writing=True)
        with configure(config, tmp_path, console=False) as session:
            existing.info("one")
            with configure(LoggingConfig(), tmp_path, console=False):
                existing.info("two")
            existing.info("three")

        assert sorted(line["message"] for line in strict_lines(session.directory.jsonl)) == [
            "one",
            "three",
            "two",
        ]

    def test_a_handler_of_the_same_file_stands_back(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN somebody's FileHandler of run.jsonl WHEN configure is called THEN one writes."""
        other = logging.FileHandler(tmp_path / "run.jsonl", delay=True)
        logging.getLogger().addHandler(other)
        try:
            with configure(LoggingConfig(background_writing=True), tmp_path, console=False) as mine:
                existing.info("once")
            assert other in logging.getLogger().handlers
        finally:
            logging.getLogger().removeHandler(other)
        assert len(strict_lines(mine.directory.jsonl)) == 1

    def test_dict_config_takes_the_same(
        self, tmp_path: Path, restored_root: logging.Logger, existing: logging.Logger
    ) -> None:
        """GIVEN the dict WHEN dictConfig has it THEN its queue finds its handlers by name."""
        data = LoggingConfig(background_writing=True).to_dict_config(tmp_path, console=False)
        logging.config.dictConfig(json.loads(json.dumps(data)))
        existing.info("hello")
        (queue,) = restored_root.handlers
        queue.close()

        assert strict_lines(tmp_path / "run.jsonl")[0]["message"] == "hello"

    def test_an_ini_file_lists_the_handlers_first(
        self, tmp_path: Path, restored_root: logging.Logger, existing: logging.Logger
    ) -> None:
        """GIVEN a queue behind its handler in `keys` WHEN fileConfig reads it THEN it works."""
        ini = tmp_path / "logging.ini"
        ini.write_text(
            f"""
[loggers]
keys = root
[handlers]
keys = jsonl, queue
[formatters]
keys = json
[logger_root]
level = INFO
handlers = queue
[handler_jsonl]
class = foundry_log.RotatingJsonlHandler
formatter = json
args = ({str(tmp_path / "run.jsonl")!r},)
[handler_queue]
class = foundry_log.BackgroundHandler
args = (["jsonl"], 100, "drop_oldest")
[formatter_json]
class = foundry_log.JsonFormatter
"""
        )
        logging.config.fileConfig(ini, disable_existing_loggers=False)
        existing.info("hello")
        (queue,) = restored_root.handlers
        queue.close()

        assert (queue.capacity, queue.overflow) == (100, "drop_oldest")
        assert strict_lines(tmp_path / "run.jsonl")[0]["message"] == "hello"


class TestFiles:
    """What the configuration says of files."""

    def test_permissions_and_compression(self, tmp_path: Path, existing: logging.Logger) -> None:
        """GIVEN both WHEN files rotate THEN they are gzips that the owner alone may read."""
        config = LoggingConfig(
            file_permissions="0600", compress_rotated_logs=True, max_log_size_mb=1, max_log_files=3
        )
        with configure(config, tmp_path, console=False) as session:
            for number in range(4):
                existing.info("%d %s", number, "x" * 600_000)

        files = [path for path in tmp_path.iterdir() if path.name.startswith("run.")]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        assert sum(path.name.endswith(".jsonl.gz") for path in files) == 3
        found = [entry["message"][0] for entry in read_jsonl(session.directory.jsonl)]
        assert found == ["0", "1", "2", "3"]

    def test_a_function_is_told_of_rotated_files(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN its dotted name WHEN files rotate THEN it gets each; here it removes them."""
        config = LoggingConfig(after_rotation="os.remove", max_log_size_mb=1)
        with configure(config, tmp_path, console=False):
            for number in range(4):
                existing.info("%d %s", number, "x" * 600_000)

        assert sorted(path.name for path in tmp_path.glob("run.*")) == ["run.jsonl", "run.log"]

    def test_losses_are_those_of_all_handlers(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN a queue and files that cannot be made WHEN records come THEN each loss counts."""
        (tmp_path / "run.jsonl").mkdir()
        with configure(LoggingConfig(background_writing=True), tmp_path, console=False) as session:
            existing.info("one")
            existing.info("two")
            session.flush()
            assert session.losses == {"IsADirectoryError EISDIR": 2}

    def test_one_file_per_process(self, tmp_path: Path, existing: logging.Logger) -> None:
        """GIVEN it is asked for WHEN a child logs too THEN a reader of run.jsonl has both."""
        with configure(LoggingConfig(one_file_per_process=True), tmp_path, console=False) as mine:
            existing.info("parent")
            pid = os.fork()
            if pid == 0:
                existing.info("child")
                os._exit(0)
            os.waitpid(pid, 0)

        assert not mine.directory.jsonl.exists()
        assert len(list(tmp_path.glob("run@*.jsonl"))) == 2
        assert [e["message"] for e in read_jsonl(mine.directory.jsonl)] == ["parent", "child"]


class TestRedaction:
    """Secrets, by request; the rules are in test_redaction.py."""

    @pytest.mark.parametrize("background", [False, True])
    def test_no_file_of_the_run_has_a_secret(
        self,
        tmp_path: Path,
        existing: logging.Logger,
        background: bool,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """GIVEN redact_secrets WHEN secrets go in by every way THEN none comes out."""
        config = LoggingConfig(
            redact_secrets=True, redact_patterns=["p4t-[a-z]+"], background_writing=background
        )
        context = {"api_key": "s3cret-a"}
        with configure(config, tmp_path, context=context), bound(password="s3cret-b"):
            existing.info(
                "token=s3cret0c1 and %s", "p4t-secret", extra={"auth": {"pwd": "s3cret-d"}}
            )
            metrics = MetricsLogger("x", tmp_path)
            metrics.log_step(1, 0, {"loss": 1.0})
            errors = ErrorTracker(existing, tmp_path)
            errors.log_error(ValueError("https://u:s3cret-e@host/"), {"client_secret": "s3cret-f"})
            recent = errors.get_recent_errors()
            metrics.close()
            errors.close()

        written = "".join(path.read_text() for path in tmp_path.glob("*.*"))
        shown = written + capsys.readouterr().err + repr(recent)
        assert "s3cret" not in shown
        assert "p4t-secret" not in shown
        assert len(strict_lines(tmp_path / "metrics.jsonl")) == 1
        assert "u:[redacted]@host" in shown
        assert strict_lines(tmp_path / "run.jsonl")[0]["context"]["api_key"] == "[redacted]"

    def test_a_queue_redacts_arguments_by_their_names(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN named arguments WHEN they are queued THEN they are redacted first."""
        config = LoggingConfig(redact_secrets=True, background_writing=True)
        with configure(config, tmp_path, console=False) as session:
            existing.info("login %(user)s %(api_key)s", {"user": "u", "api_key": "S14"})

        assert strict_lines(session.directory.jsonl)[0]["message"] == "login u [redacted]"

    def test_the_command_in_run_info_has_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """GIVEN a key on the command line WHEN the run is described THEN it is blanked."""
        monkeypatch.setattr(sys, "argv", ["train.py", "--api-key", "k3y-0f-mine", "--name", "a b"])
        with configure(LoggingConfig(redact_secrets=True), tmp_path, console=False) as session:
            pass

        info = json.loads(session.directory.info.read_text())
        assert info["argv"] == ["train.py", "--api-key", "[redacted]", "--name", "a b"]

    def test_without_the_request_nothing_is_touched(
        self, tmp_path: Path, existing: logging.Logger
    ) -> None:
        """GIVEN the defaults WHEN a secret is logged THEN it is as the caller gave it."""
        with configure(LoggingConfig(), tmp_path, console=False) as session:
            existing.info("hello", extra={"password": "x"})

        assert strict_lines(session.directory.jsonl)[0]["context"] == {"password": "x"}


class TestSignals:
    """Preemption; the details are in test_signals.py."""

    @pytest.mark.parametrize("background", [False, True])
    def test_the_last_record_says_why_and_nothing_is_lost(
        self, tmp_path: Path, background: bool
    ) -> None:
        """GIVEN handle_signals WHEN SIGTERM comes THEN all stands, and the process is killed."""
        script = """
import logging, os, signal, sys, time
from foundry_log import ErrorTracker, LoggingConfig, MetricsLogger, configure
config = LoggingConfig(background_writing=sys.argv[2] == "True")
configure(config, sys.argv[1], console=False, handle_signals=True)
log, metrics = logging.getLogger("train"), MetricsLogger("x", sys.argv[1])
for step in range(500):
    metrics.log_step(step, 0, {"loss": 1.0})
ErrorTracker(log, sys.argv[1]).log_error(ValueError("x"))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), str(background)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        lines = strict_lines(tmp_path / "run.jsonl")
        assert (done.returncode, done.stderr) == (-signal.SIGTERM, "")
        assert len(strict_lines(tmp_path / "metrics.jsonl")) == 500
        assert len(strict_lines(tmp_path / "errors.jsonl")) == 1
        assert [line["logger"] for line in lines[-2:]] == ["train", "foundry_log.signals"]
        assert len(lines) == 502
        assert lines[-1]["context"]["signal"] == "SIGTERM"

    @pytest.mark.parametrize("rule", ["block", "drop_newest", "drop_oldest"])
    def test_a_flooded_queue_still_says_why_and_how_much_was_dropped(
        self, tmp_path: Path, rule: str
    ) -> None:
        """GIVEN a queue that overflows WHEN SIGTERM comes THEN all records are accounted for."""
        script = """
import logging, os, signal, sys, time
from foundry_log import LoggingConfig, bound, configure
config = LoggingConfig(
    background_writing=True, background_queue_size=20, background_overflow=sys.argv[2]
)
configure(config, sys.argv[1], console=False, handle_signals=True)
with bound(run_id="r7"):
    for number in range(5000):
        logging.info("flood %d", number)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), rule],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        lines = strict_lines(tmp_path / "run.jsonl")
        floods = [line for line in lines if line["message"].startswith("flood")]
        (last,) = [line for line in lines if line["logger"] == "foundry_log.signals"]
        dropped = [
            line["context"]["dropped"]["INFO"] for line in lines if "dropped" in line["context"]
        ]
        assert done.returncode == -signal.SIGTERM
        assert len(floods) + sum(dropped) == 5000
        assert bool(dropped) == (rule != "block")
        assert last["context"]["run_id"] == "r7"

    def test_what_the_main_thread_logs_on_is_written_too(self, tmp_path: Path) -> None:
        """GIVEN a queue and a loop that logs WHEN SIGTERM comes THEN no line is lost."""
        script = """
import logging, os, signal, sys, threading
from foundry_log import LoggingConfig, configure
config = LoggingConfig(background_writing=True)
configure(config, sys.argv[1], console=False, handle_signals=True)
notes = os.open(os.path.join(sys.argv[1], "notes"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
number = 0
while True:
    logging.info("%d", number)
    os.write(notes, b"%d\\n" % number)
    number += 1
"""
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        lines = strict_lines(tmp_path / "run.jsonl")
        found = [line["message"] for line in lines if line["logger"] == "root"]
        told = (tmp_path / "notes").read_text().splitlines()
        assert done.returncode == -signal.SIGTERM
        assert len(told) > 100
        assert found[: len(told)] == told

    def test_sessions_inside_each_other_share_one_watch(self, tmp_path: Path) -> None:
        """GIVEN both handle signals WHEN SIGTERM comes THEN one record says so, in the inner."""
        script = """
import logging, os, signal, sys, time
from foundry_log import LoggingConfig, configure
for name in ("outer", "inner"):
    config = LoggingConfig(background_writing=True)
    configure(config, os.path.join(sys.argv[1], name), console=False, handle_signals=True)
logging.info("in the inner")
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(60)
"""
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == -signal.SIGTERM
        lines = strict_lines(tmp_path / "inner" / "run.jsonl")
        assert [line["logger"] for line in lines] == ["root", "foundry_log.signals"]

    def test_close_gives_the_signals_back(self, tmp_path: Path) -> None:
        """GIVEN a session that handles signals WHEN it is closed THEN all is as before."""
        before = signal.getsignal(signal.SIGTERM)
        session = configure(LoggingConfig(), tmp_path, console=False, handle_signals=True)
        assert signal.getsignal(signal.SIGTERM) is not before
        session.close()
        session.close()

        assert signal.getsignal(signal.SIGTERM) is before

    def test_another_thread_is_refused_and_leaves_nothing(self, tmp_path: Path) -> None:
        """GIVEN a thread WHEN it configures with signals THEN the error says where to."""
        caught: list[str] = []

        def run() -> None:
            try:
                configure(LoggingConfig(), tmp_path, console=False, handle_signals=True)
            except ValueError as error:
                caught.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

        assert "main thread" in caught[0]


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
