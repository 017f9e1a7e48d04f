"""ShippingHandler: shipping by configuration alone, also while the interpreter ends."""

from __future__ import annotations

import logging
import logging.config
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundry_log import (
    LoggingConfig,
    MetricsLogger,
    RotatingJsonlHandler,
    ShippingHandler,
    configure,
    read_jsonl,
)
from foundry_log.config import ExperimentConfig
from tests.shipped import blob_names, wait_for_blobs

pytestmark = pytest.mark.unit
DEADLINE_S = 30.0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where a run writes."""
    return tmp_path / "runs" / "first"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where its files are to go."""
    return tmp_path / "store"


@pytest.fixture
def program(tmp_path: Path) -> Iterator[str]:
    """The begin of a script that ships."""
    yield (
        "import logging, os, sys\n"
        "from foundry_log import LoggingConfig, configure\n"
        f"config = LoggingConfig(ship_to={(tmp_path / 'store').as_uri()!r})\n"
        f"session = configure(config, {str(tmp_path / 'runs' / 'first')!r}, console=False)\n"
        "log = logging.getLogger('service')\n"
        "log.info('hello')\n"
    )


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run a script of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_a_session_ships_its_files_when_it_is_closed(run: Path, store: Path) -> None:
    """GIVEN one option WHEN the session ends THEN its files are in the store, with their lines."""
    with configure(LoggingConfig(ship_to=store.as_uri()), run, console=False):
        logging.getLogger("service").info("hello")

    assert blob_names(store) == {
        f"runs/first/{name}" for name in ("run.log", "run.jsonl", "run_info.json")
    }
    (line,) = read_jsonl(store / "runs" / "first" / "run.jsonl")
    assert line["message"] == "hello"
    assert (run / "run.jsonl").exists()


def test_metrics_that_are_closed_before_go_along(run: Path, store: Path) -> None:
    """Whoever writes into the run's directory; what is still open stays, and is no error."""
    with configure(LoggingConfig(ship_to=store.as_uri()), run, console=False) as session:
        closed, still_open = MetricsLogger("exp", run), MetricsLogger("other", run / "other")
        closed.log_step(1, 0, {"loss": 2.0})
        still_open.log_step(1, 0, {"loss": 2.0})
        closed.close()
    still_open.close()

    assert "runs/first/metrics.jsonl" in blob_names(store)
    assert not {name for name in blob_names(store) if "other" in name}
    assert not session.losses


def test_the_program_need_not_close_anything(program: str, store: Path) -> None:
    """GIVEN a script that just ends WHEN it has ended THEN its files are in the store."""
    done = run_python(program)

    assert (done.returncode, done.stderr) == (0, "")
    assert blob_names(store) == {
        f"runs/first/{name}" for name in ("run.log", "run.jsonl", "run_info.json")
    }


def test_background_writing_is_finished_first(program: str, store: Path) -> None:
    """GIVEN a queue WHEN the script ends THEN what was queued is in the file that is shipped."""
    code = program.replace("ship_to=", "background_writing=True, ship_to=")
    done = run_python(code + "for number in range(1000): log.info('%d', number)\n")

    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(read_jsonl(store / "runs" / "first" / "run.jsonl"))) == 1001


def test_an_exception_ends_the_program_as_ever(program: str, store: Path) -> None:
    """Its files are shipped all the same."""
    done = run_python(program + "raise ValueError('wrong')\n")

    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: wrong\n")
    assert "runs/first/run.jsonl" in blob_names(store)


def test_rotated_files_travel_while_the_run_goes_on(run: Path, store: Path) -> None:
    """GIVEN a rotated file that has rested WHEN the next scan comes THEN it is in the store."""
    handler = ShippingHandler(run, store.as_uri(), scan_interval_s=0.05)
    writer = RotatingJsonlHandler(run / "run.jsonl", maxBytes=1, stable_names=True)
    try:
        for number in range(3):
            writer.handle(logging.makeLogRecord({"msg": f"line {number}"}))
        rested = time.time() - 60
        for path in run.glob("run.*Z.jsonl"):
            os.utime(path, (rested, rested))
        names = wait_for_blobs(store, 2)
        assert names == {f"runs/first/{path.name}" for path in run.glob("run.*Z.jsonl")}
        assert len(names) == 2
    finally:
        writer.close()
        handler.close()


