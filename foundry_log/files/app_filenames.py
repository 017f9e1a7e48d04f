"""The names of the files that `get_logger` writes: `parse_name(format_name(name)) == name`.

shop-worker-7.current.log             live, of one process
shop-worker-7__2026-11-21.log         rotated: the lines of that local day
shop-worker-7__2026-11-21.1.log       a further file of that day
shop-worker-7__2026-11-21.log.gz      the same files compressed
shop.current.log                      live, of all processes: the leader's
shop_2026-11-21.log                   rotated by the leader

A dash stands between application and process, so the leader's names have none. Names stand as they
are wherever that can be read back; what would be read as something else is written as its bytes in
UTF-8, `%2D` for a dash: `my-shop` led is `my%2Dshop.current.log`, and its process `api-1`,
`my-shop-api%2D1.current.log`.
"""

from __future__ import annotations

import datetime
import functools
import re
import urllib.parse
from dataclasses import dataclass

LONGEST = 200
"""Bytes of a live name, of the 255 that there are: stamps, notes and locks take the others."""

_LIVE = ".current.log"
_COMPRESSED = ".gz"
_LAST_NUMBER = 999_999_999
_WORKER = re.compile(r"worker-(\d+)", re.ASCII)
_SPLIT = re.compile(r"(.+)-(worker-\d+)|(.+)-([^-]+)", re.ASCII | re.DOTALL)
_ROTATED = re.compile(
    r"(?:(?P<own>.*-.*)_|(?P<led>[^-]+))_(?P<date>\d{4}-\d\d-\d\d)(?:\.(?P<number>[1-9]\d{0,8}))?"
    r"\.log(?P<gz>\.gz)?",
    re.ASCII | re.DOTALL,
)
_UNSAFE = re.compile(r"^\.|[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff%/\\:]")
_DASH = re.compile("-")
_FIRST = re.compile("^.", re.DOTALL)


@dataclass(frozen=True)
class AppLogName:
    """What a file's name says.

    Args:
        app: the application, at least one character.
        process: whose file it is; None for the file of all processes.
        date: local day of the lines in a rotated file; None for a live one.
        number: 0 for the first rotated file of a day, 1, 2, … for further ones.
        is_compressed: it is a rotated file's gzip.
    """

    app: str
    process: str | None = None
    date: datetime.date | None = None
    number: int = 0
    is_compressed: bool = False

    @property
    def pid(self) -> int | None:
        """The process id in `worker-<pid>`, the name of processes that have no other."""
        worker = _WORKER.fullmatch(self.process or "")
        return int(worker.group(1)) if worker else None


def worker_name(pid: int) -> str:
    """Return the name of a process that has no other."""
    return f"worker-{pid}"


def format_name(name: AppLogName) -> str:
    """Return the file's name, without a directory.

    Raises:
        ValueError: application or process is empty, the name is too long, the number is out of
            range, or a live file has one or is compressed.
    """
    stem = _stem(name.app, name.process)
    if name.date is None:
        if name.number or name.is_compressed:
            raise ValueError("a live file has neither a number nor a gzip; give the day")
        return stem + _LIVE
    if not 0 <= name.number <= _LAST_NUMBER:
        raise ValueError(f"number={name.number} must be 0 to {_LAST_NUMBER}")
    day = f"{'_' if name.process is None else '__'}{name.date.isoformat()}"
    number = f".{name.number}" if name.number else ""
    return f"{stem}{day}{number}.log{_COMPRESSED if name.is_compressed else ''}"


def parse_name(text: str) -> AppLogName | None:
    """Return what a file's name says, None for one that `format_name` never gives."""
    if text.endswith(_LIVE):
        stem = text[: -len(_LIVE)]
        owner = _owner(stem, is_own="-" in stem)
        return owner and AppLogName(*owner)
    found = _ROTATED.fullmatch(text)
    if found is None:
        return None
    own, led, date, number, gz = found.groups()
    owner = _owner(own or led, is_own=own is not None)
    try:
        day = datetime.date.fromisoformat(date)
    except ValueError:  # the thirteenth month
        return None
    return owner and AppLogName(*owner, day, int(number or 0), gz is not None)


def encoded(text: str) -> str:
    """Return text as it can stand in a file's name, `%` and what is unsafe there as `%XX`."""
    return _percent(_UNSAFE, text)


@functools.lru_cache(4096)  # a directory has many files of few processes
def _owner(stem: str, *, is_own: bool) -> tuple[str, str | None] | None:
    """Return application and process; None where they would be written in another way.

    Args:
        stem: the part of the name that says whose it is.
        is_own: it is one process's.
    """
    parts = _split(stem) if is_own else (stem, None)
    if parts is None:
        return None
    app, process = parts
    try:
        owner = _text(app), None if process is None else _text(process)
        return owner if _stem(*owner) == stem else None
    except ValueError:  # bytes that are no text, a name too long
        return None


def _stem(app: str, process: str | None) -> str:
    """Return the part of the name that says whose it is.

    Raises:
        ValueError: a name is empty or too long.
    """
    if not app or process == "":
        raise ValueError(f"app={app!r} and process={process!r} must not be empty")
    stem = _percent(_DASH, encoded(app)) if process is None else _joined(app, process)
    if len((stem + _LIVE).encode()) > LONGEST:
        raise ValueError(
            f"app={app[:20]!r}… and process={(process or '')[:20]!r}… make a file name of more "
            f"than {LONGEST} bytes; use shorter names"
        )
    return stem


def _joined(app: str, process: str) -> str:
    app, process = encoded(app), encoded(process)
    without_dashes = _percent(_DASH, process)
    for candidate in (process, without_dashes):
        if _split(f"{app}-{candidate}") == (app, candidate):
            return f"{app}-{candidate}"
    return f"{app}-{_percent(_FIRST, without_dashes)}"  # `x-worker` and `12`: no `worker-12`


def _split(stem: str) -> tuple[str, str] | None:
    """Return application and process as they are written; None where one of them is missing."""
    found = _SPLIT.fullmatch(stem)
    return found and (found[1] or found[3], found[2] or found[4])


def _text(written: str) -> str:
    return urllib.parse.unquote_to_bytes(written).decode("utf-8", "surrogatepass")


def _percent(unsafe: re.Pattern[str], text: str) -> str:
    return unsafe.sub(
        lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass")),
        text,
    )
