"""Optional packages: found, or missed by the name of their extra."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foundry_log.extras import import_extra

pytestmark = pytest.mark.unit


def test_a_package_that_is_there_is_returned() -> None:
    """As `import` would."""
    assert import_extra("json", "x", "It") is json


def test_a_missing_package_names_the_extra() -> None:
    """The message is the remedy."""
    with pytest.raises(ImportError) as caught:
        import_extra("no_such_package", "demo", "foundry-log demo")
    assert str(caught.value) == (
        "foundry-log demo needs no_such_package: pip install 'foundry_log[demo]'"
    )


def test_a_broken_package_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installing it again may help; the reason surely does."""
    (tmp_path / "broken_package.py").write_text("raise ImportError('no libfoo.so')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"which fails with no libfoo\.so: pip install"):
        import_extra("broken_package", "torch", "Trainer")
