"""The command `foundry-log`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from foundry_log import __version__

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_USAGE = 2  # as argparse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: None for those of the process.

    Returns:
        0; 1 when the work failed; 2 for wrong usage or a missing package; 130 when interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return _demo(options)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _demo(options: argparse.Namespace) -> int:
    from foundry_log import demo

    try:
        return demo.run_demo(options.steps or demo.STEPS, options.out, options.device)
    except (ImportError, demo.UsageError) as error:
        print(f"foundry-log demo: error: {error}", file=sys.stderr)
        return _USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="foundry-log", description="Logging for training runs.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train a small language model with everything logged",
        description="Train a small language model on the sources of Python's standard library, "
        "with everything logged: about a minute on a slow core. Shows progress on standard error "
        "and ends with a summary. Ctrl-C ends it early, with its files complete.",
    )
    demo.add_argument(
        "--steps", type=_positive, metavar="N", help="steps of training (default: 900)"
    )
    demo.add_argument(
        "--out",
        default="runs",
        metavar="DIR",
        help="where the run gets a new directory, demo-<date>-<time> (default: runs)",
    )
    demo.add_argument(
        "--device",
        metavar="D",
        help="such as cpu or cuda:0 (default: a GPU where there is one, otherwise the CPU)",
    )
    return parser


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
