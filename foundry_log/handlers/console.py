"""The handler for the terminal."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO

from foundry_log.handlers.direct import TakesParts
from foundry_log.records import Parts, whole

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # no subscript at run time before Python 3.11


class ConsoleHandler(TakesParts, _StreamHandler):
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
        self.is_direct = type(self) is ConsoleHandler

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
                self.write_line(self.format(record))
        except Exception:
            self.handleError(record)

    def emit_parts(self, parts: Parts) -> None:
        """Write the line of the record that has these parts; failures are counted."""
        self.within_bounds(self._emit_parts, parts)  # a stream of somebody's own may log

    def _emit_parts(self, parts: Parts) -> None:
        formatter: Any = self.formatter
        try:
            line = formatter.line(*parts)
            self.write_line(line if isinstance(line, str) else line.decode())
        except Exception:
            self.handleError(whole(parts))

    def write_line(self, text: str) -> None:
        """Write the text and the terminator behind it, visible at once; nothing without a stream.

        Raises:
            Exception: what the stream raises; nothing is counted.
        """
        line = text + self.terminator
        with self.lock or contextlib.nullcontext():
            stream: Any = self.stream
            if stream is None:
                return
            try:
                stream.write(line)
            except UnicodeEncodeError:  # a terminal of few letters gets the others as escapes
                encoding = stream.encoding
                stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
            if not self.is_direct:
                self.flush()
            elif hasattr(stream, "flush"):
                stream.flush()
