"""Functions of the user's own, given on the command line as ``package.module:function``.

Importing one runs the user's code, so a reference must come from the user (command line, or the project file where
nothing is under inspection), never from a checkpoint, a data file or an artifact.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eqdeploy.artifact_folders import enclosing_artifact
from eqdeploy.errors import EqDeployError, UsageError

#: What the user's own code may raise: anything, and it may ask to exit, which must not look like success.
#: KeyboardInterrupt passes.
USER_CODE_ERRORS = (Exception, SystemExit)
_REFERENCE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<attribute>[^\W\d]\w*(\.[^\W\d]\w*)*)")


def is_function_reference(reference: str) -> bool:
    """Whether a text has the form ``package.module:function``."""
    return _REFERENCE.fullmatch(reference) is not None


def import_attribute(reference: str) -> object:
    """Import a module and return what is called so in it.

    Args:
        reference: Of the form that :func:`is_function_reference` knows.

    Raises:
        UsageError: If the module or the attribute does not exist, or importing fails.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError("not a function of a module", where=reference, hint="write package.module:function")
    module_name, attribute = match["module"], match["attribute"]
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        own = error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}."))
        message = f"no module named {error.name!r}" if own else f"the module needs {error.name!r}, not installed"
        artifact = enclosing_artifact(Path.cwd())
        hint = (
            f"looked in {Path.cwd()} and Python's path"
            if artifact is None
            else f"looked in Python's path; nothing in the artifact {artifact} is imported"
        )
        raise UsageError(message, where=reference, hint=hint) from error
    except EqDeployError:
        raise
    except USER_CODE_ERRORS as error:
        raise UsageError(f"importing it raised {type(error).__name__}: {error}", where=reference) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{module_name} has no attribute {attribute!r}", where=reference)
        found = getattr(found, part)
    return found


def call(function: Callable[..., Any], *arguments: object, where: str, what: str) -> Any:
    """Call the user's function.

    Args:
        function: The function.
        arguments: Its arguments.
        where: Its reference.
        what: What it is, e.g. ``"the factory"``.

    Raises:
        UsageError: If it does not take the arguments, or fails.
    """
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        number = f"{len(arguments)} argument{'' if len(arguments) == 1 else 's'}" if arguments else "no arguments"
        raise UsageError(f"{what} must take {number}: {error}", where=where) from error
    except ValueError:  # some callables written in C tell no signature: the call will show
        pass
    try:
        return function(*arguments)
    except EqDeployError:
        raise
    except USER_CODE_ERRORS as error:
        raise UsageError(f"{what} raised {type(error).__name__}: {error}", where=where) from error


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Put the working directory first on the import path, as ``python -m`` does, and restore the path afterwards.

    Artifacts, and folders in them, are taken off it meanwhile: what was downloaded to be checked must not be imported,
    even under the name of a module that the user means.
    """
    before = list(sys.path)
    # An empty entry, too, is the working directory.
    sys.path[:] = [entry for entry in ("", *before) if enclosing_artifact(Path(entry)) is None]
    if sys.path[:1] == [""]:
        sys.path[0] = str(Path.cwd())
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
