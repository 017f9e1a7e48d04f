"""One contender's turn in a process of its own.

python -m tests.benchmarks.worker WORKLOAD CONTENDER COUNT DIRECTORY RESULT

RESULT becomes a JSON document: the figures, or `{"failed": reason}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.benchmarks.catalogue import find


def main(arguments: list[str]) -> None:
    """Measure, and leave the figures in a file: a contender may print what it likes."""
    workload, contender, count, directory, result = arguments
    try:
        figures = find(workload).measure(contender, int(count), Path(directory))
    except Exception as error:
        figures = {"failed": f"{type(error).__name__}: {error}"}
    Path(result).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
