"""Compare the encodings of tensors with the supernet's quantizers, and calibrated ones with the samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from eqdeploy.calibration.measured import Range
from eqdeploy.network import OpKind, TensorInfo
from eqdeploy.origin.checks import Fault, OriginCheck
from eqdeploy.origin.grid import Grid, pooled_samples
from eqdeploy.plan import DevicePlan, EncodingSource, TensorPlan
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form, Symmetry
from eqdeploy.quant.initialize import minimize_error
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.supernet.supernet import Supernet

#: Calibrated scales stay inside [2^-60, 2^60].
_LARGEST_EXPONENT = 60.0
#: How much larger the error on the samples may be than that of the best power of two, for float32 sums.
_WORSE = 1.001
#: The same for a search beside a few ranges, of which the search may miss the best by a little.
_MISSED = 1.02
#: Parts of the whole range of the samples that are tried beside the search.
_PARTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2, 0.1)


def compare_encodings(
    supernet: Supernet,
    plan: DevicePlan,
    model: QuantizedModel,
    samples: Mapping[str, Tensor],
    recorded: Mapping[str, Range] | None,
) -> OriginCheck:
    """Compare the encoding of every tensor with what the plan says it comes from, bit for bit.

    A trained one has the scale and the range of the supernet's quantizer; a calibrated one those with the smallest
    error on the samples; a shared one those of its owner; a fixed one is prescribed. Only where a device needs powers
    of two is there a choice between neighbours: the one with the smaller error is right.

    Args:
        supernet: The supernet.
        plan: Where every encoding comes from.
        model: The frozen network.
        samples: Values of the tensors that were calibrated, shape (1, M).
        recorded: Ranges that calibrated tensors are to have, where they were held against the samples before; None to
            search them.
    """
    wanted = {name: _wanted(supernet, plan, plan.tensor[name], samples, recorded) for name in _owners(plan)}
    faults: list[Fault] = []
    active = dict(plan.subnet.weights)
    faults += [
        (row.layer, "the plan has another form than the subnet")
        for row in plan.weights
        if active[row.layer] != row.trained
    ]
    counts = dict.fromkeys((str(source) for source in EncodingSource), 0)
    for tensor in plan.tensors:
        held = model.activations.get(tensor.tensor)
        counts[str(tensor.source)] += 1
        if tensor.source is EncodingSource.NONE:
            if held is not None:
                faults.append((tensor.tensor, "has an encoding, the plan gives it none"))
            continue
        if held is None:
            faults.append((tensor.tensor, "has no encoding"))
            continue
        grids = wanted[
            tensor.shares_with if tensor.source is EncodingSource.SHARED and tensor.shares_with else tensor.tensor
        ]
        info = supernet.network.tensor[tensor.tensor]
        text = _fault(held.encoding, tensor, [_ended(grid, info) for grid in grids])
        faults += [(tensor.tensor, text)] if text else []
        if tensor.source is EncodingSource.CALIBRATED and not plan.power_of_two_scales:
            text = _search_fault(grids[0], tensor, pooled_samples(plan, tensor.tensor, samples), _minimum(plan))
            faults += [(tensor.tensor, text)] if text else []
        if held.float_readers != frozenset(tensor.float_readers):
            faults.append((tensor.tensor, "other operations read it in float than the plan says"))
    del counts[str(EncodingSource.NONE)]
    told = ", ".join(f"{count} {source}" for source, count in counts.items() if count)
    return OriginCheck.of("encodings", f"every encoding is the one that it comes from: {told}", faults)


def _owners(plan: DevicePlan) -> list[str]:
    """Tensors with an encoding of their own."""
    return [
        tensor.tensor
        for tensor in plan.tensors
        if tensor.source in (EncodingSource.TRAINED, EncodingSource.CALIBRATED, EncodingSource.FIXED)
    ]


def _fault(encoding: Encoding, tensor: TensorPlan, grids: list[Grid]) -> str | None:
    """What is wrong with an encoding, None if nothing is."""
    form = tensor.device
    if form is None or (encoding.bits, encoding.signed, encoding.q_min) != (form.bits, form.signed, form.q_min):
        return f"is not stored as {None if form is None else form.key}"
    found = Grid.of(encoding)
    return None if found in grids else f"is {found} instead of {' or '.join(map(str, grids))}"


def _search_fault(grid: Grid, tensor: TensorPlan, values: Tensor | None, minimum: float) -> str | None:
    """Why a calibrated grid cannot be the best one, None if it can: plain ranges must not have a smaller error.

    Calibration and this proof call the same search; here it is held against what needs none.
    """
    form = tensor.device
    assert form is not None  # promised by the plan
    assert values is not None  # calibrated tensors were sampled
    if not bool(values.any()) or grid.scale <= minimum:
        return None
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    errors = [_plain_grid(part * low, part * high, form).error(values) for part in _PARTS]
    error, best = grid.error(values), min(errors)
    if error <= _MISSED * best:
        return None
    ratio, part = error / max(best, 1e-300), _PARTS[errors.index(best)]
    return f"its mean squared error is {ratio:.3g} times that of a scale for {part:g} of the range"


def _plain_grid(low: float, high: float, form: Form) -> Grid:
    """The grid that just covers a range."""
    if form.symmetry is Symmetry.SYMMETRIC:
        scale = max(high / max(form.q_max, 1), -low / max(-form.q_min, 1), 2.0**-_LARGEST_EXPONENT)
        return Grid(scale, form.q_min, form.q_max)
    scale = max((high - low) / (form.q_max - form.q_min), 2.0**-_LARGEST_EXPONENT)
    zero_point = int(np.clip(np.rint(form.q_min - low / scale), form.q_min, form.q_max))
    return Grid(scale, form.q_min - zero_point, form.q_max - zero_point)


def _wanted(
    supernet: Supernet,
    plan: DevicePlan,
    tensor: TensorPlan,
    samples: Mapping[str, Tensor],
    recorded: Mapping[str, Range] | None,
) -> list[Grid]:
    """The grids that the encoding of an owner may have: one, or several equally good ones."""
    form = tensor.device
    assert form is not None  # promised by the plan
    if tensor.source is EncodingSource.FIXED:
        assert tensor.fixed is not None  # promised by the plan
        zero = tensor.fixed.zero_point
        return [Grid(float(np.float32(tensor.fixed.scale)), form.q_min - zero, form.q_max - zero)]
    values = pooled_samples(plan, tensor.tensor, samples)
    if tensor.source is EncodingSource.TRAINED:
        grid = _trained(supernet, tensor, form)
    elif recorded is not None:
        found = recorded[tensor.tensor]
        grid = Grid(found.scale, form.q_min - found.zero_point, form.q_max - found.zero_point)
    else:
        grid = _searched(values, form)
    grids = [grid]
    if plan.power_of_two_scales and np.frexp(grid.scale)[0] != 0.5:
        non_negative = supernet.network.tensor[tensor.tensor].non_negative
        assert values is not None  # they were sampled for this choice
        grids = _powers_of_two(grid, form, values, moves=form.symmetry is Symmetry.ASYMMETRIC and not non_negative)
    minimum = _minimum(plan)
    return [Grid(max(grid.scale, minimum), grid.lowest, grid.highest) for grid in grids]


def _searched(values: Tensor | None, form: Form) -> Grid:
    """The grid with the smallest error."""
    assert values is not None  # calibrated tensors were sampled
    scale, zero_point = (float(number[0]) for number in minimize_error(values, form))
    scale = float(np.float32(min(max(scale, 2.0**-_LARGEST_EXPONENT), 2.0**_LARGEST_EXPONENT)))
    return Grid(scale, form.q_min - int(zero_point), form.q_max - int(zero_point))


def _trained(supernet: Supernet, tensor: TensorPlan, form: Form) -> Grid:
    """The grid of the supernet's quantizer; signed storage of an unsigned grid adds steps below zero."""
    trained = tensor.trained
    assert trained is not None  # promised by the plan
    numbers = supernet.activation_quantizers()[tensor.merged_copy or tensor.tensor].numbers(trained)
    scale, zero = (float(number.detach().cpu()) for number in numbers)
    lowest, highest = trained.q_min - int(zero), trained.q_max - int(zero)
    if form.bits == trained.bits + 1 and form.signed and not trained.signed and form.symmetry is Symmetry.SYMMETRIC:
        lowest = form.q_min
    return Grid(scale, lowest, highest)


