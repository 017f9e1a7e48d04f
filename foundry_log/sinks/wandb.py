"""Weights & Biases: a run of its own, on the sink's thread, that never asks and never waits."""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from foundry_log.extras import import_extra
from foundry_log.handlers.losses import cause_of
from foundry_log.records import message_of
from foundry_log.sinks.base import SinkHandler
from foundry_log.sinks.watching import Histogram, Watch

MODES = ("online", "offline", "shared", "disabled")
CHECKPOINTS = ("reference", "upload", "none")
RUN_ID_FILE = "wandb_run_id"
_HOST = "https://api.wandb.ai"
_TITLE = 63  # characters of an alert's title, which W&B bounds
_log = logging.getLogger("foundry_log.sinks")


class WandbHandler(SinkHandler):
    """Sends a run to Weights & Biases.

    Each line of metrics is a row with `step`, `epoch` and `attempt`; `step` is the axis of all
    charts, so that late, repeated and rewound steps are kept. Summaries of epochs stand under
    `epoch_summary/`, measurements of the machine under `system/`, the configuration in the run's;
    checkpoints are artifacts of type `model`; warnings and errors are alerts.

    The run begins with the first record, on the sink's thread; it is no `wandb.run`, prints
    nothing, and leaves console, `sys.exit` and `sys.excepthook` alone. W&B's own measurements of
    the machine are off. Nothing is ever asked: where no API key is found, the run is offline, and a
    WARNING says how to log in and how to send it later.

    Needs wandb: `pip install 'foundry_log[wandb]'`. Thread-safe.

    Args:
        project: None for W&B's own choice.
        name: of the run, shown by W&B; None for its choice.
        mode: `online`, `offline`, `shared` or `disabled`; None for WANDB_MODE, or else `online`.
        directory: for W&B's files, and for the run's id (`wandb_run_id`), with which a later
            handler goes on with the same run; made if it is missing. None for WANDB_DIR or the
            current directory, and a new run each time.
        run_id: of the run; None for the directory's, or a new one.
        entity, group, tags, notes, job_type: of the run.
        checkpoints: `reference` names the files and uploads none, `upload` uploads them, `none`.
        init_timeout_s: seconds for the run to begin.
        settings: further fields of `wandb.Settings`, which win over ours.
        options: as of `SinkHandler`.

    Raises:
        ValueError: a parameter is out of range.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        *,
        mode: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        run_id: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        job_type: str | None = None,
        checkpoints: str = "reference",
        init_timeout_s: float = 30.0,
        settings: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if mode is not None and mode not in MODES:
            raise ValueError(f"mode={mode!r} is no mode; use one of {', '.join(MODES)}, or None")
        if checkpoints not in CHECKPOINTS:
            raise ValueError(
                f"checkpoints={checkpoints!r} is no way; use one of {', '.join(CHECKPOINTS)}"
            )
        if not init_timeout_s > 0:
            raise ValueError(f"init_timeout_s={init_timeout_s} must be above 0 seconds")
        self.mode = mode
        self.directory = None if directory is None else Path(os.path.abspath(directory))
        self.checkpoints = checkpoints
        self.init_timeout_s = init_timeout_s
        self._about = {
            "project": project,
            "name": name,
            "entity": entity,
            "group": group,
            "tags": [tags] if isinstance(tags, str) else list(tags),
            "notes": notes,
            "job_type": job_type,
        }
        self._settings = dict(settings or {})
        self._run_id = run_id
        self._run_url: str | None = None
        self._wandb: Any = None
        self._run: Any = None
        self._position: dict[str, Any] = {}  # step and epoch of the latest line
        self._attempt = 1
        self._exit_code = 0
        self._watches: list[Watch] = []
        self._is_told = False  # people, that the run is offline
        super().__init__(**options)

    # --- W&B's calls ---

    @property
    def run_id(self) -> str | None:
        """The run's id; None until it begins, where none was given."""
        return self._run_id

    @property
    def run_url(self) -> str | None:
        """Where W&B shows the run; None until it begins, and offline."""
        return self._run_url

    def watch(self, model: Any, log: str = "gradients", log_freq: int = 1000) -> None:
        """Record histograms of a torch module's gradients or parameters, until the sink is closed.

        They are taken in the backward pass, and this one costs the training time: a histogram of
        each tensor every `log_freq` passes. The row that comes next has them, as
        `gradients/<name>` and `parameters/<name>`. W&B's own `watch` works for `wandb.run` alone,
        and raises in the backward pass where that run is over.

        Args:
            model: a `torch.nn.Module`.
            log: `gradients`, `parameters` or `all`.
            log_freq: backward passes from one histogram to the next, 1 or more.

        Raises:
            TypeError: `model` is no module.
            ValueError: `log` or `log_freq` is out of range.
        """
        self._watches.append(Watch(model, log, log_freq, self._take_histogram, self._count_error))

    def alert(self, title: str, text: str, level: str = "WARN") -> None:
        """Have W&B send an alert; returns at once. Counted as `closed` where it comes too late.

        Args:
            title: of which W&B takes 63 characters.
            text: of the alert.
            level: `INFO`, `WARN` or `ERROR`.

        Raises:
            ValueError: there is no such level.
        """
        if level not in ("INFO", "WARN", "ERROR"):
            raise ValueError(f"level={level!r} is no level of alerts; use INFO, WARN or ERROR")
        if not self.call(lambda: self._run.alert(title[:_TITLE], text, level)):
            self._add(self.losses, "closed")

    def finish(self, exit_code: int = 0) -> None:
        """Finish the run and close the sink, in `flush_timeout_s` at the most. Idempotent.

        Args:
            exit_code: other than 0 marks the run as failed.
        """
        self._exit_code = exit_code
        self.close()

    def close(self) -> None:
        """Finish the run, as `finish` does."""
        while self._watches:
            self._watches.pop().remove()
        super().close()

    # --- on the thread ---

    def open(self) -> None:
        """Begin the run, or go on with it."""
        wandb = self._wandb = import_extra("wandb", "wandb", "WandbHandler")
        if self._run is not None:  # which has failed
            with contextlib.suppress(Exception):
                self._run.finish(exit_code=1)
        directory = self.directory or Path(os.environ.get("WANDB_DIR") or os.getcwd())
        directory.mkdir(parents=True, exist_ok=True)
        # Without it wandb prints that it has found the credentials.
        wandb.setup(settings=wandb.Settings(silent=True))
        mode = self._chosen_mode(directory)
        try:
            self._run = wandb.init(
                **self._about,
                dir=str(directory),
                id=self._chosen_id(),
                mode=mode,
                resume=None if mode == "shared" else "allow",
                reinit="create_new",
                settings=self._known_settings(wandb),
            )
        finally:
            _give_hooks_back()
        self._run.define_metric("*", step_metric="step")
        self._run_url = None if mode == "offline" else self._run.url

    def metrics(
        self, step: int, epoch: int, values: Mapping[str, float], entry: Mapping[str, Any]
    ) -> None:
        """Log a row."""
        self._position = {"step": step, "epoch": epoch}
        self._attempt = entry.get("attempt", self._attempt)
        if values:
            self._log_row(values, self._position)

    def summary(self, epoch: int, values: Mapping[str, float], entry: Mapping[str, Any]) -> None:
        """Log a row under `epoch_summary/`; W&B keeps the latest in the run's summary."""
        self._attempt = entry.get("attempt", self._attempt)
        position = {"step": entry.get("step", self._position.get("step", 0)), "epoch": epoch}
        self._log_row({f"epoch_summary/{name}": each for name, each in values.items()}, position)

    def system(self, values: Mapping[str, float]) -> None:
        """Log a row under `system/`, at the latest step."""
        self._log_row({f"system/{name}": each for name, each in values.items()}, self._position)

    def config(self, values: Mapping[str, Any]) -> None:
        """Add to the run's configuration."""
        self._run.config.update(dict(values), allow_val_change=True)

    def checkpoint(self, facts: Mapping[str, Any]) -> None:
        """Log an artifact of type `model`."""
        if self.checkpoints == "none":
            return
        path = Path(facts["path"]).absolute()
        artifact = self._wandb.Artifact(
            f"checkpoint-{self._run.id}", type="model", metadata=dict(facts)
        )
        if self.checkpoints == "upload":
            artifact.add_dir(str(path))
        else:
            artifact.add_reference(path.as_uri(), checksum=False)
        self._run.log_artifact(artifact, aliases=["latest", f"step-{facts['step']}"])

    def text(self, record: logging.LogRecord) -> None:
        """Send an alert, with the message as its title."""
        title = message_of(record)[0].strip().partition("\n")[0][:_TITLE] or record.name
        self._run.alert(title, self.format(record), _alert_level(record.levelno))

    def resumed(self, attempt: int, step: int) -> None:
        """Take note of the attempt, which the rows carry."""
        self._attempt = attempt
        self._position = {**self._position, "step": step}

    def end(self) -> None:
        """Finish the run."""
        self._run.finish(exit_code=self._exit_code)

    # --- set-up ---

    def _log_row(self, values: Mapping[str, float], position: Mapping[str, Any]) -> None:
        """Log one row; not by W&B's own step, which only grows and drops what comes late."""
        row = {"attempt": self._attempt, **position, **values}
        self._run.log({**row, "step": position.get("step", 0), "_timestamp": self.created})

    def _take_histogram(self, name: str, found: Histogram) -> None:
        def log() -> None:
            self._run.log({name: self._wandb.Histogram(np_histogram=found)}, commit=False)

        self.call(log)

    def _count_error(self, error: Exception) -> None:
        self._add(self.losses, cause_of(error))

    def _chosen_id(self) -> str:
        """Return the run's id, kept in the directory for the attempts to come."""
        file = None if self.directory is None else self.directory / RUN_ID_FILE
        if self._run_id is None and file is not None and file.exists():
            self._run_id = file.read_text(encoding="utf-8").strip() or None
        if self._run_id is None:
            self._run_id = new_run_id()
        if file is not None:
            file.write_text(self._run_id + "\n", encoding="utf-8")
        return self._run_id

    def _chosen_mode(self, directory: Path) -> str:
        mode = self.mode or os.environ.get("WANDB_MODE") or "online"
        if mode in ("offline", "dryrun"):
            return "offline"
        if mode == "disabled" or _can_log_in():
            return mode
        if not self._is_told:
            self._is_told = True
            self._tell_offline(directory)
        return "offline"

    def _tell_offline(self, directory: Path) -> None:
        _log.warning(
            "No API key of W&B is to be found: the run is kept offline in %s. Run 'wandb login' or "
            "set WANDB_API_KEY before the next run, and send this one with 'wandb sync %s'",
            directory / "wandb",
            directory / "wandb" / f"offline-run-*-{self._chosen_id()}",
        )

    def _known_settings(self, wandb: Any) -> Any:
        ours = {
            "console": "off",
            "silent": True,
            "init_timeout": self.init_timeout_s,
            "finish_timeout": 0.8 * self.flush_timeout_s,  # before the sink gives up on the thread
            "finish_timeout_raises": True,
            "x_disable_stats": True,
        }
        known = wandb.Settings.model_fields  # which differ from version to version
        ours = {name: value for name, value in ours.items() if name in known}
        return wandb.Settings(**{**ours, **self._settings})


def new_run_id() -> str:
    """Return a run's id that no other run has."""
    return uuid.uuid4().hex[:8]


def _can_log_in() -> bool:
    """Whether an API key is found where wandb looks for one before it asks."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _HOST).netloc
    given = os.environ.get("NETRC")
    for name in [given] if given else ["~/.netrc", "~/_netrc"]:
        try:
            found = netrc.netrc(os.path.expanduser(name)).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[2]:
            return True
    return False


def _give_hooks_back() -> None:
    """Take off the hooks that wandb puts round the end of the program when it starts its service.

    With them an uncaught exception is printed twice.
    """
    for name, stock in (("excepthook", sys.__excepthook__), ("exit", None)):
        hooks = getattr(getattr(sys, name), "__self__", None)
        if type(hooks).__module__.startswith("wandb."):
            before = getattr(hooks, f"_orig_{name}", None) or stock
            if before is not None:
                setattr(sys, name, before)


def _alert_level(level: int) -> str:
    if level >= logging.ERROR:
        return "ERROR"
    return "WARN" if level >= logging.WARNING else "INFO"
