"""The names of get_logger's files: round trips, whose file it is, and what is no name of ours."""

from __future__ import annotations

import datetime
import os
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from foundry_log.files.app_filenames import LONGEST, AppLogName, format_name, parse_name

pytestmark = pytest.mark.unit

DAY = datetime.date(2026, 11, 21)
PIECES = st.sampled_from([
    *("-", "_", "__", ".", "%", "%2D", "/", "\n", "@", "a", "é", "²", "\ud800", "12", "worker"),
    *("worker-", "worker-1", "2026-11-21", "_2026-11-21.log", ".current", ".current.log", ".gz"),
])  # fmt: skip
TEXTS = st.lists(PIECES, min_size=1, max_size=4).map("".join) | st.text(
    st.characters(), min_size=1, max_size=12
)
ROTATED = st.builds(
    AppLogName, TEXTS, st.none() | TEXTS, st.dates(), st.integers(0, 999), st.booleans()
)
NAMES = st.builds(AppLogName, TEXTS, st.none() | TEXTS) | ROTATED


@given(NAMES)
@example(AppLogName("x-worker", "12"))
@example(AppLogName("foo_", None, DAY))
@example(AppLogName("worker", "1"))
def test_a_name_says_what_it_was_made_of(name: AppLogName) -> None:
    """Whatever application and process are called, the file's name gives both back."""
    assert parse_name(format_name(name)) == name


@given(NAMES, NAMES)
def test_different_files_have_different_names(one: AppLogName, other: AppLogName) -> None:
    """No two processes write one file because of their names."""
    assert (format_name(one) == format_name(other)) == (one == other)


@given(NAMES)
def test_a_name_is_one_visible_component_of_a_path(name: AppLogName) -> None:
    """No application's name leaves the directory, hides its files or breaks a line."""
    text = format_name(name)
    assert os.path.basename(text) == text
    assert not text.startswith(".")
    assert not set(text) & set("\\:\0\n\r")
    assert len(os.fsencode(text)) <= 255


@given(st.text() | st.lists(PIECES).map("".join))
def test_what_is_read_as_ours_is_written_the_same_way(text: str) -> None:
    """A file has one name: no second spelling of it is taken for it."""
    name = parse_name(text)
    assert name is None or format_name(name) == text


@given(
    st.text(string.ascii_letters + string.digits + "_. ", min_size=1).filter(lambda t: t[0] > ".")
)
def test_ordinary_names_stand_as_they_are(app: str) -> None:
    """People find their application's name in the directory."""
    assert format_name(AppLogName(app, "worker-7")) == f"{app}-worker-7.current.log"
    assert format_name(AppLogName(app)) == f"{app}.current.log"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (AppLogName("foo", "api"), "foo-api.current.log"),
        (AppLogName("my-service", "worker-12"), "my-service-worker-12.current.log"),
        (AppLogName("foo", "worker-7", DAY), "foo-worker-7__2026-11-21.log"),
        (AppLogName("foo", "worker-7", DAY, 1), "foo-worker-7__2026-11-21.1.log"),
        (AppLogName("foo", "worker-7", DAY, 0, True), "foo-worker-7__2026-11-21.log.gz"),
        (AppLogName("foo"), "foo.current.log"),
        (AppLogName("foo", None, DAY), "foo_2026-11-21.log"),
        (AppLogName("foo-bar"), "foo%2Dbar.current.log"),
        (AppLogName("foo", "api-server"), "foo-api%2Dserver.current.log"),
        (AppLogName("x-worker", "12"), "x-worker-%312.current.log"),
        (AppLogName(".foo", "a/b"), "%2Efoo-a%2Fb.current.log"),
    ],
)
def test_the_grammar_by_example(name: AppLogName, text: str) -> None:
    """The names that the contract gives, and what would be ambiguous."""
    assert format_name(name) == text
    assert parse_name(text) == name


@given(TEXTS.filter(lambda app: app != "foo"), st.none() | TEXTS)
def test_no_other_application_has_a_file_of_foo(app: str, process: str | None) -> None:
    """`foo` is not `foo-bar`, and nothing else either."""
    name = parse_name(format_name(AppLogName(app, process)))
    assert name is not None
    assert name.app != "foo"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ".log",
            "foo.log",
            ".current.log",
            "-.current.log",
            "-x.current.log",
            "x-.current.log",
        ),
        *(
            "foo-bar_2026-11-21.log",
            "foo_2026-13-21.log",
            "foo_2026-11-21.0.log",
            "_2026-11-21.log",
        ),
        *("foo_2026-11-21.01.log", "foo.current.log.gz", ".foo.current.log", "f%6Fo.current.log"),
        *(
            "foo%.current.log",
            "foo%FF.current.log",
            "foo_2026-11-21.log.zip",
            "foo_２026-11-21.log",
        ),
        "foo.current.log\n",
    ],
)
def test_other_names_are_not_ours(text: str) -> None:
    """What this grammar does not give is left alone."""
    assert parse_name(text) is None


@pytest.mark.parametrize("app", ["x" * LONGEST, "é" * 100, "/" * 70])
def test_a_name_without_room_for_its_relatives_is_refused(app: str) -> None:
    """At the start, and not at the first midnight."""
    with pytest.raises(ValueError, match="more than 200 bytes; use shorter names"):
        format_name(AppLogName(app))


@pytest.mark.parametrize(
    "name",
    [
        AppLogName(""),
        AppLogName("foo", ""),
        AppLogName("foo", None, None, 1),
        AppLogName("foo", None, None, 0, True),
        AppLogName("foo", None, DAY, -1),
        AppLogName("foo", None, DAY, 10**9),
    ],
)
def test_what_names_no_file_is_refused(name: AppLogName) -> None:
    """Empty names, and numbers where there is no day."""
    with pytest.raises(ValueError, match=r"must not be empty|give the day|must be 0 to"):
        format_name(name)


@pytest.mark.parametrize(
    ("process", "pid"), [("worker-7", 7), ("worker-", None), ("api", None), (None, None)]
)
def test_only_a_worker_is_named_after_its_process_id(process: str | None, pid: int | None) -> None:
    """A number in another name is no process id."""
    assert AppLogName("foo", process).pid == pid