def test_records_pass_it_by(run: Path, store: Path) -> None:
    """A logger that has nothing else has no handler that would take a record."""
    handler = ShippingHandler(run, store.as_uri())
    logger = logging.getLogger("foundry.test.shipping")
    logger.addHandler(handler)
    try:
        logger.propagate = False
        logger.critical("nobody writes this")
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert not [path for path in run.glob("*") if not path.name.startswith(".")]


def test_dict_config_makes_it(run: Path, store: Path, tmp_path: Path) -> None:
    """GIVEN the plain dict WHEN a script gives it to dictConfig THEN its end ships the files."""
    data = LoggingConfig(ship_to=store.as_uri()).to_dict_config(run, console=False)
    done = run_python(
        "import logging, logging.config\n"
        f"logging.config.dictConfig({data!r})\n"
        "logging.getLogger('service').info('hello')\n"
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert blob_names(store) == {"runs/first/run.log", "runs/first/run.jsonl"}


def test_an_ini_file_makes_it(run: Path, store: Path, tmp_path: Path) -> None:
    """GIVEN a handler section WHEN fileConfig reads it THEN its end ships the files."""
    ini = tmp_path / "logging.ini"
    ini.write_text(
        f"""
[loggers]
keys = root
[handlers]
keys = jsonl, shipping
[formatters]
keys =
[logger_root]
level = INFO
handlers = jsonl, shipping
[handler_jsonl]
class = foundry_log.RotatingJsonlHandler
args = ({str(run / "service.jsonl")!r}, "a", 50, 0)
kwargs = {{"stable_names": True}}
[handler_shipping]
class = foundry_log.ShippingHandler
args = ({str(run)!r}, {store.as_uri()!r})
"""
    )
    done = run_python(
        "import logging.config\n"
        f"logging.config.fileConfig({str(ini)!r}, disable_existing_loggers=False)\n"
        "for _ in range(3): logging.getLogger('service').info('hello')\n"
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert len(blob_names(store)) == 3


def test_the_child_of_a_fork_ships_nothing_and_ends(program: str, store: Path) -> None:
    """GIVEN a fork WHEN the child ends and then the parent THEN the parent ships, once."""
    code = program + (
        "import warnings\n"
        "warnings.simplefilter('ignore')  # of Python 3.12: it has threads\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    log.info('child')\n"
        "    sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    done = run_python(code)

    assert (done.returncode, done.stderr) == (0, "")
    lines = [line["message"] for line in read_jsonl(store / "runs" / "first" / "run.jsonl")]
    assert lines == ["hello", "child"]


def test_a_store_that_cannot_be_had_costs_a_line_and_no_record(tmp_path: Path, run: Path) -> None:
    """GIVEN a path that is a file WHEN the session ends THEN it says how to ship later."""
    blocked = tmp_path / "store"
    blocked.write_text("not a directory")
    code = (
        "import logging\n"
        "from foundry_log import LoggingConfig, configure\n"
        f"config = LoggingConfig(ship_to={blocked.as_uri()!r})\n"
        f"with configure(config, {str(run)!r}, console=False):\n"
        "    logging.getLogger('service').info('hello')\n"
    )
    done = run_python(code)

    assert done.returncode == 0
    assert "store" in done.stderr
    assert len(list(read_jsonl(run / "run.jsonl"))) == 1


def test_what_cannot_be_used_is_refused_at_once(tmp_path: Path) -> None:
    """An address that is none, a number out of range; nothing is left running."""
    with pytest.raises(ValueError, match="https://ACCOUNT"):
        configure(LoggingConfig(ship_to="somewhere"), tmp_path)
    with pytest.raises(ValueError, match="scan_interval"):
        ShippingHandler(tmp_path, (tmp_path / "s").as_uri(), scan_interval_s=0)
    with pytest.raises(ValueError, match="close_within_s=-1"):
        ShippingHandler(tmp_path, (tmp_path / "s").as_uri(), close_within_s=-1)


def test_a_refused_address_leaves_the_other_handlers_alone(tmp_path: Path) -> None:
    """GIVEN a refusal that is caught and kept WHEN the program ends THEN all others are closed."""
    code = (
        "import logging, logging.handlers\n"
        "from foundry_log import LoggingConfig, configure\n"
        f"target = logging.FileHandler({str(tmp_path / 'app.log')!r})\n"
        "logging.getLogger().addHandler(logging.handlers.MemoryHandler(10, target=target))\n"
        "logging.getLogger().warning('buffered')\n"
        f"try: configure(LoggingConfig(ship_to='nonsense'), {str(tmp_path / 'run')!r})\n"
        "except ValueError as error: kept = error\n"
    )
    done = run_python(code)

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "app.log").read_text() == "buffered\n"


def test_another_dict_config_ends_it_without_a_wait(run: Path, store: Path) -> None:
    """GIVEN logging's own lock, which it holds WHEN it closes the handler THEN all is there."""
    data = LoggingConfig(ship_to=store.as_uri()).to_dict_config(run, console=False)
    done = run_python(
        "import logging, logging.config\n"
        f"logging.config.dictConfig({data!r})\n"
        "logging.getLogger('service').info('hello')\n"
        "logging.config.dictConfig({'version': 1})\n"
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "runs/first/run.jsonl" in blob_names(store)


def test_ranks_that_end_together_leave_nothing(run: Path, store: Path) -> None:
    """GIVEN four ranks of one directory WHEN all close at once THEN the files of all are there."""
    code = (
        "import logging, os, sys\n"
        "from foundry_log import LoggingConfig, configure\n"
        f"config = LoggingConfig(ship_to={store.as_uri()!r})\n"
        f"session = configure(config, {str(run)!r}, console=False)\n"
        "logging.getLogger('service').info('hello')\n"
        "sys.stdin.read()\n"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
        )
        for rank in range(4)
    ]
    try:
        limit = time.monotonic() + DEADLINE_S
        while len(list(run.glob("run@rank*.jsonl"))) < 4 and time.monotonic() < limit:
            time.sleep(0.01)
        for process in ranks:
            assert process.stdin is not None
            process.stdin.close()
        assert [process.wait(DEADLINE_S) for process in ranks] == [0, 0, 0, 0]
    finally:
        for process in ranks:
            process.kill()
            process.wait()

    names = {f"run@rank{rank}.{kind}" for rank in range(4) for kind in ("jsonl", "log")}
    assert {f"runs/first/{name}" for name in names} <= blob_names(store)


def test_what_is_open_still_is_said(run: Path, store: Path) -> None:
    """GIVEN metrics that nobody closed WHEN the session ends THEN it says whose file is left."""
    with configure(LoggingConfig(ship_to=store.as_uri()), run, console=False):
        metrics = MetricsLogger("exp", run)
        metrics.log_step(1, 0, {"loss": 2.0})
        told: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("foundry_log.shipping").addHandler(handler)
    metrics.close()

    assert "runs/first/run.jsonl" in blob_names(store)
    assert [line for line in told if "metrics.jsonl is open here" in line]


@pytest.mark.services
def test_a_server_that_never_answers_is_waited_for_once(run: Path, program: str) -> None:
    """GIVEN a deadline WHEN session and program end THEN one warning says what to do."""
    pytest.importorskip(
        "azure.storage.blob",
        reason="needs test-services: pip install 'foundry_log[test-services]'",
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"http://127.0.0.1:{port}/account/logs?sig=SECRET"
        done = run_python(
            "import logging\n"
            "from foundry_log import LoggingConfig, configure\n"
            f"data = LoggingConfig(ship_to={url!r})\n"
            f"session = configure(data, {str(run)!r}, console=False)\n"
            "session.handlers[-1]._close_within_s = 0.2\n"
            "session.close()\n"
        )
    assert done.returncode == 0
    assert done.stderr.count("foundry-log ship") == 1
    assert "SECRET" not in done.stderr


def test_files_of_the_configuration_hold_no_signature() -> None:
    """GIVEN an address with a SAS WHEN the configuration is told THEN the SAS is left out."""
    secret = "sv=2024&sig=SECRET"
    config = LoggingConfig(ship_to=f"https://a.blob.core.windows.net/logs?{secret}")
    experiment = ExperimentConfig(experiment_name="x", logging=config)

    assert "SECRET" not in repr(config) + repr(experiment)
    assert "SECRET" not in experiment.model_dump_json() + str(experiment.model_dump(mode="json"))
    assert config.to_dict_config()["handlers"]["shipping"]["to"].endswith(secret)
