"""`configure`: the whole set-up in one call, and the object that takes it down again."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from logging.config import DictConfigurator
from pathlib import Path
from types import TracebackType
from typing import Any

from foundry_log.config import ExperimentConfig, LoggingConfig
from foundry_log.handlers.background import BackgroundHandler, finish_queues
from foundry_log.handlers.console import ConsoleHandler
from foundry_log.plain_loggers import FastLoggers
from foundry_log.process import base_context, rank, rank_fields
from foundry_log.redaction import Redactor
from foundry_log.run_directory import RunDirectory, write_run_info
from foundry_log.signals import DEFAULT_SIGNALS, SignalWatch, is_possible, watched_signals

_OWNER = "foundry_session"
_log = logging.getLogger(__name__)


class LoggingSession:
    """What `configure` attached to the root logger; a context manager that detaches it.

    `directory` names the files, `handlers` are those on the root logger. Nothing needs closing for
    its lines to be safe: each stands in its file when its call returns, or, with
    `background_writing`, when the program ends. Closing brings back the handlers, the level and the
    signal handlers of before.
    """

    def __init__(
        self, directory: RunDirectory, handlers: list[logging.Handler], level: str
    ) -> None:
        root = logging.getLogger()
        self.directory = directory
        self.handlers = tuple(handlers)
        self._watch: SignalWatch | None = None
        self._fast: FastLoggers | None = None
        writers = _writers(handlers)
        self._replaced = [handler for handler in root.handlers if _gives_way(handler, writers)]
        self._level = root.level
        self._closed = False
        self._outer: LoggingSession | None = next(
            (_session_of(handler) for handler in self._replaced if _session_of(handler)), None
        )
        for handler in self._replaced:
            root.removeHandler(handler)
        for handler in handlers:
            handler.__dict__[_OWNER] = self
            root.addHandler(handler)
        root.setLevel(level)

    def _handle(self, signals: Collection[int]) -> None:
        """Handle those that no session round this one handles already.

        Raises:
            ValueError: this is not the main thread.
        """
        free = set(signals) - watched_signals()
        if free or not is_possible():
            self._watch = SignalWatch(flush=_flush_all, finish=finish_queues, signals=free)

    @property
    def losses(self) -> Counter[str]:
        """Records that could not be written, by cause; of a queue, those dropped for want of room.

        A record counts once for each handler that lost it.
        """
        lost: Counter[str] = Counter()
        for handler in {*self.handlers, *_writers(self.handlers)}:
            lost.update(getattr(handler, "losses", {}))
            lost["dropped"] += sum(getattr(handler, "dropped", {}).values())
        return +lost

    def flush(self) -> None:
        """Flush every handler of the session."""
        for handler in self.handlers:
            handler.flush()

    def close(self) -> None:
        """Detach and close the session's handlers and bring back what they replaced. Idempotent.

        Raises:
            ValueError: it handles signals, and this is not the main thread; nothing has changed.
        """
        if self._closed:
            return
        if self._watch is not None:
            self._watch.close()
        if self._fast is not None:
            self._fast.close()
        self._closed = True
        root = logging.getLogger()
        is_active = any(handler in root.handlers for handler in self.handlers)
        for handler in self.handlers:
            root.removeHandler(handler)
        closing = dict.fromkeys((*self.handlers, *_writers(self.handlers)))
        # What ships the files comes when the others have ended them.
        for handler in sorted(closing, key=lambda each: getattr(each, "closes_last", False)):
            try:
                handler.close()
            except Exception:  # the others are closed, and the root logger gets its own back
                _log.warning("%r could not be closed", handler, exc_info=True)
        if is_active:  # otherwise a later session is in force, and asks us when it ends
            handlers, level = self._before()
            for handler in handlers:
                root.addHandler(handler)
            root.setLevel(level)

    def _before(self) -> tuple[list[logging.Handler], int]:
        """Return the handlers and the level to bring back, past outer sessions closed meanwhile."""
        outer = self._outer
        if outer is None or not outer._closed:
            return self._replaced, self._level
        handlers, level = outer._before()
        others = [handler for handler in self._replaced if _session_of(handler) is not outer]
        return others + handlers, level

    def __enter__(self) -> LoggingSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def configure(
    config: LoggingConfig | ExperimentConfig | None = None,
    directory: str | os.PathLike[str] | None = None,
    *,
    context: Mapping[str, Any] | None = None,
    console: bool = True,
    handle_signals: bool | Collection[int] = False,
    fast_loggers: bool = False,
) -> LoggingSession:
    """Set up console, `run.log` and `run.jsonl` on the root logger, and write `run_info.json`.

    Every logger of the process takes part, those that exist already too. Handlers that others put
    on the root logger stay, except those that write to the terminal as well: they, and those of an
    earlier `configure`, stand back until the session is closed, so that no line is doubled.

    Files that cannot be written do not stop the program: the console goes on, and each cause is
    reported once.

    Under a launcher such as torchrun each rank writes files of its own, `run@rank1.jsonl`, which
    readers of `run.jsonl` merge; see `LoggingConfig.rank_files`. On the console rank 0 shows what
    is configured and the others warnings and above, each record with its rank before it.

    Args:
        config: None for the defaults. An ExperimentConfig gives every record the experiment, git
            hash and device.
        directory: of the files; None for `<experiment>/output`, or `logs` without an experiment.
        context: more fields for every record.
        console: show records on standard error.
        handle_signals: at SIGTERM, SIGHUP and SIGXCPU, or those given, a record says why and
            when, everything is flushed and synced, and then your handler or the default action
            follows; see `foundry_log.signals.SignalWatch`. In the main thread only.
        fast_loggers: make plain loggers faster until the session is closed; see
            `foundry_log.fast_loggers`.

    Returns:
        The session: `flush()`, `close()`, `directory`; also a context manager.

    Raises:
        TypeError: `config` is no configuration of this package.
        ValueError: signals are to be handled, and this is not the main thread.
    """
    settings = config.logging if isinstance(config, ExperimentConfig) else config or LoggingConfig()
    if not isinstance(settings, LoggingConfig):
        raise TypeError(
            f"configure() takes a LoggingConfig or an ExperimentConfig, not "
            f"{type(config).__name__}; make one of a dict with LoggingConfig(**settings)"
        )
    if isinstance(config, ExperimentConfig):
        fields = base_context(config.experiment_name, config.training.device)
        run = RunDirectory.of(".", config.experiment_name)
    else:
        fields = rank_fields()
        run = RunDirectory(Path("logs"))
    if directory is not None:
        run = RunDirectory(Path(directory))
    data = settings.to_dict_config(run.path, context={**fields, **(context or {})}, console=console)
    session = LoggingSession(run, _handlers(data), data["root"]["level"])
    try:
        if handle_signals:
            session._handle(DEFAULT_SIGNALS if handle_signals is True else handle_signals)
        if fast_loggers:
            session._fast = FastLoggers()
        if rank() in (None, 0):  # it describes the run, whose other ranks are the same
            _describe(run, config or settings)
    except BaseException:
        session.close()
        raise
    return session


def _flush_all() -> None:
    """Flush the root logger's handlers and every queue: other sessions' and other loggers' too."""
    finish_queues()
    for handler in logging.getLogger().handlers:
        handler.flush()


