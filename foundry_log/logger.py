"""`get_logger`: named loggers with a console, and one file for the process or the application."""

from __future__ import annotations

import copy
import logging
import os
import sys
from collections import deque
from collections.abc import Mapping

from foundry_log.files.leadership import Leadership
from foundry_log.files.locks import logging_lock
from foundry_log.handlers.console import ConsoleHandler
from foundry_log.handlers.daily_log import DATE_FORMAT, LINE_FORMAT, DailyLogHandler
from foundry_log.text_formatters import PlainFormatter
from foundry_log.timer_thread import TimerThread

UNKNOWN_APP = "unknown_app"
FOLLOWERS_WAIT_S = 30.0
"""Seconds after midnight for which followers leave the rotation to their leader: it may be stopped,
or lead processes that write to another directory."""

_TICK_S = 1.0
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_MODES = ("process", "leader")

_log = logging.getLogger(__name__)


def get_app_name() -> str:
    """Return the application's name: APP_NAME_FOR_LOGGER, otherwise `unknown_app`.

    That it is missing is a warning, once until `shutdown_logging`.
    """
    name = _app_name()
    _state.say_warnings()
    return name


def get_logger(name: str, log_level: int | str | None = None) -> logging.Logger:
    """Return the stdlib logger `name`, writing to the console and to the application's file.

    The first call of a process puts the file's handler on the root logger, so that records of other
    libraries are in the file too; their levels, and the root logger's, stay as they are. What stops
    the file from being set up is one warning, and the console goes on.

    With a handler on the root logger `logging.basicConfig()` does nothing, unless it was called
    before, and warnings of libraries that have no handler are in the file and no longer on standard
    error. A `dictConfig` that names the root removes the handler: within a second it is back; what
    was logged meanwhile is on the console alone. A logger that it has disabled is enabled again by
    the next call with its name.

    The console is silent where another handler, of this logger or one that the record passes, shows
    it on standard error or output. A filter of such a handler is asked once more for it.

    With APP_LOGS_MODE `process` each process writes `{app}-{process}.current.log`, with `leader`
    all write `{app}.current.log`, which one of them rotates: see
    `foundry_log.files.app_filenames`. A process may be forked at any time; one that is spawned
    calls this itself.

    Environment, read at the first call:
        APP_NAME_FOR_LOGGER: the application; see `get_app_name`.
        PROCESS_NAME: of this process, in the mode `process`; otherwise `worker-<pid>`.
        APP_LOGS_DIR: directory of the files, made if missing; `logs`.
        APP_LOGS_MODE: `process` or `leader`; `process`.
        APP_LOGS_RETENTION_DAYS: days for which files are kept, at least 1; 30. Older ones are
            deleted, whether they were shipped or not.
        LOG_LEVEL: of loggers that have none of their own; INFO. Read at each call.

    Args:
        name: of the logger.
        log_level: a number, or DEBUG, INFO, WARNING, ERROR or CRITICAL in any case. None keeps the
            level that the logger has, and where it has none gives it that of LOG_LEVEL.

    Raises:
        ValueError: `log_level` is no level.

    Thread-safe.
    """
    level = None if log_level is None else _checked_level("log_level", log_level)
    logger = logging.getLogger(name)
    with _lock:
        if not any(isinstance(handler, _LoggerConsole) for handler in logger.handlers):
            _state.consoles.append(_LoggerConsole(logger))
        if level is not None:
            logger.setLevel(level)
        elif logger.level == logging.NOTSET:
            logger.setLevel(_level_of_environment())
        logger.disabled = False
        _state.attach_file()
    _state.say_warnings()
    return logger


def shutdown_logging() -> None:
    """Detach and close the handlers that `get_logger` has attached, and give back the lead.

    Each line was in its file when its call returned, so that nothing needs this to be safe. Levels
    stay. Records of threads that are logging just now are written. Idempotent; safe from any
    thread and in any process; the next `get_logger` begins anew.
    """
    with _lock:
        file, consoles = _state.taken_down()
    if file is not None:
        file.close()
    for console in consoles:
        console.logger.removeHandler(console)
        console.close()


class _LoggerConsole(ConsoleHandler):
    """The console of one logger; silent where another handler shows the record anyway."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self.setFormatter(PlainFormatter(LINE_FORMAT, DATE_FORMAT))
        self.logger = logger
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line, unless it is shown by another handler, here or further up."""
        if not self._is_shown(record):
            super().emit(record)

    def _is_shown(self, record: logging.LogRecord) -> bool:
        """Return whether somebody else's handler shows it, or a console like this further up."""
        loggers = _passed_by(record, self.logger)
        above = loggers[loggers.index(self.logger) + 1 :]
        return any(
            _shows(handler, record)
            for logger in loggers
            for handler in logger.handlers
            if logger in above or not isinstance(handler, _LoggerConsole)
        )


def _passed_by(record: logging.LogRecord, by: logging.Logger) -> list[logging.Logger]:
    """Return the loggers whose handlers get the record, from its own upwards, `by` among them."""
    own = by.manager.loggerDict.get(record.name)
    loggers = _upwards(own) if isinstance(own, logging.Logger) else []
    return loggers if by in loggers else _upwards(by)


def _upwards(logger: logging.Logger) -> list[logging.Logger]:
    loggers = [logger]
    while logger.propagate and logger.parent is not None:
        logger = logger.parent
        loggers.append(logger)
    return loggers


def _shows(handler: logging.Handler, record: logging.LogRecord) -> bool:
    """Return whether a handler writes the record to the terminal, or what stands in its place."""
    if not isinstance(handler, logging.StreamHandler) or record.levelno < handler.level:
        return False
    if handler.stream not in (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__):
        return False
    try:
        # A copy: what a filter adds is for the lines of its handler.
        return not handler.filters or bool(handler.filter(copy.copy(record)))
    except Exception:
        return False  # the filter's own handler tells of it


