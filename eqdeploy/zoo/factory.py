"""Models of the user's own, given on the command line as ``package.module:factory``."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from eqdeploy.errors import UsageError

#: What the user's own code may raise; SystemExit and KeyboardInterrupt pass.
_USER_CODE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
_REFERENCE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<attribute>[^\W\d]\w*(\.[^\W\d]\w*)*)")


def load_factory(reference: str) -> nn.Module:
    """Import a module, call the function in it and return the model.

    This runs the user's code, so the reference must come from the user (command line or project file), never
    from a checkpoint. Modules are looked up in the working directory first, as ``python -m`` does.

    Args:
        reference: ``package.module:factory``; the factory takes no argument and returns a ``torch.nn.Module``.

    Raises:
        UsageError: If the reference is malformed, the module or the attribute does not exist, the code fails,
            or what comes back is no module.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError("not a model factory", where=reference, hint="write package.module:factory")
    with _working_directory_importable():
        factory = _find(match["module"], match["attribute"], where=reference)
        try:
            model = factory()
        except _USER_CODE_ERRORS as error:
            raise UsageError(f"the factory raised {type(error).__name__}: {error}", where=reference) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"returned {type(model).__name__}, not a torch.nn.Module", where=reference)
    return model


def _find(module_name: str, attribute: str, *, where: str) -> Callable[[], object]:
    """Import the module and return the callable in it."""
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        own = error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}."))
        message = f"no module named {error.name!r}" if own else f"the module needs {error.name!r}, not installed"
        raise UsageError(message, where=where, hint=f"looked in {Path.cwd()} and Python's path") from error
    except _USER_CODE_ERRORS as error:
        raise UsageError(f"importing it raised {type(error).__name__}: {error}", where=where) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{module_name} has no attribute {attribute!r}", where=where)
        found = getattr(found, part)
    if isinstance(found, nn.Module) or not callable(found):
        raise UsageError(
            f"{attribute} is a {type(found).__name__}, not a function that makes a model",
            where=where,
            hint="name a function without arguments that returns a torch.nn.Module",
        )
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise UsageError(f"the factory must take no arguments: {error}", where=where) from error
    except ValueError:  # some callables written in C tell no signature: the call will show
        return found
    return found


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Put the working directory first on the import path, and take it off again."""
    directory = str(Path.cwd())
    sys.path.insert(0, directory)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(directory)