def _describe(run: RunDirectory, config: LoggingConfig | ExperimentConfig) -> None:
    settings = config.logging if isinstance(config, ExperimentConfig) else config
    redactor = None
    if settings.redact_secrets:
        redactor = Redactor(settings.redact_keys, settings.redact_patterns)
    try:
        facts = config.model_dump(mode="json")
        write_run_info(run, facts, redactor, settings.file_permissions)
    except OSError as error:
        _log.warning("%s could not be written: %s", run.info, error)


def _handlers(data: dict[str, Any]) -> list[logging.Handler]:
    """Return the handlers that `dictConfig(data)` would make, without its touching any other."""
    configurator = DictConfigurator(data)
    parts: Any = configurator.config
    for name in parts["formatters"]:
        parts["formatters"][name] = configurator.configure_formatter(parts["formatters"][name])
    for name in parts["filters"]:
        parts["filters"][name] = configurator.configure_filter(parts["filters"][name])
    for name in parts["handlers"]:
        parts["handlers"][name] = configurator.configure_handler(parts["handlers"][name])
    return [parts["handlers"][name] for name in data["root"]["handlers"]]


def _writers(handlers: Collection[logging.Handler]) -> list[logging.Handler]:
    """Return the handlers that write: those behind a queue in place of the queue."""
    return [
        writer
        for handler in handlers
        for writer in (handler.handlers if isinstance(handler, BackgroundHandler) else [handler])
    ]


def _session_of(handler: logging.Handler) -> LoggingSession | None:
    session: LoggingSession | None = handler.__dict__.get(_OWNER)
    return session


def _gives_way(old: logging.Handler, new: Collection[logging.Handler]) -> bool:
    """Return whether `old` would write again what one of the new handlers writes."""
    if _session_of(old) is not None:
        return True
    if isinstance(old, logging.FileHandler):
        files = {h.baseFilename for h in new if isinstance(h, logging.FileHandler)}
        return old.baseFilename in files
    if not any(isinstance(handler, ConsoleHandler) for handler in new):
        return False
    stream = getattr(old, "stream", None) or getattr(getattr(old, "console", None), "file", None)
    terminals = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    return stream is not None and any(stream is terminal for terminal in terminals)
