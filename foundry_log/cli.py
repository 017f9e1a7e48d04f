"""The command `foundry-log`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foundry_log import __version__

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_USAGE = 2  # as argparse
_LAST_PORT = 65_535


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
        return _COMMANDS[options.command](options)
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


def _ship(options: argparse.Namespace) -> int:
    from foundry_log import ship

    try:
        return ship.ship(
            ship.ShipOptions(
                directory=Path(options.directory),
                to=options.to,
                once=options.once,
                dry_run=options.dry_run,
                everything=options.all,
                prefix=options.prefix,
                interval_s=options.interval,
                delete_after_days=options.delete_after,
                register=options.register and Path(options.register),
                workers=options.workers,
            )
        )
    except (ImportError, ship.UsageError) as error:
        print(f"foundry-log ship: error: {error}", file=sys.stderr)
        return _USAGE


def _budget_server(options: argparse.Namespace) -> int:
    from foundry_log import serve

    try:
        return serve.serve(
            serve.ServeOptions(
                host=options.host,
                port=options.port,
                tpm=options.tpm,
                rpm=options.rpm,
                lock_ttl_s=options.lock_ttl,
                token_file=options.token_file and Path(options.token_file),
                log_dir=options.log_dir and Path(options.log_dir),
            )
        )
    except (ImportError, serve.UsageError) as error:
        print(f"foundry-log budget-server: error: {error}", file=sys.stderr)
        return _USAGE


_COMMANDS = {"demo": _demo, "ship": _ship, "budget-server": _budget_server}


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
    _add_ship(commands)
    _add_budget_server(commands)
    return parser


def _add_ship(commands: Any) -> None:
    ship = commands.add_parser(
        "ship",
        help="send finished log files to a store, each once",
        description="Send the finished log files below a directory to a store, each once: rotated "
        "files 30 seconds after their last line, others ten minutes after the end of their writer. "
        "Goes on until SIGTERM or Ctrl-C, and can be killed at any time: what was sent is noted in "
        "DIR. Several may run at once.",
    )
    ship.add_argument(
        "directory", metavar="DIR", help="the files, those in its sub-directories too"
    )
    ship.add_argument(
        "--to",
        required=True,
        metavar="URL",
        help="https://<account>.blob.core.windows.net/<container>[/<prefix>] or file:///<path>; "
        "credentials come from AZURE_STORAGE_SAS_TOKEN, AZURE_STORAGE_KEY, "
        "AZURE_STORAGE_CONNECTION_STRING, or else from azure-identity",
    )
    ship.add_argument("--once", action="store_true", help="look once, send what is finished, end")
    ship.add_argument(
        "--all",
        action="store_true",
        help="with --once: do not wait for files to rest, send all that nobody has open",
    )
    ship.add_argument(
        "--dry-run", action="store_true", help="say what --once would do, and do nothing"
    )
    ship.add_argument(
        "--prefix",
        metavar="P",
        help="of the names in the store (default: the URL's, or DIR's name)",
    )
    ship.add_argument(
        "--interval",
        type=_above_zero,
        default=60.0,
        metavar="S",
        help="seconds from one look to the next (default: 60)",
    )
    ship.add_argument(
        "--delete-after",
        type=_above_zero,
        metavar="DAYS",
        help="remove rotated files that were sent and are older, once the store confirms their "
        "size and content (default: never)",
    )
    ship.add_argument(
        "--workers", type=_positive, default=4, metavar="N", help="uploads at a time (default: 4)"
    )
    ship.add_argument(
        "--register",
        metavar="FILE",
        help="where to note what was sent (default: .foundry_log_shipping.sqlite in DIR)",
    )


def _add_budget_server(commands: Any) -> None:
    server = commands.add_parser(
        "budget-server",
        help="share a budget of tokens and requests per minute among processes",
        description="Serve a budget of tokens and requests per minute over HTTP, in memory, for "
        "the clients of a model. Prints its address when it is ready. Goes on until SIGTERM or "
        "Ctrl-C, and then answers the requests that are at hand.",
    )
    server.add_argument(
        "--host",
        default="127.0.0.1",
        help="where to listen (default: 127.0.0.1, this machine alone)",
    )
    server.add_argument(
        "--port", type=_port, default=8001, help="0 for any that is free (default: 8001)"
    )
    server.add_argument(
        "--tpm",
        type=_positive,
        metavar="N",
        help="tokens per minute (default: APP_TPM_QUOTA, or 128000)",
    )
    server.add_argument(
        "--rpm",
        type=_positive,
        metavar="N",
        help="requests per minute (default: APP_RPM_QUOTA, or 250)",
    )
    server.add_argument(
        "--lock-ttl",
        type=_above_zero,
        default=300.0,
        metavar="S",
        help="seconds after which a lock that nobody settled gives its tokens back (default: 300)",
    )
    server.add_argument(
        "--token-file",
        metavar="FILE",
        help="holds the bearer token that callers have to send (default: COUNTER_APP_TOKEN; "
        "without both anybody may call)",
    )
    server.add_argument(
        "--log-dir",
        metavar="DIR",
        help="for run.log, run.jsonl, metrics.jsonl and errors.jsonl, a directory of its own "
        "(default: records go to standard error alone)",
    )


def _port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 0 to {_LAST_PORT}")
    return number


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


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
