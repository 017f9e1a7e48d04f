"""The handler for the terminal."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, TextIO

from foundry_log.handlers.losses import CountsLosses

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # no subscript at run time before Python 3.11


class ConsoleHandler(CountsLosses, _StreamHandler):
    """Writes to what `sys.stderr` or `sys.stdout` is at the time of each record.

    A progress bar, a notebook or a test that replaces the stream while the program runs thus gets
    the lines, where a handler that kept the first stream would write over the bar.

    Args:
        stream: `stderr` or `stdout`.

    Raises:
        ValueError: `stream` is neither.
    """

    def __init__(self, stream: str = "stderr") -> None:
        if stream not in ("stderr", "stdout"):
            raise ValueError(f"stream={stream!r} is no console; use 'stderr' or 'stdout'")
        self._name_in_sys = stream
        super().__init__(getattr(sys, stream))

    @property
    def stream(self) -> TextIO:
        """The stream as it is now."""
        stream: TextIO = getattr(sys, self._name_in_sys)
        return stream

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        """Accept the assignment in the stdlib's constructor, and keep following `sys`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line; a process without that stream has nowhere to write it."""
        try:
            if self.stream is not None:
                self._write(self.format(record) + self.terminator)
        except Exception:
            self.handleError(record)

    def _write(self, line: str) -> None:
        self.acquire()
        try:
            self.stream.write(line)
        except UnicodeEncodeError:  # a terminal of few letters gets the others as escapes
            encoding = self.stream.encoding
            self.stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
        finally:
            self.release()
        self.flush()