class _FileService:
    """The file of this process, and the thread that rotates it when nobody writes.

    Raises:
        OSError: the file cannot be opened.
        ValueError: a variable of the environment has a wrong value.
    """

    def __init__(self, app: str, environment: Mapping[str, str]) -> None:
        mode = environment.get("APP_LOGS_MODE") or "process"
        if mode not in _MODES:
            raise ValueError(f"APP_LOGS_MODE={mode!r} is unknown; use one of {', '.join(_MODES)}")
        self._leadership = Leadership(app) if mode == "leader" else None
        self.handler = DailyLogHandler(
            environment.get("APP_LOGS_DIR") or "logs",
            app,
            environment.get("PROCESS_NAME") or None,
            is_shared=mode == "leader",
            retention_days=_retention_days(environment),
        )
        self._is_closed = False
        self._begin()
        self.handler.after_opening = self._begin_in_child
        self.handler.after_rotating = self._prune_soon

    def attach(self) -> None:
        """Put the handler on the root logger, also where somebody's dictConfig has removed it."""
        logging.getLogger().addHandler(self.handler)

    def _attach_again(self) -> None:
        # Who holds the lock may be closing this, and wait for the thread that would wait here.
        if self.handler in logging.getLogger().handlers or not _lock.acquire(blocking=False):
            return
        try:
            if not self._is_closed:
                self.attach()
        finally:
            _lock.release()

    def close(self) -> None:
        """Detach and close everything. A record that is under way is written all the same."""
        self._is_closed = True
        self._timer.close()
        if self._leadership is not None:
            self._leadership.resign()
        logging.getLogger().removeHandler(self.handler)
        self.handler.close()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._has_pruned = False
        self.handler.patience_s = FOLLOWERS_WAIT_S if self._leadership else 0.0
        self._timer = TimerThread("app-log-file", self._tick)
        self._timer.start()

    def _begin_in_child(self) -> None:
        """Begin anew in a forked child that writes its first record."""
        if self._process != os.getpid() and not self._is_closed:
            try:
                self._begin()
            except RuntimeError:
                pass  # the interpreter is ending and starts no threads; the record is written

    def _prune_soon(self) -> None:
        self._has_pruned = False  # whoever logs first after midnight need not wait for it

    def _tick(self) -> float:
        if self._is_closed:  # while it was being started
            self._timer.close()
            return _TICK_S
        self._attach_again()
        self.handler.rotate_if_due()
        if not self._has_pruned:
            self._has_pruned = True
            self.handler.prune()
        if self._leadership is not None:
            self.handler.patience_s = 0.0 if self._leadership.try_to_lead() else FOLLOWERS_WAIT_S
        return _TICK_S


class _State:
    """What `get_logger` has set up in this process. Guarded by `_lock`."""

    def __init__(self) -> None:
        self.consoles: list[_LoggerConsole] = []
        self._file: _FileService | None = None
        self._has_failed = False
        self._said: set[str] = set()
        self._unsaid: deque[tuple[str, tuple[object, ...]]] = deque()

    def attach_file(self) -> None:
        """Set up the file unless it is there, or could not be set up before."""
        if self._has_failed:
            return
        try:
            if self._file is None:
                self._file = _FileService(_app_name(), os.environ)
            self._file.attach()
        except Exception as error:  # whatever it is, the program goes on with its console
            self._has_failed = True
            self.warn_once("records go to the console alone, there is no log file: %s", str(error))

    def taken_down(self) -> tuple[_FileService | None, list[_LoggerConsole]]:
        """Forget everything; return what is to be closed, which waits: not under the lock."""
        consoles, self.consoles = self.consoles, []
        file, self._file = self._file, None
        self._has_failed = False
        self._said.clear()
        return file, consoles

    def warn_once(self, message: str, *values: object) -> None:
        """Have a warning said, once until all is taken down."""
        with _lock:
            if message not in self._said:
                self._said.add(message)
                self._unsaid.append((message, values))

    def say_warnings(self) -> None:
        """Log what is to be said. Not under the lock: a handler may wait for who waits for it."""
        while self._unsaid:
            try:
                message, values = self._unsaid.popleft()
            except IndexError:
                return  # another thread has said it
            _log.warning(message, *values)


# The one of `logging`: taken with another one, in either order, they would wait for each other.
_lock = logging_lock
_state = _State()


def _app_name() -> str:
    name = os.environ.get("APP_NAME_FOR_LOGGER", "").strip()
    if not name:
        _state.warn_once(
            "APP_NAME_FOR_LOGGER is not set: log files are named %r; set it to the application's "
            "name",
            UNKNOWN_APP,
        )
    return name or UNKNOWN_APP


def _level_of_environment() -> int:
    text = os.environ.get("LOG_LEVEL") or "INFO"
    try:
        return _checked_level("LOG_LEVEL", text)
    except ValueError as error:
        _state.warn_once("%s; INFO is taken", error)
        return logging.INFO


def _checked_level(field: str, level: int | str) -> int:
    if isinstance(level, int) and not isinstance(level, bool) and level >= 0:
        return level
    if isinstance(level, str) and level.strip().upper() in _LEVELS:
        number: int = getattr(logging, level.strip().upper())
        return number
    raise ValueError(f"{field}={level!r} is no level; use one of {', '.join(_LEVELS)}")


def _retention_days(environment: Mapping[str, str]) -> int:
    text = environment.get("APP_LOGS_RETENTION_DAYS") or "30"
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(
            f"APP_LOGS_RETENTION_DAYS={text!r} is no number of days from 1 on; use for example 30"
        )
    return int(text)
