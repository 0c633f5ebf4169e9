"""The optimizer of a phase, with one group of parameters for each role."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from eqdeploy.errors import TrainingError
from eqdeploy.quant.elastic_quantizer import ElasticQuantizer
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.training.settings import OptimizationSettings, OptimizerName, SupernetSettings

#: Key of a parameter group's factor on the learning rate.
_FACTOR = "learning_rate_factor"


def make_optimizer(supernet: Supernet, settings: OptimizationSettings) -> torch.optim.Optimizer:
    """Make the optimizer of a phase.

    Weights of layers have weight decay. Biases and BatchNorm have none. Scales and zero-points have none either
    and learning rates of their own; they take part only with :class:`SupernetSettings`.

    Args:
        supernet: The model to train.
        settings: Settings of the phase.

    Returns:
        Adam or SGD, with parameters in the model's order.
    """
    weights = [weight for _, weight in supernet.latent_weights()]
    scales, zero_points = _quantizer_parameters(supernet)
    known = {id(parameter) for parameter in (*weights, *scales, *zero_points)}
    others = [parameter for parameter in supernet.parameters() if id(parameter) not in known]
    groups: list[dict[str, object]] = [
        {"params": weights, "weight_decay": settings.weight_decay, _FACTOR: 1.0},
        {"params": others, "weight_decay": 0.0, _FACTOR: 1.0},
    ]
    if isinstance(settings, SupernetSettings):
        groups += [
            {"params": scales, "weight_decay": 0.0, _FACTOR: settings.scale_learning_rate_factor},
            {"params": zero_points, "weight_decay": 0.0, _FACTOR: settings.zero_point_learning_rate_factor},
        ]
    groups = [group for group in groups if group["params"]]
    # One kernel for all tensors instead of ten for each of the hundreds of small ones.
    if settings.optimizer is OptimizerName.SGD:
        return torch.optim.SGD(
            groups,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            foreach=True,
        )
    return torch.optim.Adam(groups, lr=settings.learning_rate, betas=settings.betas, foreach=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group, each times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[_FACTOR]


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float | None) -> None:
    """Clip every gradient element to ``[-limit, limit]``; None leaves them alone."""
    if limit is not None:
        nn.utils.clip_grad_value_(
            [parameter for group in optimizer.param_groups for parameter in group["params"]], limit
        )


def require_finite_parameters(supernet: Supernet, *, step: int) -> None:
    """Refuse to go on with damaged weights.

    Raises:
        TrainingError: If a parameter is not finite; the message names the step and the first such parameter.
    """
    name = first_not_finite(supernet)
    if name is not None:
        raise TrainingError(f"the parameter is not finite after step {step}", where=name, hint=DIVERGENCE_HINT)


def first_not_finite(supernet: Supernet) -> str | None:
    """Name of the first parameter that holds NaN or infinity, in the order of the layers; None if all are finite."""
    for name, tensor in _in_order(supernet):
        if not bool(torch.isfinite(tensor).all()):
            return name
    return None


#: What to try when a run diverges.
DIVERGENCE_HINT = "start again with a lower learning rate, or clip gradients harder"


def _in_order(supernet: Supernet) -> Iterator[tuple[str, Tensor]]:
    """Weights in network order, then everything else in the model's order."""
    for layer, weight in supernet.latent_weights():
        yield f"{layer}.weight", weight
    yield from supernet.graph_module.named_parameters()


def _quantizer_parameters(supernet: Supernet) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """All scales and all zero-points."""
    scales: list[nn.Parameter] = []
    zero_points: list[nn.Parameter] = []
    for module in supernet.modules():
        if isinstance(module, ElasticQuantizer):
            scales += module.log2_scale.values()
            zero_points += module.zero_point.values()
    return scales, zero_points
