"""`foundry-log budget-server`: the command, as a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foundry_log import read_jsonl
from foundry_log.cli import main

pytest.importorskip(
    "aiohttp", reason="needs test-services: pip install 'foundry_log[test-services]'"
)

pytestmark = [pytest.mark.unit, pytest.mark.services]

DEADLINE_S = 30.0
TOKEN = "a-bearer-token-of-the-test"
COMMAND = [sys.executable, "-m", "foundry_log.cli", "budget-server", "--port", "0"]
VARIABLES = ("APP_TPM_QUOTA", "APP_RPM_QUOTA", "COUNTER_APP_TOKEN")
LOCK = json.dumps({"app_id": "app", "token_count": 100})


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own has a say."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


class Server:
    """A process that serves."""

    def __init__(self, process: subprocess.Popen[str], line: str) -> None:
        self.process = process
        self.line = line
        self.port = int(line.rpartition(":")[2])

    def ask(self, method: str, path: str, body: str | None = None, token: str = "") -> Any:
        """Return status and answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Stop it; return its exit code and what it wrote after its first line."""
        self.process.send_signal(number)
        out, told = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, told


@contextlib.contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[Server]:
    """Run the command until it listens; it is killed at the end."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=DEADLINE_S)
        yield Server(process, line)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(number: int) -> None:
    """One line on standard output says where; the end is clean, and says why."""
    with serving() as server:
        assert server.line == f"listening on http://127.0.0.1:{server.port}\n"
        assert server.ask("GET", "/health") == (200, {"status": "ok"})
        code, out, told = server.end(number)
    assert (code, out) == (0, "")
    assert f"stopping, {signal.Signals(number).name}" in told
    assert "Traceback" not in told


def test_the_quotas_come_from_the_environment_or_the_command() -> None:
    """The command's decide; an empty variable is none."""
    with serving("--rpm", 7, APP_TPM_QUOTA="5000", APP_RPM_QUOTA="9") as server:
        status = server.ask("GET", "/status")[1]
        assert (status["tpm_quota"], status["rpm_quota"]) == (5000, 7)
    with serving(APP_TPM_QUOTA="", APP_RPM_QUOTA=" ") as server:
        status = server.ask("GET", "/status")[1]
        assert (status["tpm_quota"], status["rpm_quota"]) == (128_000, 250)


def test_locks_live_as_long_as_they_are_told_to() -> None:
    """The expiry of one is on standard error, as is each settled call."""
    with serving("--lock-ttl", 0.05) as server:
        assert server.ask("POST", "/lock", LOCK)[1]["allowed"]
        assert server.process.stderr is not None
        while "lock expired" not in (line := server.process.stderr.readline()):
            assert line, "it has ended"
        assert "application=app" in line
        assert server.ask("GET", "/status")[1]["available_tokens"] == 128_000


