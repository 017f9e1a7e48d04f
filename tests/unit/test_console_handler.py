"""The terminal's handler: follows the stream that `sys` has now."""

from __future__ import annotations

import contextlib
import io
import logging
import logging.config
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from foundry_log import ConsoleHandler

pytestmark = pytest.mark.unit


def log(handler: logging.Handler, message: str) -> None:
    handler.handle(logging.makeLogRecord({"msg": message}))


@pytest.mark.parametrize("name", ["stderr", "stdout"])
def test_a_record_goes_to_the_stream_of_that_name(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """One line each."""
    log(ConsoleHandler(name), "hello")
    assert getattr(capsys.readouterr(), name[3:]) == "hello\n"


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """As with the stdlib's StreamHandler."""
    log(ConsoleHandler(), "hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_a_stream_that_is_replaced_later_gets_the_later_records() -> None:
    """A progress bar or a notebook replaces it while the program runs."""
    handler, first, second = ConsoleHandler(), io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(first):
        log(handler, "one")
        with contextlib.redirect_stderr(second):
            log(handler, "two")
        log(handler, "three")
    assert (first.getvalue(), second.getvalue()) == ("one\nthree\n", "two\n")


def test_an_unknown_stream_is_refused() -> None:
    """With the two that there are."""
    with pytest.raises(ValueError, match=r"stream='ext://sys\.stdout' is no console; use 'stderr'"):
        ConsoleHandler("ext://sys.stdout")


def test_a_process_without_the_stream_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some daemons and `pythonw` have none: no loss, no error."""
    handler = ConsoleHandler()
    monkeypatch.setattr(sys, "stderr", None)
    log(handler, "nobody")
    handler.flush()
    assert not handler.losses


def test_a_handler_can_be_made_without_the_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And writes when there is one."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        handler = ConsoleHandler()
    log(handler, "now")
    assert capsys.readouterr().err == "now\n"


def test_a_closed_stream_costs_a_count_and_nothing_else() -> None:
    """Nothing is raised into the program."""
    stream = io.StringIO()
    stream.close()
    handler = ConsoleHandler("stdout")
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(io.StringIO()) as report:
        log(handler, "one")
        log(handler, "two")
    assert handler.losses == {"ValueError": 2}
    assert report.getvalue().count("--- Logging error ---") == 1


def test_a_line_is_visible_at_once(tmp_path: Path) -> None:
    """Also in a stream that keeps what it is given, and with a terminator that ends no line."""
    handler = ConsoleHandler("stdout")
    with open(tmp_path / "out", "w") as stream, contextlib.redirect_stdout(stream):
        handler.write_line("one")
        handler.terminator = "|"
        log(handler, "two")
        assert (tmp_path / "out").read_text() == "one\ntwo|"


def test_a_line_for_no_stream_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a record for none."""
    handler = ConsoleHandler()
    monkeypatch.setattr(sys, "stderr", None)
    handler.write_line("nobody")


def test_what_the_stream_raises_is_the_callers_of_write_line() -> None:
    """It has no record to count."""
    stream = io.StringIO()
    stream.close()
    handler = ConsoleHandler("stdout")
    with contextlib.redirect_stdout(stream), pytest.raises(ValueError, match="closed"):
        handler.write_line("one")
    assert not handler.losses


class Slow(io.StringIO):
    """Writes letter by letter, and so mixes lines that are not kept apart; it cannot be flushed."""

    flush = property()  # type: ignore[assignment]

    def write(self, text: str) -> int:
        for letter in text:
            super().write(letter)
            time.sleep(0)
        return len(text)


def test_lines_of_threads_are_whole() -> None:
    """Whatever the stream does."""
    handler, stream = ConsoleHandler("stdout"), Slow()
    lines = [letter * 20 for letter in "abcd"]
    with contextlib.redirect_stdout(stream):
        threads = [
            threading.Thread(target=lambda line=line: [handler.write_line(line) for _ in range(20)])
            for line in lines
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert sorted(stream.getvalue().split()) == sorted(lines * 20)


def test_a_reader_that_went_away_does_not_stop_the_program() -> None:
    """`program | head`: broken pipes are counted, and the program ends as it would."""
    script = (
        "import logging, sys\n"
        "from foundry_log import ConsoleHandler\n"
        "handler = ConsoleHandler('stdout')\n"
        "for number in range(3):\n"
        "    handler.handle(logging.makeLogRecord({'msg': 'x'}))\n"
        "sys.stderr.write(str(dict(handler.losses)))\n"
        "import os; os._exit(0)\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    os.close(writing)
    assert done.stderr.endswith("{'BrokenPipeError EPIPE': 3}")


def test_configuration_names_it_with_its_argument(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By keyword in dictConfig, by position in fileConfig."""
    ini = tmp_path / "logging.ini"
    ini.write_text(
        "[loggers]\nkeys=root,a\n[handlers]\nkeys=c\n[formatters]\nkeys=\n"
        "[logger_root]\nhandlers=\n"
        "[logger_a]\nqualname=console.ini\nhandlers=c\nlevel=INFO\n"
        "[handler_c]\nclass=foundry_log.ConsoleHandler\nargs=('stdout',)\n"
    )
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        logging.config.fileConfig(ini, disable_existing_loggers=False)
    finally:
        root.handlers[:] = before
    logging.getLogger("console.ini").info("from ini")
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"c": {"class": "foundry_log.ConsoleHandler", "stream": "stdout"}},
            "loggers": {"console.dict": {"handlers": ["c"], "level": "INFO"}},
        }
    )
    logging.getLogger("console.dict").info("from dict")
    assert capsys.readouterr().out == "from ini\nfrom dict\n"
