"""The command `foundry-log`: its options, its exit codes, the demo and the demo's summary."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

import foundry_log
from foundry_log import RunDirectory
from foundry_log.cli import main
from foundry_log.training.result import TrainingResult
from foundry_log.training.summary import run_summary

with contextlib.suppress(ImportError):
    import torch  # here, since the guard of conftest.py undoes what an import in a test sets up

    torch.set_num_threads(1)

pytestmark = pytest.mark.unit

RESULT = TrainingResult(
    steps=900,
    epochs=1,
    first_loss=5.545,
    last_loss=1.5,
    eval_loss=2.0,
    eval_bits_per_byte=2.885,
    bytes_per_token=1.0,
    seconds=50.0,
    peak_memory_gb=0.4,
    device="cpu",
    checkpoint=None,
    interrupted=False,
)


class PressesCtrlC(logging.Handler):
    """A handler that sends SIGINT when the training loop starts."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.__dict__["foundry_message"] == "Starting training loop":
            signal.raise_signal(signal.SIGINT)


def run_command(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


class TestOptions:
    """What is asked of the command line alone."""

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The package's."""
        with pytest.raises(SystemExit) as caught:
            main(["--version"])
        assert caught.value.code == 0
        assert capsys.readouterr().out == f"foundry-log {foundry_log.__version__}\n"

    def test_help_names_the_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A newcomer finds the demo."""
        with pytest.raises(SystemExit):
            main(["--help"])
        assert "train a small language model" in capsys.readouterr().out

    def test_without_a_command_it_says_what_is_missing(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit code 2."""
        with pytest.raises(SystemExit) as caught:
            main([])
        assert caught.value.code == 2
        assert "COMMAND" in capsys.readouterr().err

    @pytest.mark.parametrize("steps", ["0", "-3", "many", "1.5"])
    def test_steps_are_whole_numbers(self, steps: str, capsys: pytest.CaptureFixture[str]) -> None:
        """One line says what they must be."""
        with pytest.raises(SystemExit) as caught:
            main(["demo", f"--steps={steps}"])
        assert caught.value.code == 2
        expected = f"argument --steps: {steps!r} is no whole number of 1 or more"
        assert expected in capsys.readouterr().err

    def test_it_can_be_run_as_a_module(self) -> None:
        """Where the console script is not on the path."""
        done = subprocess.run(
            [sys.executable, "-m", "foundry_log.cli", "--version"], capture_output=True, text=True
        )
        assert done.stdout == f"foundry-log {foundry_log.__version__}\n"


class TestMissingPackages:
    """Each is missed with the extra that brings it."""

    @pytest.mark.parametrize("package", ["torch", "rich"])
    def test_the_extra_is_named(self, package: str, tmp_path: Path) -> None:
        """One line, exit code 2, and no directory is made."""
        out = tmp_path / "runs"
        done = run_command(
            "import sys\n"
            f"sys.modules[{package!r}] = None\n"
            "if 'torch' not in sys.modules: sys.modules['torch'] = type(sys)('torch')\n"
            "from foundry_log.cli import main\n"
            f"sys.exit(main(['demo', '--out', {str(out)!r}]))"
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr == (
            f"foundry-log demo: error: foundry-log demo needs {package}: "
            "pip install 'foundry_log[demo]'\n"
        )
        assert not out.exists()


class TestSummary:
    """The text at the end of a run."""

    def summary(self, tmp_path: Path, result: TrainingResult = RESULT) -> str:
        """The summary of a run of 50 s."""
        timers = {"forward": {"count": 900, "mean": 0.02, "total": 18.0}}
        return run_summary(result, RunDirectory(tmp_path), timers, {})

    def test_losses_are_in_nats_and_in_bits_per_byte(self, tmp_path: Path) -> None:
        """At the start, at the end, and for the text held out."""
        text = self.summary(tmp_path)
        assert "loss at the start  5.545 nats per token, 8.000 bits per byte" in text
        assert "loss at the end    1.500 nats per token, 2.164 bits per byte" in text
        assert "held-out text      2.000 nats per token, 2.885 bits per byte" in text

    def test_time_is_shared_among_the_blocks(self, tmp_path: Path) -> None:
        """What no block has measured is there too."""
        rows = [line.split() for line in self.summary(tmp_path).splitlines()]
        assert ["forward", "18.00", "s", "36.0%", "900", "x", "20.00", "ms"] in rows
        assert ["everything", "else", "32.00", "s", "64.0%"] in rows

    def test_each_file_has_its_size(self, tmp_path: Path) -> None:
        """One that was not needed is said to be none."""
        (tmp_path / "metrics.jsonl").write_bytes(b"x" * 1500)
        (tmp_path / "checkpoints" / "step_000900").mkdir(parents=True)
        rows = [line.split()[:3] for line in self.summary(tmp_path).splitlines()]
        assert ["metrics.jsonl", "1.5", "kB"] in rows
        assert ["errors.jsonl", "no", "file"] in rows
        assert ["checkpoints/", "step_000900"] in rows

    def test_errors_are_counted_by_type(self, tmp_path: Path) -> None:
        """None is said as such."""
        assert "errors             none" in self.summary(tmp_path)
        text = run_summary(RESULT, RunDirectory(tmp_path), {}, {"OSError": 2, "ValueError": 1})
        assert "errors             2 OSError, 1 ValueError" in text

    def test_an_interrupted_run_has_one_too(self, tmp_path: Path) -> None:
        """With nothing measured yet, it says so."""
        empty = TrainingResult(
            steps=1,
            epochs=0,
            first_loss=None,
            last_loss=None,
            eval_loss=None,
            eval_bits_per_byte=None,
            bytes_per_token=None,
            seconds=0.0,
            peak_memory_gb=None,
            device="cpu",
            checkpoint=None,
            interrupted=True,
        )
        text = self.summary(tmp_path, empty)
        assert text.startswith("Training interrupted after 1 step (0 epochs completed)")
        assert "loss at the start  not measured yet" in text
        assert "memory             not measured" in text


class TestDemo:
    """The demo, a few steps of it."""

    @pytest.fixture(autouse=True)
    def needs_torch_and_rich(self) -> None:
        """Without them the demo only says so."""
        for package in ("torch", "rich"):
            pytest.importorskip(package, reason="needs the demo: pip install 'foundry_log[demo]'")

    def test_it_trains_and_says_where_everything_is(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Progress on stderr, the summary on stdout, exit code 0."""
        assert main(["demo", "--steps=12", f"--out={tmp_path}", "--device=cpu"]) == 0
        (run,) = tmp_path.iterdir()
        shown = capsys.readouterr()
        assert "step 12/12  loss " in shown.err
        assert "Training ended after 12 steps" in shown.out
        assert str(run / "output") in shown.out
        assert (run / "output" / "checkpoints" / "step_000012").is_dir()
        assert logging.getLogger(f"foundry_log.metrics.{run.name}").handlers == []

    def test_on_a_terminal_it_shows_a_bar(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """FORCE_COLOR makes rich take the pipe for one."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        assert main(["demo", "--steps=1", f"--out={tmp_path}", "--device=cpu"]) == 0
        shown = capsys.readouterr()
        assert "step 1/1" in shown.err
        assert "\u2501" in shown.err
        assert "\x1b" not in shown.out

    def test_each_run_has_a_directory_of_its_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Within one second too; nothing of one is mixed with the other's."""
        real = time.strftime
        monkeypatch.setattr(
            time, "strftime", lambda form, *at: real(form, *at) if "T" in form else "now"
        )
        for _ in range(2):
            main(["demo", "--steps=1", f"--out={tmp_path}", "--device=cpu"])
        assert sorted(run.name for run in tmp_path.iterdir()) == ["now", "now-2"]
        counts = [
            len((run / "output" / "metrics.jsonl").read_text().splitlines())
            for run in tmp_path.iterdir()
        ]
        assert counts == [1, 1]

    def test_a_device_that_is_not_there_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit code 2, and no directory is left."""
        assert main(["demo", f"--out={tmp_path}", "--device=nonsense"]) == 2
        message = capsys.readouterr().err
        assert message.startswith("foundry-log demo: error: --device='nonsense' cannot be used")
        assert message.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_an_output_that_is_a_file_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit code 2."""
        (tmp_path / "file").write_text("")
        assert main(["demo", f"--out={tmp_path / 'file'}", "--device=cpu"]) == 2
        message = capsys.readouterr().err
        assert message.startswith("foundry-log demo: error: --out=")
        assert message.count("\n") == 1

    def test_an_interrupted_run_still_has_a_summary(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit code 130, as shells have it."""
        logging.getLogger("foundry_log.training").addHandler(PressesCtrlC())
        assert main(["demo", f"--out={tmp_path}", "--device=cpu"]) == 130
        assert capsys.readouterr().out.startswith("Training interrupted after 0 steps")

    def test_an_interrupt_before_the_run_is_one_line(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """There is nothing to sum up; here it comes when the run's name is made."""
        monkeypatch.setattr(time, "strftime", lambda _: signal.raise_signal(signal.SIGINT))
        assert main(["demo", f"--out={tmp_path}", "--device=cpu"]) == 130
        assert capsys.readouterr().err == "foundry-log: interrupted\n"

    def test_a_run_that_fails_still_has_a_summary(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The error is on the console and counted; exit code 1."""
        (tmp_path / "no_sources").mkdir()
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "no_sources"))
        assert main(["demo", f"--out={tmp_path / 'runs'}", "--device=cpu"]) == 1
        shown = capsys.readouterr()
        assert "errors             1 ValueError" in shown.out
        assert "has no text" in shown.err
