"""The README tells the truth: its code runs and prints what it says, and its tests exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```)?", re.DOTALL)
BLOCKS = [(found["code"], found["output"]) for found in EXAMPLE.finditer(README)]
# Those that need servers are run by tests/integration/test_readme_service.py.
WITH_SERVERS = ("AsyncServiceBusHandler", "TokenClient")
EXAMPLES = [
    (code, output) for code, output in BLOCKS if not any(name in code for name in WITH_SERVERS)
]
VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00"), "TIME"),
    (re.compile(r'"git_hash":"(?:[0-9a-f]{40}|git_not_found)"'), '"git_hash":"HASH"'),
)


def settled(text: str) -> str:
    """Text without what differs from run to run."""
    for pattern, name in VARYING:
        text = pattern.sub(name, text)
    return text.strip("\n")


@pytest.mark.parametrize(("code", "output"), EXAMPLES, ids=[code[:40] for code, _ in EXAMPLES])
def test_an_example_prints_what_the_readme_says(
    code: str, output: str | None, tmp_path: Path
) -> None:
    """Each block of Python runs by itself in an empty directory."""
    if "Trainer" in code:
        pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
    shutil.copy(ROOT / "logging.ini", tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert "Logging error" not in done.stderr
    if output is not None:
        assert settled(done.stdout) == settled(output)


def test_every_block_of_python_is_run() -> None:
    """No block escapes the pattern that finds them."""
    assert len(BLOCKS) == README.count("```python") > 5
    assert len(EXAMPLES) == len(BLOCKS) - len(WITH_SERVERS)


def test_the_tests_that_hold_the_promises_exist() -> None:
    """A promise names a test that can be found."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?(?:::(\w+))?`", README)
    assert len(named) > 3
    for file, *names in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        for name in filter(None, names):
            assert re.search(rf"(?:class|def) {name}\b", source), f"{file} has no {name}"


def test_the_layers_of_the_readme_are_those_that_are_held() -> None:
    """Each module that the README's list of layers names is there."""
    section = README.split("names the layers and holds them:")[1].split("## Changes")[0]
    names = re.findall(r"`([a-z_]+)(/?)`", section)
    assert len(names) > 15
    for name, folder in names:
        path = ROOT / "foundry_log" / (name if folder else f"{name}.py")
        assert path.exists(), f"{path} is not there"
