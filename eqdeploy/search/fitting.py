"""Fit the predictor and what it is compared with to measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from eqdeploy.errors import DataError
from eqdeploy.search.encoding import BITS, Column, SubnetEncoding
from eqdeploy.search.measurement import Score, SubnetMeasurement
from eqdeploy.search.predictor import Floats, Predictor, Scalar, Target
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.batches import seeded_generator

#: Strength of ridge regression on standardized features.
_RIDGE = 10.0


@dataclass(frozen=True)
class FitSettings:
    """How the ensemble is fitted. The defaults did best on subnets of digits.

    Attributes:
        members: Networks of the ensemble; they differ in their initial weights and in the order of subnets.
        hidden: Units of each hidden layer.
        epochs: Passes over the subnets.
        batch_size: Subnets of a step.
        learning_rate: Of Adam, at its highest; a cosine brings it to zero.
        weight_decay: Decoupled, on weights.
    """

    members: int = 8
    hidden: tuple[int, ...] = (128,)
    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 1.0


def total_score(measurement: SubnetMeasurement) -> Score:
    """A measurement on all images."""
    return Score(measurement.correct, measurement.images, measurement.cross_entropy)


def derived_features(encoding: SubnetEncoding) -> Floats:
    """Step sizes and their squares, to which the error of quantization is proportional, as sums of columns.

    Args:
        encoding: Its one-hot widths are summed.

    Returns:
        (F, D): for each weight and each trained tensor with several widths, a column that gives 2^−b and one that
        gives 4^−b.
    """
    owners = list(dict.fromkeys((column.role, column.name) for column in encoding.columns if column.aspect == BITS))
    matrix = np.zeros((encoding.size, 2 * len(owners)), np.float32)
    for index, column in enumerate(encoding.columns):
        if column.aspect == BITS:
            owner = owners.index((column.role, column.name))
            matrix[index, owner] = 2.0 ** -int(column.value)
            matrix[index, owner + len(owners)] = 4.0 ** -int(column.value)
    return matrix


def fit_predictor(
    encoding: SubnetEncoding,
    subnets: Sequence[SubnetConfig],
    measurements: Sequence[SubnetMeasurement],
    *,
    target: Target = Target.CROSS_ENTROPY,
    seed: int = 0,
    settings: FitSettings | None = None,
    provenance: Mapping[str, Scalar] | None = None,
) -> Predictor:
    """Fit an ensemble of multilayer perceptrons.

    Beside the columns of the encoding each member reads :func:`derived_features`. These and the normalization of
    inputs are linear, and become part of its first layer.

    Args:
        encoding: Turns subnets into inputs.
        subnets: Subnets, two at least.
        measurements: The measurement of each.
        target: What to predict.
        seed: Seed of initial weights and order; torch's global random state is left alone.
        settings: How to fit; None for the defaults.
        provenance: What to note in the predictor.

    Raises:
        DataError: If all subnets have measured the same.
    """
    settings = settings or FitSettings()
    features = encoding.encode(subnets)
    values = target.transformed([total_score(measurement) for measurement in measurements])
    offset, scale = float(values.mean()), float(values.std())
    if values.min() == values.max():
        raise DataError(f"all subnets have the same {target}", hint="there is nothing to predict")
    expand, mean, deviation = _normalization(encoding, features)
    inputs = (features @ expand - mean) / deviation
    members = _Members((inputs.shape[1], *settings.hidden, 1), settings.members, seeded_generator(seed, 0))
    normalized = torch.from_numpy(((values - offset) / scale).astype(np.float32))
    _train(members, torch.from_numpy(inputs), normalized, settings, seeded_generator(seed, 1))
    weights = [weight.detach().numpy() for weight in members.weights]
    biases = [bias.detach().numpy()[:, 0] for bias in members.biases]
    # h = ((x·E − m)/d)·W + b = x·(E·W/d) + (b − m·W/d)
    first = weights[0] / deviation[:, None]
    biases[0] = (biases[0] - mean @ first).astype(np.float32)
    weights[0] = (expand @ first).astype(np.float32)
    return Predictor(
        encoding=encoding,
        target=target,
        weights=tuple(weights),
        biases=tuple(biases),
        offset=offset,
        scale=scale,
        seen=np.asarray(features.any(axis=0), np.bool_),
        provenance=dict(provenance or {}),
    )


def fit_ridge(
    encoding: SubnetEncoding,
    subnets: Sequence[SubnetConfig],
    measurements: Sequence[SubnetMeasurement],
    others: Sequence[SubnetConfig],
    target: Target,
) -> NDArray[np.float64]:
    """Ridge regression on 2^−b of every weight and tensor, what any predictor must beat.

    Returns:
        The loss that it predicts for ``others``, (N,).
    """
    step_sizes = derived_features(encoding).astype(np.float64)
    step_sizes = step_sizes[:, : step_sizes.shape[1] // 2]
    known, new = (encoding.encode(part).astype(np.float64) @ step_sizes for part in (subnets, others))
    values = target.transformed([total_score(measurement) for measurement in measurements])
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    deviation[deviation == 0.0] = 1.0
    known, new = ((part - mean) / deviation for part in (known, new))
    slopes = np.linalg.solve(known.T @ known + _RIDGE * np.eye(known.shape[1]), known.T @ (values - values.mean()))
    return target.restored(new @ slopes + values.mean())


def untrained_baseline(encoding: SubnetEncoding, subnets: Sequence[SubnetConfig]) -> NDArray[np.float64]:
    """The mean of 2^−b over all weights and tensors with several widths, (N,): needs no measurement at all."""
    step_sizes = derived_features(encoding).astype(np.float64)
    mean: NDArray[np.float64] = (encoding.encode(subnets) @ step_sizes[:, : step_sizes.shape[1] // 2]).mean(axis=1)
    return mean


def required_subnets(columns: Sequence[Column], features: Floats) -> int:
    """Fewest subnets to fit to: two for each weight and tensor whose width varies, and never less than 40."""
    varied = {
        (column.role, column.name)
        for column, varies in zip(columns, np.ptp(features, axis=0) > 0, strict=True)
        if varies and column.aspect == BITS
    }
    return max(40, 2 * len(varied))


class _Members(nn.Module):
    """Multilayer perceptrons of one shape side by side."""

    def __init__(self, widths: Sequence[int], members: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, outputs in pairwise(widths):
            # He initialization; the last layer starts small, near the mean of the targets.
            deviation = (2.0 / inputs) ** 0.5 * (1.0 if outputs > 1 else 0.1)
            self.weights.append(nn.Parameter(deviation * torch.randn(members, inputs, outputs, generator=generator)))
            self.biases.append(nn.Parameter(torch.zeros(members, 1, outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """(E, N) outputs of (E, N, D) or (N, D) inputs."""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.matmul(functional.relu(x) if index else x, weight) + bias
        return x[..., 0]


def _normalization(encoding: SubnetEncoding, features: Floats) -> tuple[Floats, Floats, Floats]:
    """Matrix from columns to the inputs of the network, and their mean and deviation; constant ones are dropped."""
    expand = np.concatenate([np.eye(encoding.size, dtype=np.float32), derived_features(encoding)], axis=1)
    expanded = features.astype(np.float64) @ expand
    mean, deviation = expanded.mean(axis=0), expanded.std(axis=0)
    # Inputs that hardly ever vary would be blown up.
    kept = deviation > 1e-6
    return expand[:, kept], mean[kept].astype(np.float32), deviation[kept].astype(np.float32)


def _train(
    members: _Members, inputs: Tensor, values: Tensor, settings: FitSettings, generator: torch.Generator
) -> None:
    """Minimize the smooth L1 loss of each member."""
    groups = [
        {"params": list(members.weights), "weight_decay": settings.weight_decay},
        {"params": list(members.biases), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    batch = min(settings.batch_size, len(inputs))
    steps = settings.epochs * (len(inputs) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(settings.epochs):
        orders = torch.stack([torch.randperm(len(inputs), generator=generator) for _ in range(settings.members)])
        for start in range(0, len(inputs) // batch * batch, batch):
            rows = orders[:, start : start + batch]
            losses = functional.smooth_l1_loss(members(inputs[rows]), values[rows], reduction="none")
            optimizer.zero_grad()
            losses.mean(dim=1).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
