"""Wrappers that programs put around a model, and what they leave in the names of its tensors."""

from __future__ import annotations

from torch import Tensor, nn

#: Wrappers that compute what the module in them computes, and the attribute that holds it. By name: importing the
#: class of compiled modules would import the compiler.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}

#: What wrappers, and programs that keep a model in an attribute, put before the names of its tensors.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "state_dict.")


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``nn.DataParallel``, ``torch.compile`` and their like; other models as they are."""
    while True:
        inner = getattr(model, WRAPPERS.get(type(model).__name__, ""), None)
        if not isinstance(inner, nn.Module) or not type(model).__module__.startswith("torch."):
            return model
        model = inner


def unwrapped_names(tensors: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Tensors without the prefixes that wrappers put before all of their names.

    Args:
        tensors: By name.
        expected: Names in the model; a prefix that is one there, too, stays.

    Returns:
        The same tensors under shorter names; as they are if there is nothing to strip.
    """
    named = {name.replace("._orig_mod.", "."): tensor for name, tensor in tensors.items()}
    named = named if len(named) == len(tensors) else dict(tensors)
    while named:
        prefix = next((known for known in _PREFIXES if all(name.startswith(known) for name in named)), None)
        if prefix is None or any(name.startswith(prefix) for name in expected):
            break
        named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
    return named
