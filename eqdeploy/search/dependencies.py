"""The optional packages that searching needs."""

from __future__ import annotations

import importlib

from eqdeploy.errors import MissingDependencyError


def require(package: str) -> None:
    """Check that a package of the extra ``search`` can be imported.

    Raises:
        MissingDependencyError: If it is not installed, or does not work.
    """
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise _unusable(package, error) from error
        raise MissingDependencyError(
            f"searching needs {package.partition('.')[0]}", hint="pip install 'eqdeploy[search]'"
        ) from error
    except ImportError as error:
        raise _unusable(package, error) from error


def _unusable(package: str, error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"{package} is installed but cannot be imported: {error}", hint="pip install --upgrade 'eqdeploy[search]'"
    )
