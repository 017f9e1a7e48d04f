"""Whether a log keeps what it acknowledged: writers that note what they logged, and the check.

A writer notes a record in a file beside the log, with one `write`, once the logging call has
returned; from then on the record must stand in the log, whoever is killed. A record's name tells
its whole content, so that `verify` recomputes it. The files are read here as bytes, by their names
alone, without anything of foundry_log; then its readers must give the same.
"""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import multiprocessing
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from foundry_log import read_jsonl

DEADLINE_S = 60

_NAME = r"\d+-\d+-\d+-\d+"
_NAMES_IN_BYTES = re.compile(rf'(?<="record": ")({_NAME})(?=")|(?<=[."])({_NAME})(?=\.)'.encode())
_STAMP = r"\.\d{8}T\d{12}Z"
_SHOWN = 5


# --- records ---


def record_name(writer: int, thread: int, sequence: int, size: int) -> str:
    """Return the name of a record whose payload has `size` characters."""
    return f"{writer}-{thread}-{sequence}-{size}"


def record_entry(name: str) -> dict[str, str]:
    """Return the one content that the record `name` may have."""
    size = int(name.rpartition("-")[2])
    return {"record": name, "payload": (f"{name}." * (size // (len(name) + 1) + 1))[:size]}


def record_line(name: str) -> str:
    """Return the text of the record's line, without the newline."""
    return json.dumps(record_entry(name))


# --- writers ---


@dataclass(frozen=True)
class Task:
    """What each writer of a crew does; it must pickle where writers are spawned.

    Args:
        path: of the log.
        make: makes the handler, given the path.
        sizes: characters of the payloads, by turns.
        threads: of each writer.
        count: records of each thread; None to write until killed.
    """

    path: str
    make: Callable[[str], logging.Handler]
    sizes: Sequence[int] = (200,)
    threads: int = 2
    count: int | None = None


def write_records(task: Task, writer: int) -> None:
    """Log the task's records as `writer`, and note each once its call has returned."""
    parent = os.getppid()
    handler = task.make(task.path)
    handler.setFormatter(logging.Formatter("%(message)s"))
    report = handler.handleError

    def refuse(record: logging.LogRecord) -> None:
        record.refused = True  # counted and reported as lost: not acknowledged
        report(record)

    handler.handleError = refuse  # type: ignore[method-assign]

    def run(thread: int) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        notes = os.open(f"{_notes(task.path, writer)}-{thread}", flags, 0o600)
        sizes = itertools.cycle(task.sizes)
        for sequence in itertools.count() if task.count is None else range(task.count):
            if os.getppid() != parent:
                break  # nobody is left to end this
            name = record_name(writer, thread, sequence, next(sizes))
            record = logging.makeLogRecord({"msg": record_line(name)})
            handler.handle(record)
            if not hasattr(record, "refused"):
                os.write(notes, f"{name}\n".encode())
        os.close(notes)

    crew = [threading.Thread(target=run, args=(thread,)) for thread in range(task.threads)]
    for member in crew:
        member.start()
    for member in crew:
        member.join()
    handler.close()


class Crew:
    """Writers of one log, each in a process of its own; those left at the end are killed.

    Args:
        task: what each does.
        methods: how they are started, by turns: `fork`, `spawn`.
        first: number of the first writer. No two writers of a log may share one.
    """

    def __init__(self, task: Task, methods: Sequence[str] = ("fork",), first: int = 0) -> None:
        self.task = task
        self.kills = 0
        """Writers killed so far, those that are left at the end included."""
        self._contexts: Any = itertools.cycle(map(multiprocessing.get_context, methods))
        self._writers: dict[int, BaseProcess] = {}
        self._numbers = itertools.count(first)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._writers.values():
            self.kills += process.is_alive()
            process.kill()
            process.join(DEADLINE_S)

    def start(self) -> None:
        """Start one more writer."""
        writer = next(self._numbers)
        process = next(self._contexts).Process(target=write_records, args=(self.task, writer))
        process.start()
        self._writers[writer] = process

    def kill_one(self, dice: random.Random) -> None:
        """Send SIGKILL to a writer at a random moment while it writes."""
        writer = dice.choice(list(self._writers))
        process = self._writers[writer]
        goal = self._noted(writer) + dice.randrange(10, 500)
        deadline = time.monotonic() + DEADLINE_S
        while self._noted(writer) < goal:
            assert process.is_alive(), f"writer {writer} ended by itself: {process.exitcode}"
            assert time.monotonic() < deadline, f"writer {writer} hangs"
            time.sleep(0.0005)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join(DEADLINE_S)
        del self._writers[writer]
        self.kills += 1

    def join(self) -> list[int | None]:
        """Wait for the writers to end by themselves; return their exit codes, None if one hangs."""
        deadline = time.monotonic() + DEADLINE_S
        for process in self._writers.values():
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self._writers.values()]

    def _noted(self, writer: int) -> int:
        return sum(file.stat().st_size for file in _notes_of(self.task.path, str(writer)))


def _notes(path: str, writer: int) -> str:
    return f"{path}.acknowledged-{writer}"


def _notes_of(path: str, writer: str) -> Iterator[Path]:
    log = Path(path)
    return log.parent.glob(f"{log.name}.acknowledged-{writer}-*")


# --- the check ---


@dataclass(frozen=True)
class Conservation:
    """What became of the records of one log: numbers, and the names of those in a wrong state.

    acknowledged   noted by their writers
    found          that stand intact on a line of their own, each counted once
    lost           acknowledged, and nothing of them is there
    doubled        intact more than once, acknowledged or not
    glued          acknowledged and whole, but on a line with something else
    torn           acknowledged, and a line holds only a part of them; or valid JSON, but wrong
    disordered     behind a later record of their thread in the same file
    misread        not given by foundry_log's readers as often as they stand in the files
    fragments      lines that are no record: what killed writers left
    """

    acknowledged: int
    found: int
    lost: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    glued: tuple[str, ...] = ()
    torn: tuple[str, ...] = ()
    disordered: tuple[str, ...] = ()
    misread: tuple[str, ...] = ()
    fragments: int = 0

    @property
    def faults(self) -> dict[str, tuple[str, ...]]:
        """The kinds of fault that occurred, with the records."""
        kinds = ("lost", "doubled", "glued", "torn", "disordered", "misread")
        return {kind: names for kind in kinds if (names := getattr(self, kind))}

    def __str__(self) -> str:
        told = [f"{self.acknowledged} acknowledged, {self.found} found, {self.fragments} fragments"]
        for kind, names in self.faults.items():
            more = ", …" if len(names) > _SHOWN else ""
            told.append(f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{more}")
        return "\n".join(told)


def verify(path: str | os.PathLike[str]) -> Conservation:
    """Return what became of the records of the log `path`; nobody may be writing it."""
    told = set(acknowledged(path))
    found: Counter[str] = Counter()
    disordered: list[str] = []
    fragments: list[bytes] = []
    for file in history_files(path):
        names, rest = _records(_content(file))
        found.update(names)
        disordered += _disordered(names)
        fragments += rest
    glued, torn = _hidden(fragments, told)
    return Conservation(
        acknowledged=len(told),
        found=len(found),
        lost=_sorted(told - found.keys() - glued - torn),
        doubled=_sorted(name for name, count in found.items() if count > 1),
        glued=_sorted(glued),
        torn=_sorted(torn),
        disordered=tuple(disordered),
        misread=_misread(path, found),
        fragments=len(fragments),
    )


def assert_conserved(path: str | os.PathLike[str]) -> Conservation:
    """Fail, naming the records, unless what was acknowledged stands exactly once, and intact."""
    result = verify(path)
    assert not result.faults, f"{os.fspath(path)}: {result}"
    return result


def acknowledged(path: str | os.PathLike[str]) -> list[str]:
    """Return the names that the writers noted; a torn last note of a killed one is none."""
    names: list[str] = []
    for notes in _notes_of(os.fspath(path), "*"):
        names += notes.read_text().split("\n")[:-1]
    assert len(set(names)) == len(names), "two writers had the same number"
    return names


def history_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files of a log: live, rotated, compressed, and those of single processes.

    A compressed file beside its original is one whose compression did not come to its end.
    """
    folder, live = os.path.split(os.path.abspath(path))
    stem, suffix = map(re.escape, os.path.splitext(live))
    ours = re.compile(rf"{stem}(@[^@]+-\d+)?({_STAMP})?{suffix}(\.\d+)?(\.gz)?")
    names = {name for name in os.listdir(folder) if ours.fullmatch(name)}
    return [
        Path(folder, name)
        for name in sorted(names)
        if name.removesuffix(".gz") not in names or not name.endswith(".gz")
    ]


def records_in(file: Path) -> list[str]:
    """Return the names of the records that stand intact on lines of their own, in order."""
    return _records(_content(file))[0]


def _content(file: Path) -> bytes:
    content = file.read_bytes()
    return gzip.decompress(content) if file.name.endswith(".gz") else content


def _records(content: bytes) -> tuple[list[str], list[bytes]]:
    """Return the names of the intact records, in order, and the lines that are none."""
    *lines, unfinished = content.split(b"\n")
    names: list[str] = []
    rest = [unfinished] if unfinished.strip() else []
    for line in lines:
        name = _intact(line)
        if name is not None:
            names.append(name)
        elif line.strip():
            rest.append(line)
    return names, rest


def _intact(line: bytes) -> str | None:
    entry = _parsed(line)
    name = entry.get("record") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not re.fullmatch(_NAME, name, re.ASCII):
        return None
    return name if entry == record_entry(name) else None


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _disordered(names: list[str]) -> Iterator[str]:
    latest: dict[tuple[int, int], int] = {}
    for name in names:
        writer, thread, sequence, _ = map(int, name.split("-"))
        if sequence < latest.get((writer, thread), -1):
            yield name
        latest[writer, thread] = sequence


def _hidden(fragments: list[bytes], told: set[str]) -> tuple[set[str], set[str]]:
    """Return the acknowledged records that stand whole in a fragment, and those in part."""
    glued: set[str] = set()
    torn: set[str] = set()
    for fragment in fragments:
        is_json = _parsed(fragment) is not None
        for name in {(a or b).decode() for a, b in _NAMES_IN_BYTES.findall(fragment)}:
            whole = record_line(name).encode()
            lacks_newline = fragment.strip() == whole
            if name in told:
                (glued if whole in fragment and not lacks_newline else torn).add(name)
            elif is_json and not lacks_newline:
                torn.add(name)  # a reader takes it for a record
    return glued, torn - glued


def _misread(path: str | os.PathLike[str], found: Counter[str]) -> tuple[str, ...]:
    entries = (entry for entry in read_jsonl(path) if "record" in entry)
    given = Counter(e["record"] for e in entries if e == record_entry(e["record"]))
    return _sorted(name for name in found | given if found[name] != given[name])


def _sorted(names: Any) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: [int(part) for part in name.split("-")]))
