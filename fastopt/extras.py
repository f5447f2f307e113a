"""Imports of optional packages, with an error that names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """A module of an optional extra is not installed."""


def require(module_name: str, extra: str) -> ModuleType:
    """Import and return a module of an extra.

    Parameters
    ----------
    module_name : str
        ``"sklearn.datasets"``, for instance.
    extra : str
        The extra of fastopt that installs it.

    Raises
    ------
    MissingExtraError
        An ImportError that says what to install.
    """
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        package = module_name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # it is installed but broken: its own error says more
        raise MissingExtraError(f"{package} is not installed: pip install 'fastopt[{extra}]'") from error
