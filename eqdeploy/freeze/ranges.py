"""Search the ranges of a plan's tensors that training did not fix: the encodings that are measured, not computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from eqdeploy.calibration.measured import MeasuredRanges, Range
from eqdeploy.calibration.ranges import calibrate_encodings
from eqdeploy.plan import DevicePlan, EncodingSource, TensorPlan
from eqdeploy.quant.encoding import Encoding, are_powers_of_two
from eqdeploy.quant.form import Form, Symmetry
from eqdeploy.quant.initialize import nearest_powers_of_two
from eqdeploy.supernet.supernet import Supernet


def tensors_to_calibrate(plan: DevicePlan) -> tuple[str, ...]:
    """Tensors whose values must be sampled: those with a calibrated range, and those that share it.

    Where scales must be powers of two, trained ones may have to be rounded: up or down, as the values say.
    """
    sampled = {EncodingSource.CALIBRATED} | ({EncodingSource.TRAINED} if plan.power_of_two_scales else set())
    return tuple(
        tensor.tensor for tensor in plan.tensors if plan.tensor[tensor.shares_with or tensor.tensor].source in sampled
    )


def search_ranges(supernet: Supernet, plan: DevicePlan, samples: Mapping[str, Tensor]) -> MeasuredRanges:
    """Find the encodings with the smallest error on sampled values.

    Args:
        supernet: The supernet.
        plan: What the device wants.
        samples: Values of the tensors of :func:`tensors_to_calibrate`, shape (1, M).
    """
    pooled: dict[str, list[Tensor]] = {}
    for name in tensors_to_calibrate(plan):
        pooled.setdefault(plan.tensor[name].shares_with or name, []).append(samples[name])
    values = {owner: torch.cat(parts, dim=1) for owner, parts in pooled.items()}
    measured = {owner: values[owner] for owner in values if plan.tensor[owner].source is EncodingSource.CALIBRATED}
    forms = {owner: form for owner in measured if (form := plan.tensor[owner].device) is not None}
    found = calibrate_encodings(measured, forms)
    notes = [
        f"{name}: no calibration image excites this tensor, its scale is arbitrary"
        for name, sample in measured.items()
        if not bool(sample.any())
    ]
    if plan.power_of_two_scales:
        trained = {
            tensor.tensor: trained_encoding(supernet, tensor)
            for tensor in plan.tensors
            if tensor.source is EncodingSource.TRAINED
        }
        rounded = _with_powers_of_two(supernet, plan, {**trained, **found}, values)
        found |= rounded
        if names := [tensor.tensor for tensor in plan.tensors if tensor.tensor in trained.keys() & rounded.keys()]:
            notes.append(
                f"{len(names)} trained activation scales rounded to powers of two, from {names[0]} to {names[-1]}: "
                "the supernet is trained with free scales"
            )
    ranges = {name: Range(float(encoding.scale), int(encoding.zero_point)) for name, encoding in found.items()}
    return MeasuredRanges(ranges, tuple(notes))


def trained_encoding(supernet: Supernet, tensor: TensorPlan) -> Encoding:
    """The trained numbers of a tensor in the device's form and storage; the real grid stays the same.

    A device that wants signed symmetric b bits on a non-negative tensor gets the unsigned b − 1 bit grid: its
    integers are the non-negative half of the signed range.
    """
    form, device = tensor.trained, tensor.device
    assert form is not None  # promised by the plan
    assert device is not None
    trained = supernet.activation_quantizers()[tensor.merged_copy or tensor.tensor].encoding(form)
    if device.symmetry is Symmetry.SYMMETRIC and device.signed and not form.signed and device.bits == form.bits + 1:
        return replace(trained, q_min=device.q_min, q_max=device.q_max, bits=device.bits, signed=True)
    return trained.stored_as(signed=device.signed)


def _with_powers_of_two(
    supernet: Supernet, plan: DevicePlan, owners: Mapping[str, Encoding], values: Mapping[str, Tensor]
) -> dict[str, Encoding]:
    """Encodings whose scales had to be rounded to powers of two, with the smaller error on the values."""
    rounded: dict[str, Encoding] = {}
    for name, encoding in owners.items():
        if are_powers_of_two(encoding.scale).all():
            continue
        form = _form_to_round(supernet, plan, name)
        scale, zero_point = nearest_powers_of_two(
            values[name],
            torch.from_numpy(encoding.scale.reshape(1)),
            torch.from_numpy(encoding.zero_point.reshape(1).astype(np.float32)),
            form,
        )
        rounded[name] = replace(
            encoding,
            scale=scale.numpy().reshape(()),
            zero_point=zero_point.numpy().astype(np.int32).reshape(()),
        )
    return rounded


def _form_to_round(supernet: Supernet, plan: DevicePlan, name: str) -> Form:
    """The form whose symmetry says whether the zero-point may move along with a scale."""
    form = plan.tensor[name].device
    assert form is not None  # promised by the plan
    if supernet.network.tensor[name].non_negative:
        return replace(form, symmetry=Symmetry.SYMMETRIC)  # real zero stays where the range begins
    return form
