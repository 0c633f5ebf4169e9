"""Which arguments a model's ``forward`` takes, compared with what it is given."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.supernet.inputs import Inputs, parts

#: How to say what each input of several is.
NAMED_HINT = "name every input under preprocessing: kind: named, inputs: [{name: ..., kind: values, shape: [...]}, ...]"

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check_arguments(model: nn.Module, example_input: Inputs) -> None:
    """Refuse inputs that are not the first arguments of a model's ``forward``.

    Raises:
        UnsupportedOperationError: If ``forward`` needs more than one input and gets one, or other ones than are named.
    """
    try:
        parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    except (TypeError, ValueError):  # a signature that cannot be told: calling the model will show
        return
    known = [parameter.name for parameter in parameters if parameter.kind in _POSITIONAL]
    needed = [parameter.name for parameter in parameters if parameter.kind in _POSITIONAL and _is_needed(parameter)]
    where = type(model).__name__
    if isinstance(example_input, Tensor):
        if len(needed) > 1:
            raise UnsupportedOperationError(
                f"forward takes several inputs: {', '.join(needed)}", where=where, hint=NAMED_HINT
            )
        return
    names = list(example_input)
    if names != known[: len(names)] or len(needed) > len(names):
        raise UnsupportedOperationError(
            f"forward takes {', '.join(known)}, the inputs are {', '.join(names)}",
            where=where,
            hint="name the inputs like the arguments of forward, all that have no default, in their order",
        )


def failure_hint(model: nn.Module, inputs: Inputs) -> str | None:
    """What may help where a model fails on its inputs: ids where it looks something up; None for everything else."""
    looks_up = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in model.modules())
    if looks_up and all(part.is_floating_point() for part in parts(inputs)):
        return "an embedding reads integers: write preprocessing: {kind: tokens, shape: [...], vocabulary: ...}"
    return None


def _is_needed(parameter: inspect.Parameter) -> bool:
    """Whether an argument has no default."""
    return parameter.default is inspect.Parameter.empty
