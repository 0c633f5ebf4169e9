"""Compare a frozen network with the supernet's subnet: statistics, encodings, weights, biases, tensors, outputs."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from eqdeploy.network import NetworkDescription
from eqdeploy.origin.checks import OriginCheck, OriginReport
from eqdeploy.origin.encodings import compare_encodings
from eqdeploy.origin.layers import layer_targets
from eqdeploy.origin.simulation import Simulation
from eqdeploy.origin.statistics import CalibrationEvidence, compare_samples, compare_statistics
from eqdeploy.origin.tensors import compare_tensors
from eqdeploy.origin.weights import compare_parameters
from eqdeploy.plan import DevicePlan
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.supernet.supernet import Supernet

#: Multiply-accumulate operations that the comparison of tensors may take for one pass: about a second of one core.
_OPERATIONS = 5e8
#: Fewest and most images on which tensors are compared; every image compares every tensor.
_FEWEST_IMAGES, _MOST_IMAGES = 2, 16


def images_to_compare(network: NetworkDescription) -> int:
    """Number of images on which tensors are compared: fewer of a large network."""
    operations = sum(layer.macs for layer in network.layers)
    return int(min(max(_OPERATIONS // max(operations, 1), _FEWEST_IMAGES), _MOST_IMAGES))


def prove_origin(
    supernet: Supernet,
    plan: DevicePlan,
    model: QuantizedModel,
    evidence: CalibrationEvidence,
    images: NDArray[Any],
) -> OriginReport:
    """Compare a frozen network with its supernet.

    Args:
        supernet: With BatchNorm calibrated for the plan's subnet; is left as it is.
        plan: What was to be frozen.
        model: What was frozen.
        evidence: What the subnet was calibrated with.
        images: Inputs on which tensors are compared, shape (N, …) or (N,) records, at least one.

    Raises:
        UnsupportedOperationError: If an operation cannot be evaluated.
    """
    statistics = compare_statistics(supernet, plan.subnet, evidence)
    return OriginReport((statistics, *prove_numbers(supernet, plan, model, evidence, images)))


def prove_numbers(
    supernet: Supernet,
    plan: DevicePlan,
    model: QuantizedModel,
    evidence: CalibrationEvidence,
    images: NDArray[Any],
) -> tuple[OriginCheck, ...]:
    """All comparisons but that of the BatchNorm statistics, which are taken as they are.

    Args:
        supernet: See :func:`prove_origin`.
        plan: What was to be frozen.
        model: What was frozen.
        evidence: Its samples were taken with these statistics.
        images: Inputs on which tensors are compared.

    Raises:
        UnsupportedOperationError: If an operation cannot be evaluated.
    """
    targets = layer_targets(supernet, plan.subnet)
    parameters = compare_parameters(model, plan, targets)
    simulation = Simulation(supernet, targets, model.activations)
    return (
        compare_samples(supernet, plan.subnet, evidence),
        compare_encodings(supernet, plan, model, evidence.samples, evidence.recorded),
        parameters.weights,
        parameters.biases,
        *compare_tensors(model, simulation, parameters.bounds, images),
    )
