"""Device timing: what queues promise, the stand-in and CUDA, and blocks that they time."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NoReturn

import pytest

from foundry_log import PerformanceLogger, bound
from foundry_log.context import bound_fields
from foundry_log.device_timing import (
    LOOKS,
    MAX_OUTSTANDING,
    CudaQueue,
    DeviceQueue,
    ManualMark,
    ManualQueue,
    queue_of,
)
from foundry_log.performance import DeviceBlock

pytestmark = pytest.mark.unit

DEADLINE_S = 20


# --- the contract ---------------------------------------------------------------------------------


def manual() -> tuple[DeviceQueue, Callable[[], object]]:
    queue = ManualQueue()
    return queue, lambda: queue.submit(0.25)


def cuda() -> tuple[DeviceQueue, Callable[[], object]]:
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    matrix = torch.ones(4096, 4096, device="cuda")
    queue = queue_of("cuda")
    assert isinstance(queue, CudaQueue)
    return queue, lambda: [matrix @ matrix for _ in range(20)]


@pytest.fixture(params=[manual, pytest.param(cuda, marks=pytest.mark.gpu)])
def parts(request: pytest.FixtureRequest) -> tuple[DeviceQueue, Callable[[], object]]:
    """A queue, and how to give it work."""
    made: tuple[DeviceQueue, Callable[[], object]] = request.param()
    return made


class TestContract:
    def test_a_mark_is_done_once_it_has_been_waited_for(
        self, parts: tuple[DeviceQueue, Callable[[], object]]
    ) -> None:
        """And so are those before it."""
        queue, give_work = parts
        began = queue.mark()
        give_work()
        ended = queue.mark()
        ended.wait()
        assert began.is_done()
        assert ended.is_done()

    def test_a_mark_behind_work_is_not_done_at_once(
        self, parts: tuple[DeviceQueue, Callable[[], object]]
    ) -> None:
        """The program is ahead of the device."""
        queue, give_work = parts
        give_work()
        assert not queue.mark().is_done()

    def test_seconds_are_those_of_the_work_between(
        self, parts: tuple[DeviceQueue, Callable[[], object]]
    ) -> None:
        """More work takes longer; none takes next to nothing."""
        queue, give_work = parts
        give_work()
        marks = [queue.mark()]
        for amount in (0, 1, 10):
            for _ in range(amount):
                give_work()
            marks.append(queue.mark())
        marks[-1].wait()
        none, once, often = (later.seconds_since(earlier) for earlier, later in pairwise(marks))
        assert 0 <= none < once < often


# --- blocks ---------------------------------------------------------------------------------------


@pytest.fixture
def perf(performance_logger: PerformanceLogger) -> PerformanceLogger:
    return performance_logger


@pytest.fixture
def queue() -> ManualQueue:
    return ManualQueue("device:0")


def run(perf: PerformanceLogger, queue: DeviceQueue, seconds: float, name: str = "forward") -> None:
    """One block that gives the device so much work."""
    with perf.time_block(name, logging.INFO, queue):
        if isinstance(queue, ManualQueue):
            queue.submit(seconds)


class TestBlocks:
    def test_a_block_does_not_wait_for_the_device(
        self, perf: PerformanceLogger, queue: ManualQueue, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Nothing is known when it ends, so nothing is logged."""
        caplog.set_level(logging.INFO)
        for _ in range(10):
            run(perf, queue, 0.5)
        assert queue.waits == 0
        assert caplog.records == []

    def test_the_end_of_a_later_block_takes_what_the_device_has_passed(
        self, perf: PerformanceLogger, queue: ManualQueue, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its own comes when it is passed too."""
        caplog.set_level(logging.INFO)
        run(perf, queue, 0.5, "first")
        queue.work()
        run(perf, queue, 0.25, "second")
        assert caplog.messages == ["first completed in 0.5000s"]
        assert queue.waits == 0

    def test_who_asks_waits_for_the_device(
        self, perf: PerformanceLogger, queue: ManualQueue
    ) -> None:
        """Each question has all blocks that have ended."""
        questions: list[Callable[[], Any]] = [
            lambda: perf.get_timing_statistics("forward")["count"],
            lambda: len(perf.timers["forward"]),
            lambda: perf.timing_report()["forward"]["count"],
            lambda: perf.get_timing_percentiles("forward", [100]) and 4,
        ]
        for number, question in enumerate(questions, start=1):
            run(perf, queue, 0.5)
            assert question() == number
        assert queue.waits == len(questions)
        assert perf.timers["forward"] == [0.5] * 4

    def test_the_record_has_the_context_of_the_block(
        self, perf: PerformanceLogger, queue: ManualQueue, mock_logger: logging.Logger
    ) -> None:
        """Scopes that have ended since, and the device; it names the line that made it known."""
        scopes, records = [], []

        class Keeper(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                scopes.append(dict(bound_fields()))
                records.append(record)

        mock_logger.addHandler(Keeper())
        mock_logger.setLevel(logging.INFO)
        with bound(step=7):
            run(perf, queue, 0.5)
        with bound(step=8):
            perf.get_timing_statistics("forward")
        assert scopes == [{"step": 7}]
        fields = vars(records[0])
        assert (fields["timer"], fields["duration_s"]) == ("forward", 0.5)
        assert fields["device"] == "device:0"
        assert fields["funcName"] == "test_the_record_has_the_context_of_the_block"

    def test_a_block_that_raises_counts(self, perf: PerformanceLogger, queue: ManualQueue) -> None:
        """Its error goes on unchanged."""
        with pytest.raises(KeyError), perf.time_block("forward", device=queue):
            queue.submit(0.5)
            raise KeyError
        assert perf.timers["forward"] == [0.5]

    def test_blocks_nest(self, perf: PerformanceLogger, queue: ManualQueue) -> None:
        """The outer one's time includes the inner one's."""
        with perf.time_block("outer", device=queue):
            queue.submit(0.25)
            run(perf, queue, 0.5, "inner")
        assert perf.timers == {"inner": [0.5], "outer": [0.75]}

    def test_a_decorated_function_is_timed_by_its_device(
        self, perf: PerformanceLogger, queue: ManualQueue
    ) -> None:
        """Each call by a block of its own."""

        @perf.time_block("forward", device=queue)
        def forward(seconds: float) -> None:
            queue.submit(seconds)

        forward(0.5)
        forward(0.25)
        assert perf.timers["forward"] == [0.5, 0.25]

    def test_a_reset_forgets_what_is_outstanding(
        self, perf: PerformanceLogger, queue: ManualQueue
    ) -> None:
        """Blocks that had ended by then do not turn up behind it."""
        run(perf, queue, 0.5)
        perf.reset_timers()
        run(perf, queue, 0.25)
        assert perf.timers == {"forward": [0.25]}


class TestBounds:
    def test_at_the_bound_a_block_waits_for_the_oldest(
        self, perf: PerformanceLogger, queue: ManualQueue
    ) -> None:
        """Memory does not grow with a device that lags behind; nothing is lost."""
        for _ in range(MAX_OUTSTANDING):
            run(perf, queue, 0.5)
        assert queue.waits == 0
        for _ in range(10):
            run(perf, queue, 0.5)
        assert queue.waits == 10
        assert len(perf._outstanding._waiting) == MAX_OUTSTANDING
        assert perf.get_timing_statistics("forward")["count"] == MAX_OUTSTANDING + 10

    def test_a_block_takes_only_a_few(self, perf: PerformanceLogger, queue: ManualQueue) -> None:
        """No block pays for a hundred; they are taken in the end without being asked for."""
        for _ in range(100):
            run(perf, queue, 0.5)
        queue.work()
        run(perf, queue, 0)
        assert len(perf._outstanding._waiting) == 101 - LOOKS
        for _ in range(100):
            run(perf, queue, 0)
        assert len(perf._outstanding._waiting) == 0


class FailingQueue(ManualQueue):
    """Loses its device at the n-th mark."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._left = at

    def mark(self) -> Any:
        self._left -= 1
        if not self._left:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().mark()


class LyingQueue(ManualQueue):
    """Its marks cannot be asked."""

    def mark(self) -> Any:
        mark = super().mark()

        class Lost:
            def is_done(self) -> NoReturn:
                raise RuntimeError("CUDA error: unspecified launch failure")

            wait = is_done
            seconds_since = mark.seconds_since

        return Lost()


class BrokenClock(ManualQueue):
    """Between any two of its marks are these seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def mark(self) -> Any:
        class Mark(ManualMark):
            def seconds_since(mark, earlier: Any) -> float:  # noqa: N805 - the queue is `self`
                return self.seconds

        return Mark(self, self._given)


class TestFailures:
    @pytest.mark.parametrize("at", [1, 2])
    def test_a_device_that_cannot_be_marked_costs_a_duration(
        self, perf: PerformanceLogger, at: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The work itself has to say what is wrong; here it is counted, and reported once."""
        queue = FailingQueue(at)
        for _ in range(3):
            run(perf, queue, 0.5)
        queue._left = 1
        run(perf, queue, 0.5)
        assert perf.losses == {"RuntimeError": 2}
        assert perf.get_timing_statistics("forward")["count"] == 2
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert [record.getMessage() for record in warnings] == [
            "A device cannot time blocks: CUDA error: device-side assert triggered"
        ]
        assert warnings[0].filename == "test_device_timing.py"

    def test_marks_that_cannot_be_asked_cost_their_durations(
        self, perf: PerformanceLogger, queue: ManualQueue
    ) -> None:
        """Others are measured."""
        lying = LyingQueue()
        run(perf, lying, 0.5)
        run(perf, queue, 0.5)
        assert perf.timers == {"forward": [0.5]}
        assert perf.losses == {"RuntimeError": 1}

    @pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
    def test_seconds_that_are_no_time_raise_nothing(
        self, perf: PerformanceLogger, queue: ManualQueue, seconds: float
    ) -> None:
        """They are counted like those that could not be had."""
        run(perf, BrokenClock(seconds), 0.5)
        run(perf, queue, 0.5)
        assert perf.timers == {"forward": [0.5]}
        assert perf.losses == {"ValueError": 1}

    def test_an_error_on_its_way_is_not_replaced(self, perf: PerformanceLogger) -> None:
        """A failing device raises in the block already."""
        with pytest.raises(KeyError), perf.time_block("forward", device=FailingQueue(2)):
            raise KeyError


class TestThreads:
    def test_a_block_does_not_wait_for_another_threads_question(
        self, perf: PerformanceLogger
    ) -> None:
        """GIVEN: A thread that asks, and therefore waits for the device
        WHEN: A block ends meanwhile
        THEN: It does not wait, and is not lost.
        """
        waiting, may_go_on = threading.Event(), threading.Event()

        class Slow(ManualQueue):
            def mark(self) -> Any:
                mark = super().mark()

                class Waits:
                    is_done = mark.is_done
                    seconds_since = staticmethod(lambda earlier: 0.5)

                    def wait(self) -> None:
                        waiting.set()
                        assert may_go_on.wait(DEADLINE_S)

                return Waits()

        queue = Slow()
        run(perf, queue, 0.5)
        asking = threading.Thread(target=lambda: perf.timers)
        asking.start()
        assert waiting.wait(DEADLINE_S)
        run(perf, queue, 0.5)
        may_go_on.set()
        asking.join(DEADLINE_S)
        assert perf.get_timing_statistics("forward")["count"] == 2

    def test_blocks_of_many_threads_are_all_counted(self, perf: PerformanceLogger) -> None:
        """While one of them asks."""

        def work() -> None:
            own = ManualQueue()
            for number in range(300):
                run(perf, own, 0.5)
                own.work(0.4)
                if number % 50 == 0:
                    perf.get_timing_statistics("forward")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert perf.get_timing_statistics("forward")["count"] == 1200

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
    def test_a_signal_handler_may_time_and_ask(
        self, perf: PerformanceLogger, interrupted: list[int], queue: ManualQueue
    ) -> None:
        """Whatever it interrupts, each block counts once."""
        count = 0
        while len(interrupted) < 100:
            run(perf, queue, 0.5)
            count += 1
            if count % 20 == 0:
                perf.get_timing_statistics("forward")
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert perf.get_timing_statistics("forward")["count"] == count
        assert perf.get_timing_statistics("handler")["count"] == len(interrupted)

    @pytest.fixture
    def interrupted(self, perf: PerformanceLogger) -> Iterator[list[int]]:
        """The signals so far, each of which has timed a block of a queue of its own, and asked."""
        own, seen = ManualQueue(), list[int]()

        def on_alarm(number: int, frame: object) -> None:
            run(perf, own, 0.5, "handler")
            perf.get_timing_statistics("handler")
            seen.append(number)

        before = signal.signal(signal.SIGALRM, on_alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        yield seen
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_a_forked_child_has_none_of_its_parents(
        self, perf: PerformanceLogger, queue: ManualQueue
    ) -> None:
        """A device belongs to the process that has begun with it."""
        run(perf, queue, 0.5)
        child = os.fork()
        if not child:
            os._exit(len(perf.timers.get("forward", [])) + queue.waits)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert perf.timers["forward"] == [0.5]


class TestDevices:
    @pytest.mark.parametrize("device", [None, "cpu"])
    def test_the_host_is_measured_by_its_own_clock(
        self, perf: PerformanceLogger, device: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As without a device, and known when the block ends."""
        caplog.set_level(logging.INFO)
        block = perf.time_block("forward", logging.INFO, device)
        with block:
            pass
        assert not isinstance(block, DeviceBlock)
        assert len(caplog.records) == 1
        assert not hasattr(caplog.records[0], "device")

    def test_the_cpu_does_not_load_torch(self) -> None:
        """Nor does a queue of one's own."""
        code = (
            "import logging, sys; from foundry_log import PerformanceLogger\n"
            "from foundry_log.device_timing import ManualQueue\n"
            "perf = PerformanceLogger(logging.getLogger())\n"
            "with perf.time_block('a', device='cpu'), perf.time_block('b', device=ManualQueue()):\n"
            "    pass\n"
            "print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "False\n", done.stderr

    def test_a_gpu_without_torch_names_the_extra(self) -> None:
        """At the first block."""
        code = (
            "import logging, sys; sys.modules['torch'] = None\n"
            "from foundry_log import PerformanceLogger\n"
            "try: PerformanceLogger(logging.getLogger()).time_block('a', device='cuda')\n"
            "except ImportError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == (
            "time_block(device='cuda') needs torch: pip install 'foundry_log[torch]'\n"
        ), done.stderr

    @pytest.mark.parametrize(
        ("device", "message"),
        [
            ("cuda:99", r"device='cuda:99' is not there: this machine has \d+ GPUs"),
            ("gpu", "device='gpu' is no device of torch; use 'cuda:0'"),
            (1.5, "device=1.5 is no device of torch; use 'cuda:0'"),
        ],
    )
    def test_a_device_that_is_none_is_refused(
        self, perf: PerformanceLogger, device: object, message: str
    ) -> None:
        """With what was given and what is there."""
        pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
        with pytest.raises(ValueError, match=message):
            perf.time_block("forward", device=device)

    def test_torchs_devices_are_taken_too(self, perf: PerformanceLogger) -> None:
        """Those that are no GPU are the host's to measure."""
        torch = pytest.importorskip("torch", reason="needs torch: pip install 'foundry_log[torch]'")
        for name in ("cpu", "meta"):
            assert queue_of(torch.device(name)) is None
            with perf.time_block("forward", device=torch.device(name)):
                pass
        assert perf.get_timing_statistics("forward")["count"] == 2

    def test_a_name_that_is_none_is_refused_here_too(
        self, perf: PerformanceLogger, queue: ManualQueue
    ) -> None:
        """As without a device."""
        with pytest.raises(TypeError, match="needs a name"):
            perf.time_block(7, device=queue)  # type: ignore[arg-type]
