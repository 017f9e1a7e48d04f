"""WandbHandler: what the real wandb writes offline, and what a broken one costs.

Each run is a process of its own: wandb keeps threads and a service until its process ends.
"""

from __future__ import annotations

import http.server
import json
import math
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from foundry_log import WandbHandler
from foundry_log.sinks.wandb import _can_log_in

pytest.importorskip("wandb", reason="needs wandb: pip install 'foundry_log[test-frameworks]'")

from tests.wandb_files import WandbRun

pytestmark = [pytest.mark.integration, pytest.mark.frameworks]

BEGIN = """
import json, logging, sys, threading
from foundry_log import MetricsLogger, WandbHandler
from foundry_log.records import entry_record
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout, level="WARNING")
sinks = logging.getLogger("foundry_log.metrics.e")
sinks.propagate = False
def offer(**entry):
    sinks.handle(entry_record(sinks.name, logging.INFO, "entry", entry))
def begin(*args, **options):
    handler = WandbHandler(*args, **{"directory": "w", "retry_delay_s": 0, **options})
    sinks.addHandler(handler)
    return handler
metrics = MetricsLogger("e", ".")
"""

EVERYTHING = """
hooks = sys.exit, sys.excepthook
wandb = begin("project", "name", mode="offline", tags=["a", "b"], checkpoints=CHECKPOINTS)
assert (wandb.run_id, wandb.run_url) == (None, None)
offer(config={"model": {"layers": 2}, "rate": 0.1})
for step in range(1, 6):
    offer(step=step, epoch=0, metrics={"loss": step / 4, "inner": {"x": 1}, "tag": "a"}, attempt=1)
offer(step=2, epoch=0, metrics={"late": 1.5}, attempt=1)
offer(step=5, epoch=0, metrics={"again": 2.5}, attempt=1)
offer(step=6, epoch=0, metrics={"loss": float("nan"), "high": float("inf")}, attempt=1)
offer(epoch=0, summary={"loss": 0.75}, step=6, attempt=1)
offer(system={"cpu_percent": 12.0})
offer(checkpoint={"path": "checkpoint", "step": 5, "epoch": 0, "size_bytes": 3, "eval_loss": 0.5})
offer(attempt=2, resumed_from_step=3)
offer(step=4, epoch=0, metrics={"loss": 9.0}, attempt=2)
sinks.error("loss is NaN\\nat step 6")
sinks.info("no alert")
wandb.alert("own", "text", "INFO")
wandb.finish()
wandb.finish(1)
import wandb as package
assert package.run is None
assert (sys.exit, sys.excepthook) == hooks
print(json.dumps([wandb.run_id, wandb.run_url, dict(wandb.losses)]))
"""


