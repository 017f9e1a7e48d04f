"""What is told to the store about a log file: whose it is, and of which time."""

from __future__ import annotations

import datetime
import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping

from foundry_log.clock import timestamp
from foundry_log.files import owners
from foundry_log.process import host_name
from foundry_log.shipping.scanning import LogFile

_EDGE = 64 * 1024
"""Bytes at each end of a file that are searched for a time."""

_LINES = 100
"""Lines that are looked at for a time, from either end: a traceback has fewer."""
_LOCAL = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d{1,6})?", re.ASCII)


def metadata_of(file: LogFile) -> Mapping[str, str]:
    """Return app, process, host, first, last and source; those that are not known are left out.

    `first` and `last` are the times of the first and the last line in RFC 3339, UTC; where the end
    tells none, as that of a gzip, which is not unpacked for it, `last` is that of the file's last
    change. `source` is the path below the directory that is shipped.

    Raises:
        OSError: the file cannot be read.
    """
    first, last = times(file.path)
    name = file.named.app_name
    owner = owners.read_owner(file.live_path)
    found = {
        "app": name and name.app,
        "process": name and name.process,
        "host": owner.host if owner else host_name(),
        "first": first and timestamp(first),
        "last": timestamp(last or file.modified),
        "source": file.relative,
    }
    return {key: value for key, value in found.items() if value}


def times(path: str) -> tuple[float | None, float | None]:
    """Return the times of the first and the last line that has one, in seconds since the epoch.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if path.endswith(".gz"):
            return _first_time(_unpacked_begin(path).split(b"\n")), None
        begin = file.read(_EDGE).split(b"\n")
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _EDGE))
        end = file.read(_EDGE).split(b"\n")
        return _first_time(begin), _first_time(reversed(end))


def time_of_line(line: bytes) -> float | None:
    """Return the time in a line, in seconds since the epoch; None where it has none.

    It is the `timestamp` of a JSON object, or local time at the begin of a line for people.
    """
    try:
        if line.lstrip().startswith(b"{"):
            text = json.loads(line)["timestamp"]
            return _seconds(re.sub("[Zz]$", "+00:00", text))
        local = _LOCAL.match(line.decode("ascii", "replace"))
        return _seconds(_padded(local[0])) if local else None
    except (ValueError, TypeError, LookupError, OverflowError, OSError, RecursionError):
        return None


def _first_time(lines: Iterable[bytes]) -> float | None:
    looked_at = itertools.islice(lines, _LINES)
    return next((found for line in looked_at if (found := time_of_line(line)) is not None), None)


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def _padded(text: str) -> str:
    """Return local time with three or six digits behind the second: Python 3.10 reads no others."""
    second, _, fraction = text.replace(",", ".").partition(".")
    return f"{second}.{fraction:0<6}" if fraction else second


def _unpacked_begin(path: str) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(_EDGE)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return b""  # it is shipped all the same, as it is