@pytest.mark.parametrize("is_file", [True, False])
def test_a_bearer_token_comes_from_a_file_or_the_environment(is_file: bool, tmp_path: Path) -> None:
    """The file's decides, its last newline does not count; the token is told to nobody."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    arguments = ("--token-file", file) if is_file else ()
    environment = {"COUNTER_APP_TOKEN": "another" if is_file else TOKEN}
    with serving(*arguments, **environment) as server:
        assert server.ask("GET", "/status")[0] == 401
        assert server.ask("GET", "/status", token="another")[0] == 401
        assert server.ask("GET", "/status", token=TOKEN)[0] == 200
        _, out, told = server.end()
    assert TOKEN not in server.line + out + told


def test_a_directory_gets_records_metrics_and_errors(tmp_path: Path) -> None:
    """What explains a bill; standard error shows warnings alone."""
    directory = tmp_path / "logs" / "budget"
    with serving("--log-dir", directory) as server:
        lock = server.ask("POST", "/lock", LOCK)[1]
        used = {"request_id": lock["request_id"], "prompt_tokens": 30, "completion_tokens": 20}
        assert server.ask("POST", "/report", json.dumps(used))[0] == 200
        code, _, told = server.end()
    assert (code, told) == (0, "")
    records = {line["message"]: line for line in read_jsonl(directory / "run.jsonl")}
    name = f"{lock['request_id']}:{lock['rate_request_id']}"  # as the client has it
    assert records["usage reported"]["context"]["request_id"] == name
    assert records["usage reported"]["context"]["tokens_used"] == 50
    assert records["tokens locked"]["level"] == "DEBUG"
    assert any(message.startswith("stopping, SIGTERM") for message in records)
    (line,) = read_jsonl(directory / "metrics.jsonl")
    assert line["metrics"]["budget_tokens"] == 50


def test_a_request_at_hand_is_answered(tmp_path: Path) -> None:
    """GIVEN half of a request WHEN SIGTERM comes THEN the other half gets its answer, exit 0."""
    with serving() as server, half_a_lock(server) as connection:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stderr is not None
        while "stopping" not in server.process.stderr.readline():
            pass
        connection.sendall(LOCK[10:].encode())
        with connection.makefile("rb") as answer:
            assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
            assert b'"allowed":true' in answer.read()
        server.process.communicate(timeout=DEADLINE_S)
    assert server.process.returncode == 0


def test_a_second_signal_does_not_wait() -> None:
    """GIVEN a request that never ends WHEN SIGTERM comes twice THEN the process has ended."""
    with serving() as server, half_a_lock(server):
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stderr is not None
        while "stopping" not in server.process.stderr.readline():
            pass
        code, _, _ = server.end()
    assert code == -signal.SIGTERM


@contextlib.contextmanager
def half_a_lock(server: Server) -> Iterator[socket.socket]:
    """A connection on which the server waits for the rest of a request."""
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as connection:
        connection.sendall(
            b"POST /lock HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(LOCK), LOCK[:10].encode())
        )
        server.ask("GET", "/health")  # what came before has been read by then
        yield connection


def test_an_open_door_is_pointed_out() -> None:
    """GIVEN every address and no token WHEN it starts THEN it warns."""
    with serving("--host", "0.0.0.0") as server:
        assert "whoever reaches http://0.0.0.0:" in server.end()[2]
    with serving("--host", "0.0.0.0", COUNTER_APP_TOKEN=TOKEN) as server:
        assert "whoever" not in server.end()[2]


def test_a_port_that_is_taken_is_exit_code_2() -> None:
    """And one line that says what to do."""
    with serving() as server:
        command = [*COMMAND[:-1], str(server.port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--port {server.port} cannot be listened at" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--tpm", "0"], "argument --tpm: '0' is no whole number of 1 or more"),
        (["--rpm", "-1"], "argument --rpm: '-1' is no whole number of 1 or more"),
        (["--port", "70000"], "argument --port: '70000' is no port from 0 to 65535"),
        (["--port", "http"], "argument --port: 'http' is no port from 0 to 65535"),
        (["--lock-ttl", "0"], "argument --lock-ttl: '0' is no number above 0"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 0 cannot be listened at"),
        (["--host", "a..b"], "--host a..b is no name of a host"),
        (["--token-file", "missing"], "--token-file missing cannot be read: No such file"),
        (["--token-file", "binary"], "--token-file binary cannot be read: it is no UTF-8"),
        (["--token-file", "empty"], "--token-file empty is empty"),
        (["--token-file", "two_words"], "bearer_token is empty, or has blanks"),
        (["--log-dir", "empty"], "--log-dir empty cannot be made: File exists"),
    ],
)
def test_wrong_usage_is_said(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With exit code 2, the option and its value; a token's own text is not."""
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text(" \n")
    Path("binary").write_bytes(b"\xff\xfe")
    Path("two_words").write_text("open sesame")
    assert exit_code("--port=0", *arguments) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert "sesame" not in told.err
    assert told.out == ""


@pytest.mark.parametrize("variable", ["APP_TPM_QUOTA", "APP_RPM_QUOTA"])
@pytest.mark.parametrize("value", ["0", "-5", "many", "1e5", "٣", "1" * 19])
def test_a_wrong_variable_is_said(
    variable: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By its name."""
    monkeypatch.setenv(variable, value)
    assert exit_code("--port=0") == 2
    assert f"{variable}={value!r} is no whole number of 1 or more" in capsys.readouterr().err


def test_a_variable_without_end_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python makes no number of 5,000 digits; its beginning is shown."""
    monkeypatch.setenv("APP_TPM_QUOTA", "1" * 5000)
    assert exit_code("--port=0") == 2
    told = capsys.readouterr().err
    assert "APP_TPM_QUOTA='111111111111111111…' is no whole number of 1 or more" in told
    assert len(told) < 300


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nothing is made")
def test_a_directory_that_cannot_be_written_to_is_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the start, and not at the first record."""
    assert exit_code("--port=0", "--log-dir=/proc/self") == 2
    assert "--log-dir /proc/self cannot be written to: " in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which is always full")
def test_it_serves_without_a_standard_output() -> None:
    """The log says that it cannot be written to, and the end is clean."""
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(COMMAND, stdout=full, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = [process.stderr.readline() for _ in range(2)]
        process.terminate()
        _, rest = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.wait(DEADLINE_S)
    assert "serving 128000 tokens" in lines[0]
    assert "standard output cannot be written to, and is left alone: No space left" in lines[1]
    assert "Traceback" not in rest and "Exception" not in rest
    assert process.returncode == 0


def exit_code(*arguments: str) -> int:
    """What the command ends with, in this process."""
    try:
        return main(["budget-server", *arguments])
    except SystemExit as stop:  # argparse
        return int(stop.code or 0)


def test_without_aiohttp_it_names_the_extra() -> None:
    """One line, exit code 2."""
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from foundry_log.cli import main\n"
        "sys.exit(main(['budget-server', '--port=0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        "foundry-log budget-server: error: the budget server needs aiohttp: "
        "pip install 'foundry_log[budget]'\n"
    )
