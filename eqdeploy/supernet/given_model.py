"""What is asked of a model before it is traced: it is the Python module itself, and each sample counts alone."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from eqdeploy.errors import UnsupportedOperationError
from eqdeploy.supernet.inputs import Inputs, batch_size, call, map_inputs
from eqdeploy.supernet.modes import evaluation_mode
from eqdeploy.supernet.shapes import tensors_in
from eqdeploy.zoo.wrappers import WRAPPERS, unwrapped

#: Largest effect of a batch's other samples, relative to the largest output: kernels round sums in another order.
_TOLERANCE = 1e-3


def refuse_opaque_modules(model: nn.Module) -> None:
    """Refuse models whose Python code is hidden.

    Raises:
        UnsupportedOperationError: If the model or a part of it is TorchScript or wrapped.
    """
    for name, module in model.named_modules():
        where = name or type(model).__name__
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedOperationError(
                "TorchScript cannot be traced", where=where, hint="pass the Python module that it was made of"
            )
        if unwrapped(module) is not module:
            attribute = WRAPPERS[type(module).__name__]
            raise UnsupportedOperationError(
                f"this part of the model is wrapped by {type(module).__name__}",
                where=where,
                hint=f"use the module in it, .{attribute}",
            )


def refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse BatchNorm that keeps no statistics: what an image gets depends on the images beside it.

    Raises:
        UnsupportedOperationError: If there is one; names it.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UnsupportedOperationError(
                "BatchNorm without running statistics: results depend on the other images of a batch",
                where=name,
                hint="set track_running_stats=True and estimate the statistics, or use GroupNorm or InstanceNorm",
            )


@torch.no_grad()
def refuse_mixed_samples(model: nn.Module, probe: Inputs, expected: list[Tensor]) -> None:
    """Refuse models that give a sample another result when other samples are beside it; devices run one at a time.

    Args:
        model: Runs on the probe.
        probe: A batch, shape (N, ...), N >= 2; several inputs by name.
        expected: What the model returns for it.

    Raises:
        UnsupportedOperationError: If results change when the floating-point values of the last sample do, or are
            random.
    """
    count = batch_size(probe)
    with evaluation_mode(model):
        found = tensors_in(call(model, map_inputs(_with_another_last, probe)))
    for before, after in zip(expected, found, strict=True):
        if before.shape[:1] != (count,) or before.shape != after.shape or not before.is_floating_point():
            continue
        largest = float(before.nan_to_num(posinf=0.0, neginf=0.0).abs().max()) if before.numel() else 0.0
        if not torch.allclose(after[:-1], before[:-1], rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True):
            _refuse_randomness(model, probe, expected)
            raise UnsupportedOperationError(
                "what the model computes for an image depends on the other images of the batch",
                where=type(model).__name__,
                hint="a device runs one image at a time; look for statistics or reshapes over the batch axis",
            )


def _refuse_randomness(model: nn.Module, probe: Inputs, expected: list[Tensor]) -> None:
    """Refuse models that give another result each time.

    Raises:
        UnsupportedOperationError: If results for the same batch differ.
    """
    with evaluation_mode(model):
        again = tensors_in(call(model, map_inputs(Tensor.clone, probe)))
    if not all(
        torch.equal(before.nan_to_num(), after.nan_to_num()) for before, after in zip(expected, again, strict=True)
    ):
        raise UnsupportedOperationError(
            "the model gives another result each time it runs",
            where=type(model).__name__,
            hint="remove what is random in evaluation mode",
        )


def _with_another_last(batch: Tensor) -> Tensor:
    """A batch whose last sample is another one; integers may be indices and stay."""
    changed = batch.clone()
    if batch.is_floating_point():
        changed[-1] = 10.0 * changed[-1] + 1.0
    return changed


def not_finite(found: Tensor, constant: Tensor | None = None) -> bool:
    """Whether a tensor holds NaN or an infinity that is not meant.

    Args:
        found: Any tensor.
        constant: What the model itself has in its place, where that is a constant: a mask may hold -inf.
    """
    if not found.is_floating_point():
        return False
    # Whatever is not finite reaches the extremes: one pass that needs no memory.
    if found.numel() and bool(torch.isfinite(torch.stack(torch.aminmax(found))).all()):
        return False
    wrong = ~torch.isfinite(found)
    if constant is not None and constant.shape == found.shape:
        wrong &= found != constant.to(found.device)
    return bool(wrong.any())


def refuse_nan_constants(graph_module: fx.GraphModule) -> None:
    """Refuse constants that hold NaN: so does everything that is computed from them.

    Raises:
        UnsupportedOperationError: Naming the constant.
    """
    for node in graph_module.graph.nodes:
        if node.op != "get_attr":
            continue
        owner, _, name = str(node.target).rpartition(".")
        constant = getattr(graph_module.get_submodule(owner), name)
        if not isinstance(constant, Tensor) or isinstance(constant, nn.Parameter) or not constant.is_floating_point():
            continue
        if bool(torch.isnan(constant).any()):
            reader = next(iter(node.users), node)
            raise UnsupportedOperationError(
                f"the constant holds NaN; {reader.name} reads it",
                where=str(node.target),
                hint="0 · ∞ is NaN: a causal mask is torch.full((n, n), -math.inf).triu(1), not ones times -inf",
            )
