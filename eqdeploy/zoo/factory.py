"""Models of the user's own, given as a function or, on the command line, as ``package.module:factory``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from eqdeploy.errors import UsageError
from eqdeploy.user_code import call, import_attribute, is_function_reference, working_directory_importable
from eqdeploy.zoo.wrappers import unwrapped


def load_factory(reference: str | Callable[[], nn.Module]) -> nn.Module:
    """Call a function that makes a model; where it is given by its name, import the module that it is in.

    This runs the user's code, so the reference must come from the user (command line, project file or a call), never
    from a checkpoint or an artifact. Modules are looked up in the working directory first, as ``python -m`` does,
    unless it lies in an artifact.

    Args:
        reference: The function, or ``package.module:factory``; it takes no argument and returns a ``torch.nn.Module``.
            One that is wrapped by ``nn.DataParallel`` or ``torch.compile`` is taken out of its wrapper.

    Raises:
        UsageError: If the reference is malformed, the module or the attribute does not exist, the code fails,
            or what comes back is no module.
    """
    if not isinstance(reference, str):
        return _made_by(reference, getattr(reference, "__qualname__", "model"))
    if not is_function_reference(reference):
        raise UsageError("not a model factory", where=reference, hint="write package.module:factory")
    with working_directory_importable():
        return _made_by(import_attribute(reference), reference)


def _made_by(found: object, where: str) -> nn.Module:
    """The model that a function makes."""
    if isinstance(found, nn.Module) or not callable(found):
        raise UsageError(
            f"{where.rpartition(':')[2]} is a {type(found).__name__}, not a function that makes a model",
            where=where,
            hint="name a function without arguments that returns a torch.nn.Module",
        )
    model = call(found, where=where, what="the factory")
    if not isinstance(model, nn.Module):
        raise UsageError(f"returned {type(model).__name__}, not a torch.nn.Module", where=where)
    return unwrapped(model)
