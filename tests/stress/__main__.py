"""The command: `python -m tests.stress [--seconds N] [--quick] [--contender NAME] …`."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator

from tests.stress.contenders import CONTENDERS, variants
from tests.stress.rounds import Setting, run_row
from tests.stress.table import markdown

_QUICK_KILLS, _QUICK_BYTES = 3, 1_000_000
_KILLS = 25
_FILES_A_ROUND = 150


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 where a record was not conserved, 2 if there is no contender."""
    options = _parser().parse_args(arguments)
    dice = random.Random(options.seed)
    try:
        settings = list(_settings(options))
    except ModuleNotFoundError as error:
        _report(str(error))
        return 2
    seconds = 0.0 if options.quick else options.seconds / len(settings)
    rows = [run_row(setting, seconds, dice, _report) for setting in settings]
    print(f"python -m tests.stress --seed {options.seed}: {sum(row.rounds for row in rows)} rounds")
    print()
    print(markdown(rows))
    return 0 if all(row.is_sound for row in rows) else 1


def _settings(options: argparse.Namespace) -> Iterator[Setting]:
    for contender in options.contender or ["foundry_log"]:
        for size in options.sizes:
            max_bytes = max(20_000, 4 * size)
            for names, make in variants(contender, options.names, max_bytes).items():
                yield Setting(
                    contender,
                    names,
                    make,
                    size,
                    options.processes,
                    options.threads,
                    kills=_QUICK_KILLS if options.quick else _KILLS,
                    round_bytes=_QUICK_BYTES if options.quick else _FILES_A_ROUND * max_bytes,
                )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.stress",
        description="Whether acknowledged records survive SIGKILL, in one rotating file.",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of all rows together")
    parser.add_argument("--processes", type=_positive, default=4, help="writing at a time")
    parser.add_argument("--threads", type=_positive, default=2, help="of each process")
    parser.add_argument(
        "--sizes",
        type=lambda text: [_positive(size) for size in text.split(",")],
        default=[100, 5_000, 100_000],
        metavar="BYTES,…",
        help="of the records",
    )
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    names = parser.add_mutually_exclusive_group()
    both = ("stable", "numbered")
    for flag, chosen in (("stable", both[:1]), ("numbered", both[1:]), ("both", both)):
        names.add_argument(
            f"--{flag}", dest="names", action="store_const", const=chosen, default=both
        )
    parser.add_argument(
        "--contender", choices=CONTENDERS, action="append", help="may be repeated; foundry_log"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the kills")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number


def _report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
