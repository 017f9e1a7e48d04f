"""ErrorTracker: every error of a run in one file, counted by type."""

from __future__ import annotations

import copy
import logging
import os
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from foundry_log.clock import timestamp
from foundry_log.context import bound_fields
from foundry_log.decorating import Function, run_inside
from foundry_log.encoding import exception_text, to_plain
from foundry_log.exception_data import exc_info_of, traceback_text
from foundry_log.files.filenames import ranked
from foundry_log.files.locks import thread_lock
from foundry_log.handlers.owned import owned_handler
from foundry_log.jsonl import tail_jsonl
from foundry_log.process import RankFiles, file_rank, rank
from foundry_log.records import ENTRY, checked_logger, entry_record


class ErrorTracker:
    """Writes errors to `<output_dir>/errors.jsonl`, counts them, and logs them at ERROR.

    A line stands in the file when the call returns, whatever the levels of loggers are. The file
    rotates at 100 MiB and is never pruned. Where the logger's records are redacted, so are the
    entries. Thread-safe; several processes may share the file. Under a launcher such as torchrun
    each rank writes a file of its own, `errors@rank1.jsonl`, with its rank in each line; readers of
    `errors.jsonl` find them all. Calls never raise; what could not be written is counted in
    `losses` and reported once per cause.

    Args:
        logger: a logger or a StructuredLogger.
        output_dir: of the file; made if it is missing.
        max_errors: entries kept in memory; the file and the counts have all.
        file_permissions, one_file_per_process: as of `LoggingConfig`.
        rank_files: `each`, or `first`, where rank 0 keeps the plain name.

    Raises:
        TypeError: `logger` is none.
        ValueError: `max_errors` is below 1, or `rank_files` is unknown.
    """

    def __init__(
        self,
        logger: logging.Logger | logging.LoggerAdapter[Any],
        output_dir: str | os.PathLike[str],
        max_errors: int = 1000,
        *,
        file_permissions: int = 0o640,
        one_file_per_process: bool | None = None,
        rank_files: RankFiles = "each",
    ) -> None:
        checked_logger(logger)
        if max_errors < 1:
            raise ValueError(f"max_errors={max_errors} must be 1 or more")
        self.logger = logger
        self.output_dir = Path(output_dir)
        everybodys = self.output_dir / "errors.jsonl"
        self.errors_file = ranked(everybodys, file_rank(rank_files))
        self._path = Path(os.path.abspath(everybodys))  # the process may change directory
        number = rank()
        self._rank = {} if number is None else {"rank": number}
        self._handler = owned_handler(
            self.errors_file, 100, logger, file_permissions, one_file_per_process
        )
        self._counts: Counter[str] = Counter()
        self._recent: deque[dict[str, Any]] = deque(maxlen=max_errors)
        self._lock = thread_lock()  # guards the counts and the recent entries

    @property
    def losses(self) -> Mapping[str, int]:
        """Entries that could not be written, by cause."""
        return self._handler.losses

    def log_error(self, error: BaseException, context: Mapping[str, Any] | None = None) -> None:
        """Write `{"timestamp", "error_type", "error_message", "traceback", "context"}`.

        Under a launcher `"rank"` follows.

        The traceback is that of `error`, also outside of its `except` block, with its causes and
        groups.

        Args:
            error: what was raised.
            context: anything that helps to understand it, above the fields of scopes (`bound`).
        """
        self._log_error(error, context, stacklevel=3)

    def catch(
        self,
        exceptions: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        *,
        context: Mapping[str, Any] | None = None,
        reraise: bool = False,
    ) -> Catcher:
        """Return a context manager that logs what is raised inside; also a decorator.

            with tracker.catch(context={"phase": "export"}): ...

            @tracker.catch(OSError, reraise=True)
            async def fetch(): ...

        Args:
            exceptions: classes that are caught; others pass unseen.
            context: of the error.
            reraise: raise it again once it is logged; otherwise the block ends quietly, and a
                decorated function returns None.
        """
        return Catcher(self, exceptions, context, reraise)

    def get_error_summary(self) -> dict[str, int]:
        """Return how often each type of error was logged since the start or the last reset."""
        with self._lock:
            return dict(self._counts)

    def reset_counters(self) -> None:
        """Set the counts to zero; entries stay."""
        with self._lock:
            self._counts.clear()

    def get_recent_errors(self, n: int = 10) -> list[dict[str, Any]]:
        """Return the last `n` entries, newest first.

        From the end of the file, which has those of other and earlier processes too, and from the
        files of other ranks; from memory where the file is not the whole truth: lines were lost, or
        it has been removed.
        """
        with self._lock:
            recent = copy.deepcopy(list(self._recent)[::-1][: max(n, 0)])
        if self._handler.losses:
            return recent
        try:
            stored = tail_jsonl(self._path, n)
        except OSError:
            return recent
        return stored if len(stored) >= len(recent) else recent

    def close(self) -> None:
        """Close the file; a later error opens it again."""
        self._handler.close()

    def _log_error(self, error: Any, context: Mapping[str, Any] | None, stacklevel: int) -> None:
        kind, message = _class_name(type(error)), exception_text(error)
        entry = {
            "error_type": kind,
            "error_message": message,
            "traceback": traceback_text(error),
            "context": _plain_context(context),
            **self._rank,
        }
        record = entry_record(self.logger.name, logging.ERROR, f"{kind}: {message}", entry)
        self._handler.handle(record)
        with self._lock:
            self._counts[kind] += 1
            self._recent.append({"timestamp": timestamp(record.created), **record.__dict__[ENTRY]})
        self.logger.error(
            "%s: %s",
            kind,
            message,
            exc_info=exc_info_of(error) if issubclass(type(error), BaseException) else None,
            extra={"error_context": entry["context"]} if entry["context"] else None,
            stacklevel=stacklevel,
        )


_class_name = type.__dict__["__name__"].__get__  # a metaclass may have a `__name__` of its own


def _plain_context(context: Mapping[str, Any] | None) -> dict[str, Any]:
    plain = to_plain({} if context is None else context)
    given = plain if isinstance(plain, dict) else {"value": plain}
    return {**to_plain(dict(bound_fields())), **given}


class Catcher:
    """Logs what a block raises; made by `ErrorTracker.catch`."""

    def __init__(
        self,
        tracker: ErrorTracker,
        exceptions: type[BaseException] | tuple[type[BaseException], ...],
        context: Mapping[str, Any] | None,
        reraise: bool,
    ) -> None:
        self._tracker = tracker
        self._exceptions = exceptions
        self._context = context
        self._reraise = reraise

    def __enter__(self) -> Catcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if error is None or not isinstance(error, self._exceptions):
            return False
        self._tracker._log_error(error, self._context, stacklevel=3)
        return not self._reraise

    def __call__(self, function: Function) -> Function:
        """Return `function`, each call inside a block of its own."""
        return run_inside(
            lambda: Catcher(self._tracker, self._exceptions, self._context, self._reraise),
            function,
        )