def run(script: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script with wandb at home in a directory, knowing no login."""
    known = {name: each for name, each in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script],
        cwd=directory,
        env={
            **known,
            "HOME": str(directory / "home"),
            "NETRC": str(directory / "netrc"),
            "WANDB_ERROR_REPORTING": "false",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done


def place(tmp: pytest.TempPathFactory, name: str) -> Path:
    """A directory with a checkpoint."""
    directory = tmp.mktemp(name)
    (directory / "checkpoint").mkdir()
    (directory / "checkpoint" / "model.bin").write_bytes(b"abc")
    return directory


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WandbRun, str]:
    """A run with everything in it: its directory, its records, and what the process said."""
    directory = place(tmp_path_factory, "whole")
    done = run(f"CHECKPOINTS = 'reference'{EVERYTHING}", directory)
    return directory, WandbRun(directory), done.stdout + done.stderr


class TestARun:
    """Everything a run sends."""

    def test_each_step_is_a_row_with_its_values(self, whole: tuple[Path, WandbRun, str]) -> None:
        """Late, repeated, rewound and non-finite ones too, and `step` is the axis."""
        _, read, _ = whole
        rows = [{name: each for name, each in row.items() if name[0] != "_"} for row in read.rows()]
        at = {"epoch": 0, "attempt": 1}

        assert rows[:5] == [{"step": n, **at, "loss": n / 4, "inner/x": 1} for n in range(1, 6)]
        assert rows[5:7] == [{"step": 2, **at, "late": 1.5}, {"step": 5, **at, "again": 2.5}]
        assert math.isnan(float(rows[7].pop("loss")))
        assert float(rows[7].pop("high")) == math.inf
        assert rows[7:] == [
            {"step": 6, **at},
            {"step": 6, **at, "epoch_summary/loss": 0.75},
            {"step": 6, **at, "system/cpu_percent": 12.0},
            {"step": 4, "epoch": 0, "attempt": 2, "loss": 9.0},
        ]
        assert ("*", "step") in [(each.glob_name, each.step_metric) for each in read.of("metric")]

    def test_the_configuration_is_the_runs(self, whole: tuple[Path, WandbRun, str]) -> None:
        """Nested as it is."""
        updates = [each for record in whole[1].of("config") for each in record.update]
        found = {each.key: json.loads(each.value_json) for each in updates}
        assert found["model"] == {"layers": 2}
        assert found["rate"] == 0.1

    def test_a_checkpoint_is_an_artifact(self, whole: tuple[Path, WandbRun, str]) -> None:
        """Named by a reference, with what is known of it."""
        directory, read, _ = whole
        (artifact,) = read.of("artifact")
        assert artifact.type == "model"
        assert set(artifact.aliases) == {"latest", "step-5"}
        assert json.loads(artifact.metadata)["eval_loss"] == 0.5
        (file,) = artifact.manifest.contents
        assert file.ref == (directory / "checkpoint" / "model.bin").as_uri()
        assert not file.local_path

    def test_an_error_is_an_alert(self, whole: tuple[Path, WandbRun, str]) -> None:
        """Titled by its first line; what is below a warning is none."""
        error, own = whole[1].of("alert")
        assert (error.title, error.level) == ("loss is NaN", "ERROR")
        assert "at step 6" in error.text
        assert (own.title, own.text, own.level) == ("own", "text", "INFO")

    def test_it_is_quiet_and_loses_nothing(self, whole: tuple[Path, WandbRun, str]) -> None:
        """The process says only what the script prints."""
        directory, read, said = whole
        (run_id,) = {each.run_id for each in read.of("run")}
        assert said.splitlines()[0].startswith("ERROR loss is NaN") or said.startswith("[")
        assert json.loads(said.splitlines()[-1]) == [run_id, None, {}]
        assert "wandb:" not in said
        assert (directory / "w" / "wandb_run_id").read_text() == f"{run_id}\n"

    def test_it_has_its_name_and_tags(self, whole: tuple[Path, WandbRun, str]) -> None:
        """As they were given."""
        (record,) = whole[1].of("run")
        assert (record.project, record.display_name) == ("project", "name")
        assert list(record.tags) == ["a", "b"]


def test_a_checkpoint_is_uploaded_where_that_is_wanted(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Its files, from where wandb has put them."""
    directory = place(tmp_path_factory, "upload")
    run(f"CHECKPOINTS = 'upload'{EVERYTHING}", directory)
    (artifact,) = WandbRun(directory).of("artifact")
    (file,) = artifact.manifest.contents
    assert (file.path, file.size, file.ref) == ("model.bin", 3, "")
    assert file.local_path


def test_a_resumed_run_goes_on_with_the_same_run(tmp_path: Path) -> None:
    """By the id in its directory; each record has the time at which it was logged."""
    script = """
wandb = begin(mode="offline")
metrics.log_step(1, 0, {"loss": 1.0})
wandb.finish()
print(wandb.run_id)
"""
    first, second = run(script, tmp_path).stdout, run(script, tmp_path).stdout
    read = WandbRun(tmp_path)
    (record,) = read.of("run")

    assert first == second
    assert len(read.paths) == 2
    assert record.run_id == second.strip()
    assert isinstance(read.rows()[0]["_timestamp"], float)


@pytest.mark.parametrize("options", ["", "mode='online'"])
def test_without_a_login_the_run_is_offline_and_nothing_is_asked(
    options: str, tmp_path: Path
) -> None:
    """One warning says how to log in and how to send it."""
    script = f"""
wandb = begin({options})
metrics.log_step(1, 0, {{"loss": 1.0}})
wandb.finish()
print(dict(wandb.losses))
"""
    done = run(script, tmp_path)
    warning, last = done.stdout.splitlines()
    assert "'wandb login'" in warning
    assert "'wandb sync" in warning
    assert WandbRun(tmp_path).paths[0].parent.match(warning.rpartition("'wandb sync ")[2][:-1])
    assert (last, done.stderr) == ("{}", "")


@pytest.mark.parametrize(
    ("netrc", "environment", "found"),
    [
        ("", {}, False),
        ("", {"WANDB_API_KEY": "a" * 40}, True),
        ("machine api.wandb.ai login user password secret", {}, True),
        ("machine api.wandb.ai login user password secret", {"WANDB_BASE_URL": "https://x"}, False),
        ("machine x login user password secret", {"WANDB_BASE_URL": "https://x"}, True),
        ("machine other login user password secret", {}, False),
        ("nonsense", {}, False),
    ],
)
def test_a_login_is_found_where_wandb_looks_for_it(
    netrc: str,
    environment: dict[str, str],
    found: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the environment, or in the netrc file under the server's name."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert _can_log_in() is found


def test_a_missing_wandb_costs_a_warning_and_a_count(tmp_path: Path) -> None:
    """The files have everything."""
    script = """
sys.modules["wandb"] = None
wandb = begin()
for step in range(3):
    metrics.log_step(step, 0, {"loss": 1.0})
wandb.alert("t", "x")
wandb.finish()
print(dict(wandb.losses), len(metrics.get_metrics_history()))
"""
    warning, last = run(script, tmp_path).stdout.splitlines()
    assert warning.startswith("WARNING WandbHandler needs wandb: pip install 'foundry_log[wandb]'")
    assert last == "{'ImportError': 4} 3"


def test_a_run_that_cannot_begin_costs_a_warning_and_a_count(tmp_path: Path) -> None:
    """Here by a project that W&B refuses."""
    script = """
wandb = begin("no/project", mode="offline", retries=1)
for step in range(3):
    metrics.log_step(step, 0, {"loss": 1.0})
wandb.finish()
print(dict(wandb.losses), len(metrics.get_metrics_history()))
"""
    said = run(script, tmp_path).stdout
    assert said.count("WARNING WandbHandler could not send a record") == 1
    assert said.splitlines()[-1] == "{'UsageError': 3} 3"


def test_a_server_that_never_answers_does_not_hold_up_the_run(tmp_path: Path) -> None:
    """Neither its steps nor its end."""
    script = """
wandb = begin(init_timeout_s=2, retries=0, flush_timeout_s=1)
for step in range(3):
    metrics.log_step(step, 0, {"loss": 1.0})
print(len(metrics.get_metrics_history()))
wandb.finish()
print(sum(wandb.losses.values()))
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = run(script, tmp_path, WANDB_BASE_URL=url, WANDB_API_KEY="a" * 40)
    assert done.stdout.splitlines()[:2] == ["3", "3"]


class FadingServer(http.server.BaseHTTPRequestHandler):
    """Lets a run begin, and answers nothing afterwards."""

    protocol_version = "HTTP/1.1"
    closing = threading.Event()

    def do_POST(self) -> None:
        """Answer the two questions that W&B asks at the beginning."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        known = {
            "RunResumeStatus": {"model": None},
            "UpsertBucket": {"upsertBucket": {"bucket": self.bucket(), "inserted": True}},
        }
        name = json.loads(body).get("operationName") if self.path == "/graphql" else None
        if name not in known:
            self.closing.wait(60)
            self.close_connection = True
            return
        answer = json.dumps({"data": known[name]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def bucket(self) -> dict[str, Any]:
        """A run, as W&B describes it."""
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        return {"id": "x", "name": "x", "config": "{}", "project": project}

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def test_a_server_that_stops_answering_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """The run has begun online; its data stays on disk, and a warning says so."""
    script = """
wandb = begin(flush_timeout_s=2)
metrics.log_step(1, 0, {"loss": 1.0})
assert wandb.drain(20)
print(wandb.run_url)
wandb.finish()
"""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FadingServer)
    threading.Thread(target=server.serve_forever).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        done = run(script, tmp_path, WANDB_BASE_URL=url, WANDB_API_KEY="a" * 40)
    finally:
        FadingServer.closing.set()
        server.shutdown()
        server.server_close()

    assert done.stdout.splitlines()[0].startswith(f"{url}/e/p/runs/")
    assert "WARNING WandbHandler could not finish: TimeoutError" in done.stdout


def test_a_service_that_dies_costs_a_warning_and_a_count(tmp_path: Path) -> None:
    """W&B's process is killed in mid-run."""
    script = """
import psutil
wandb = begin(mode="offline", retries=0, flush_timeout_s=5)
metrics.log_step(1, 0, {"loss": 1.0})
wandb.flush()
for child in psutil.Process().children(recursive=True):
    child.kill()
    child.wait(10)
for step in range(2, 5):
    metrics.log_step(step, 0, {"loss": 1.0})
wandb.finish()
print(len(metrics.get_metrics_history()))
"""
    assert run(script, tmp_path).stdout.splitlines()[-1] == "4"


def test_a_model_is_watched_until_the_run_ends(tmp_path: Path) -> None:
    """Each row has the histograms of its step; the backward pass works before and afterwards."""
    pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
    script = """
import torch
torch.set_num_threads(1)
model = torch.nn.Linear(2, 1)
wandb = begin(mode="offline")
wandb.watch(model, log="all", log_freq=2)
for step in range(3):
    model(torch.tensor([[1.0, 2.0]])).sum().backward()
    metrics.log_step(step, 0, {"loss": 1.0})
model(torch.full((1, 2), float("nan"))).sum().backward()
wandb.finish()
model(torch.ones(1, 2)).sum().backward()
print(dict(wandb.losses), len(model.weight._backward_hooks))
"""
    assert run(script, tmp_path).stdout == "{} 0\n"
    first, second, third = WandbRun(tmp_path).rows()
    both = {"gradients/weight", "gradients/bias", "parameters/weight", "parameters/bias"}
    assert {name for name in first if "/" in name} == both
    assert first["gradients/weight"]["bins"][0] == 1.0
    assert first["gradients/weight"]["bins"][-1] == 2.0
    assert sum(first["gradients/weight"]["values"]) == 2
    assert not both & set(second)
    assert both <= set(third)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "ofline"}, "mode='ofline' is no mode; use one of online, offline"),
        ({"checkpoints": "all"}, "checkpoints='all' is no way; use one of reference, upload, none"),
        ({"init_timeout_s": 0}, "init_timeout_s=0 must be above 0 seconds"),
    ],
)
def test_a_wrong_value_is_refused(options: dict[str, Any], message: str) -> None:
    """When the handler is made."""
    with pytest.raises(ValueError, match=message):
        WandbHandler(**options)


def test_an_alert_of_no_level_is_refused() -> None:
    """By the caller, who can put it right."""
    handler = WandbHandler()
    with pytest.raises(ValueError, match="level='LOUD' is no level of alerts"):
        handler.alert("t", "x", "LOUD")
    handler.close()
