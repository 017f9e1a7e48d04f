"""Optional packages: imported when they are needed, and missed by the name of their extra."""

from __future__ import annotations

import importlib
from types import ModuleType


def import_extra(package: str, extra: str, needed_by: str) -> ModuleType:
    """Import and return an optional package.

    Args:
        package: such as `torch`.
        extra: of this project, that brings the package.
        needed_by: what needs it, as the user calls it.

    Raises:
        ImportError: the package is missing or broken; the message says what to install.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        found = "" if isinstance(error, ModuleNotFoundError) else f", which fails with {error}"
        raise ImportError(
            f"{needed_by} needs {package}{found}: pip install 'foundry_log[{extra}]'",
            name=package,
        ) from error
