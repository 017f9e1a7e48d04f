"""The README's service runs as it stands there, and leaves the lines that stand below it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SERVICES = "needs test-services: pip install 'foundry_log[test-services]'"
for package in ("aiohttp", "openai", "instructor", "azure.servicebus", "proton"):
    pytest.importorskip(package, reason=SERVICES)

from tests.amqp_broker import running_broker  # noqa: E402
from tests.model_server import model_in_a_thread, replies  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.services]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVICE = re.compile(
    r"```python\n(?P<code>(?:(?!```).)*?AsyncServiceBusHandler.*?)```.*?```text\n(?P<lines>.*?)```",
    re.DOTALL,
)
BUDGET = re.compile(
    r"```python\n(?P<code>(?:(?!```).)*?TokenClient.*?)```\n\n```text\n(?P<output>.*?)```",
    re.DOTALL,
)
WITHIN_S = 30.0
VARYING = ("timestamp", "request_id", "latency_s", "processing_s", "queue_wait_s", "lock_latency_s")


@contextmanager
def budget_server() -> Iterator[str]:
    """The command, as users start it; gives its URL."""
    command = [sys.executable, "-m", "foundry_log.cli", "budget-server", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        assert process.wait(WITHIN_S) == 0
        if process.stdout:
            process.stdout.close()


def settled(line: str) -> Any:
    """A line without what differs from run to run."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: "…" if name in VARYING else walk(part) for name, part in value.items()}
        return value

    return walk(json.loads(line))


def until(condition: Any) -> None:
    """Wait for what another process does."""
    ends = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < ends, "it has not come to pass"
        time.sleep(0.05)


def test_the_service_of_the_readme_runs_and_logs_what_it_says(tmp_path: Path) -> None:
    """GIVEN bus, model and budget on loopback WHEN a ticket comes THEN these lines are written."""
    found = SERVICE.search(README)
    assert found, "the README has lost its service"
    (tmp_path / "service.py").write_text(found["code"])
    with running_broker() as broker, model_in_a_thread() as model, budget_server() as budget:
        model.answers(replies({"topic": "printer", "urgent": True}))
        environment = {
            **os.environ,
            "SERVICE_BUS_CONNECTION_STRING": broker.connection_string,
            "APP_OPENAI_API_BASE": model.url,
            "APP_OPENAI_API_VERSION": "2024-10-21",
            "APP_OPENAI_ENGINE": "gpt-4o",
            "APP_OPENAI_API_KEY": "k3y-of-the-model",
            "COUNTER_APP_BASE_URL": budget,
            "PYTHONPATH": str(ROOT),
        }
        broker.put("tickets", "the printer is on fire")
        with subprocess.Popen(
            [sys.executable, "service.py"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE
        ) as service:
            try:
                until(lambda: broker.account("tickets").get("completed"))
                service.send_signal(signal.SIGTERM)
                _, told = service.communicate(timeout=WITHIN_S)
            finally:
                service.kill()
        assert service.returncode == 0, told
        assert [json.loads(body) for body in broker.bodies("sorted")] == [
            {"topic": "printer", "urgent": True}
        ]

    written = [
        settled(line)
        for name in ("run.jsonl", "metrics.jsonl")
        for line in (tmp_path / "logs" / name).read_text().splitlines()
    ]
    shown = [settled(line) for line in found["lines"].splitlines()]
    assert len(shown) >= 4
    for line in shown:
        assert line in written


def test_the_budget_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    """Client, server and retry, in one process."""
    found = BUDGET.search(README)
    assert found, "the README has lost its budget"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", found["code"]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == found["output"]
