"""`foundry-log ship` as a process, from directories of real logs to a real server."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import foundry_log
from foundry_log import ExperimentConfig, LoggingConfig, Trainer
from foundry_log.process import host_name
from tests.fault_proxy import FaultProxy, answer, lose_answer
from tests.shipped import blob_files, fetch, log_files, verify_shipped

pytestmark = pytest.mark.integration

DEADLINE_S = 60.0
LINES = 300
COMMAND = [sys.executable, "-m", "foundry_log.cli", "ship"]
REMEDY = "needs test-services: pip install 'foundry_log[test-services]'"

SERVICE = f"""
import sys
from foundry_log import get_logger
log = get_logger("shop.orders")
for number in range({LINES}):
    log.info("%s line %d.", sys.argv[1], number)
print("ready", flush=True)
sys.stdin.read()
"""
RUN = f"""
import logging, sys
from foundry_log import RotatingJsonlHandler
handler = RotatingJsonlHandler(
    "run.jsonl", maxBytes=10_000, stable_names=True, compress=sys.argv[2:] == ["compress"],
    per_rank=True,
)
log = logging.getLogger("run")
log.propagate = False
log.addHandler(handler)
for number in range({LINES}):
    log.warning("%s line %d.", sys.argv[1], number)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """Where a service writes, and below it a run."""
    (tmp_path / "logs" / "first").mkdir(parents=True)
    (tmp_path / "logs" / "first" / "run_info.json").write_text("{}")
    return tmp_path / "logs"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """That of the processes: no credential of this machine, and the service's settings."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AZURE_")}
    return {
        **mine,
        "APP_NAME_FOR_LOGGER": "shop",
        "APP_LOGS_DIR": str(tmp_path / "logs"),
        "PYTHONPATH": str(Path(foundry_log.__file__).parents[1]),  # they run elsewhere
    }


@contextlib.contextmanager
def writing(
    script: str, *arguments: str, cwd: Path, env: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """A process that has written its lines, and keeps its files open until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def shipping(
    logs: Path, to: str, told: Path, env: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The command, while it goes on; what it says goes to a file."""
    with told.open("wb") as file:
        process = subprocess.Popen(
            [*COMMAND, str(logs), "--to", to, "--interval", "0.1"],
            env=env,
            stdout=file,
            stderr=file,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ship_once(
    logs: Path, to: str, env: dict[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [*COMMAND, str(logs), "--to", to, "--once", "--all", *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE_S)


def rest(files: Sequence[Path]) -> None:
    """Have files look as if nobody had written them for an hour."""
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # it has got another name
            os.utime(file, (time.time() - 3600,) * 2)


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait, but not for ever."""
    limit = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < limit, "it does not come"
        time.sleep(0.05)


def lines_of(*writers: str) -> set[str]:
    """What writers have logged."""
    return {f"{writer} line {number}." for writer in writers for number in range(LINES)}


def missing(store: Path, *writers: str) -> set[str]:
    """The lines of writers that are in no blob."""
    opened = (
        gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        for file in blob_files(store)
    )
    text = b"\n".join(opened).decode()
    return {line for line in lines_of(*writers) if line not in text}


def seconds(timestamp: str) -> float:
    """A time stamp in seconds since the epoch."""
    return datetime.datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def all_bytes(directory: Path) -> bytes:
    """What all files below a directory hold, hidden ones too, and their names."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return b"\n".join(os.fsencode(path) + b"\n" + path.read_bytes() for path in files)


# --- Azure ---


@pytest.mark.services
def test_a_directory_moves_while_its_writers_run_and_die(
    azurite: Any, logs: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """
    GIVEN: two processes of a service and one of a run, that keep their files open
    WHEN: the command ships, one of the service is killed and comes back, and all of it ends
    THEN: each line is in the store, with whose it is and of when, and the key is nowhere.
    """
    told, began, container = tmp_path / "told.txt", time.time(), azurite.new_container()
    to = f"{azurite.account_url}/{container}/fleet/node7"
    keyed = {**environment, "AZURE_STORAGE_KEY": azurite.key}
    web = {**environment, "PROCESS_NAME": "web"}

    def stored() -> dict[str, dict[str, str]]:
        return fetch(azurite.account_url, container, azurite.key, tmp_path / "store")

    with (
        writing(SERVICE, "worker", cwd=logs, env=environment) as worker,
        writing(RUN, "run", cwd=logs / "first", env=environment),
        shipping(logs, to, told, keyed) as command,
    ):
        with writing(SERVICE, "web", cwd=logs, env=web):
            rest(list((logs / "first").glob("run.2*.jsonl")))
            wait_until(lambda: any("first/run.2" in name for name in stored()))
            assert not any("shop" in name for name in stored()), "they are open still"
        rest([logs / "shop-web.current.log"])
        wait_until(lambda: any("shop-web__" in name for name in stored()))
        with writing(SERVICE, "web-again", cwd=logs, env=web):
            command.send_signal(signal.SIGTERM)
            assert command.wait(DEADLINE_S) == 0
        assert "stopping, SIGTERM" in told.read_text()
    last = ship_once(logs, to, keyed)
    assert last.returncode == 0, last.stderr

    metadata = stored()
    assert missing(tmp_path / "store", "worker", "run", "web", "web-again") == set()
    assert not verify_shipped(tmp_path / "store", logs, []).faults
    for process in ("web", f"worker-{worker.pid}"):
        begin = f"fleet/node7/shop-{process}__"
        (found, *_) = (facts for name, facts in metadata.items() if name.startswith(begin))
        whose = {key: found[key] for key in ("app", "process", "host")}
        assert whose == {"app": "shop", "process": process, "host": host_name()}
        assert began - 1 <= seconds(found["first"]) <= seconds(found["last"]) <= time.time()
    written = all_bytes(tmp_path) + last.stderr.encode() + repr(metadata).encode()
    assert azurite.key.encode() not in written


@pytest.mark.services
@pytest.mark.parametrize("permission", ["rcw", "r"], ids=["enough", "too little"])
def test_a_signature_appears_nowhere(
    azurite: Any, logs: Path, tmp_path: Path, environment: dict[str, str], permission: str
) -> None:
    """Whether it suffices or not: no output, register or log has it."""
    sdk = pytest.importorskip("azure.storage.blob", reason=REMEDY)
    container = azurite.new_container()
    with sdk.ContainerClient(azurite.account_url, container, credential=azurite.key) as client:
        client.create_container()
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    signature = sdk.generate_container_sas(
        "devstoreaccount1", container, account_key=azurite.key, permission=permission, expiry=soon
    )
    (logs / "first" / "run.jsonl").write_text("{}\n")

    done = ship_once(logs, f"{azurite.account_url}/{container}?{signature}", environment)

    assert done.returncode == (0 if permission == "rcw" else 1), done.stderr
    stored = fetch(azurite.account_url, container, azurite.key, tmp_path / "store")
    assert len(stored) == (2 if permission == "rcw" else 0)
    written = all_bytes(tmp_path) + (done.stdout + done.stderr).encode()
    secret = signature.rpartition("sig=")[2]
    assert len(secret) > 40
    assert secret.encode() not in written
    assert unquote(secret).encode() not in written


@pytest.mark.services
def test_a_server_that_goes_and_comes_is_waited_for(
    azurite: Any, logs: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """GIVEN a service whose answers are lost WHEN it recovers THEN each file is there once."""
    container = azurite.new_container()
    keyed = {**environment, "AZURE_STORAGE_KEY": azurite.key}
    with FaultProxy(azurite.account_url) as proxy:
        with writing(RUN, "run", cwd=logs / "first", env=environment):
            pass
        proxy.fail(lose_answer(), method="PUT", path="/run.", times=3)
        proxy.fail(answer(503, retry_after="0"), method="PUT", path="/run.", times=3)
        done = ship_once(logs, f"{proxy.account_url}/{container}", keyed)

    assert done.returncode == 0, done.stderr
    fetch(azurite.account_url, container, azurite.key, tmp_path / "store")
    assert missing(tmp_path / "store", "run") == set()
    assert not verify_shipped(tmp_path / "store", logs, []).faults


# --- runs ---


def test_both_ranks_of_a_run_are_shipped(
    logs: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """GIVEN two ranks, one of which compresses WHEN one is killed THEN all files of both go."""
    store, of_run = tmp_path / "store", logs / "first"
    ranks = [{**environment, "RANK": rank, "WORLD_SIZE": "2"} for rank in "01"]
    with (
        writing(RUN, "rank0", cwd=of_run, env=ranks[0]),
        writing(RUN, "rank1", "compress", cwd=of_run, env=ranks[1]),
    ):
        wait_until(lambda: not list(of_run.glob(".*.todo")))
    done = ship_once(logs, store.as_uri(), environment)

    assert done.returncode == 0, done.stderr
    assert missing(store, "rank0", "rank1") == set()
    assert not verify_shipped(store, logs, []).faults
    names = {path.name for path in blob_files(store)}
    assert {"run@rank0.jsonl", "run@rank1.jsonl", "run_info.json"} < names
    assert any(name.startswith("run@rank1.2") and name.endswith(".jsonl.gz") for name in names)


def test_a_training_is_in_the_store_when_it_ends(
    tiny_config: ExperimentConfig, tmp_path: Path
) -> None:
    """GIVEN one option WHEN the Trainer has ended THEN the store has all that its run logged."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
    torch.set_num_threads(1)
    store = tmp_path / "store"
    tiny_config.logging = LoggingConfig(
        log_metrics_every_n_steps=1, log_to_wandb=False, ship_to=store.as_uri()
    )
    trainer = Trainer(tiny_config, tmp_path / "runs")
    trainer.train()

    run = trainer.directory.metrics.parent
    shipped = {path.name: path.read_bytes() for path in blob_files(store)}
    assert {trainer.directory.metrics.name, trainer.directory.jsonl.name} < shipped.keys()
    assert {path.name for path in log_files(run)} <= shipped.keys()
    assert not verify_shipped(store, run, []).faults
    assert trainer.directory.checkpoints.exists()
    assert not any("checkpoints" in path.parts for path in blob_files(store))