def _powers_of_two(grid: Grid, form: Form, values: Tensor, *, moves: bool) -> list[Grid]:
    """The power of two below or above with the smaller error, with the range as it was or moved along with it."""
    candidates: list[Grid] = []
    middle = (form.q_min + form.q_max) / 2
    zero = form.q_min - grid.lowest
    below = float(np.exp2(np.floor(np.log2(grid.scale))))
    for scale in (below, 2.0 * below):
        moved = int(np.clip(np.rint((zero - middle) * (grid.scale / scale) + middle), form.q_min, form.q_max))
        for offset in dict.fromkeys((zero, moved) if moves else (zero,)):
            candidates.append(Grid(scale, grid.lowest + zero - offset, grid.highest + zero - offset))
    errors = [candidate.error(values) for candidate in candidates]
    return [candidate for candidate, error in zip(candidates, errors, strict=True) if error <= _WORSE * min(errors)]


def _minimum(plan: DevicePlan) -> float:
    """Smallest float32 that the device accepts as a scale."""
    if plan.minimum_scale <= 0:
        return 0.0
    if plan.power_of_two_scales:
        return float(np.exp2(np.ceil(np.log2(plan.minimum_scale))))
    nearest = np.float32(plan.minimum_scale)
    return float(nearest if float(nearest) >= plan.minimum_scale else np.nextafter(nearest, np.float32(np.inf)))


def _ended(grid: Grid, tensor: TensorInfo) -> Grid:
    """A grid that ends where the clip before it does."""
    if tensor.op is not OpKind.CLIP or tensor.upper_bound is None:
        return grid
    steps = float(np.rint(np.float32(tensor.upper_bound) / np.float32(grid.scale)))
    return Grid(grid.scale, grid.lowest, int(max(min(grid.highest, steps), 0)))
