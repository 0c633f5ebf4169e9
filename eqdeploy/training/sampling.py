"""Subnets of one training step: highest, random and lowest widths (the sandwich rule of EQ-Net, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch

from eqdeploy.network import NetworkDescription
from eqdeploy.subnet import SubnetConfig
from eqdeploy.training.settings import FormSampling

Value = TypeVar("Value")


class Sandwich(NamedTuple):
    """The three subnets that share one batch, in the order in which they guide each other."""

    highest: SubnetConfig
    random: SubnetConfig
    lowest: SubnetConfig


def sample_sandwich(network: NetworkDescription, generator: torch.Generator, sampling: FormSampling) -> Sandwich:
    """Draw the three subnets of one step.

    ``highest`` has the largest width everywhere, ``lowest`` the smallest, ``random`` an independent width for every
    weight and every activation. The first and the last layer, and the tensors that they read, always have the
    boundary width, because that is how they are deployed.

    Args:
        network: The network to draw for; its space gives the choices.
        generator: Source of randomness; its state advances by an amount that depends on the network and on
            ``sampling`` only.
        sampling: Whether granularity and symmetry are independent for every weight (and symmetry for every
            activation), or one for each of the three subnets.

    Returns:
        Three subnets of ``network``.
    """
    bits = network.space.bits
    return Sandwich(
        highest=sample_subnet(network, generator, bits=bits[-1:], sampling=sampling),
        random=sample_subnet(network, generator, bits=bits, sampling=sampling),
        lowest=sample_subnet(network, generator, bits=bits[:1], sampling=sampling),
    )


def sample_subnet(
    network: NetworkDescription, generator: torch.Generator, *, bits: Sequence[int], sampling: FormSampling
) -> SubnetConfig:
    """Draw one subnet whose searchable widths come from ``bits``, uniformly and independently.

    Args:
        network: The network to draw for.
        generator: Source of randomness.
        bits: Widths to choose from; each must be one of the space's.
        sampling: Whether granularity and symmetry are drawn for every layer or once.

    Returns:
        A subnet of ``network``.
    """
    space = network.space
    layers, boundary_layers = network.layers, set(network.boundary_layers)
    tensors = [tensor for tensor in network.tensors if tensor.trained]
    boundary_tensors = set(network.boundary_tensors)
    draw = _draw if sampling is FormSampling.PER_LAYER else _draw_once
    weight_bits = _draw(bits, len(layers), generator)
    granularities = draw(space.granularities, len(layers), generator)
    weight_symmetries = draw(space.symmetries, len(layers), generator)
    activation_bits = _draw(bits, len(tensors), generator)
    if sampling is FormSampling.PER_LAYER:
        activation_symmetries = _draw(space.symmetries, len(tensors), generator)
    else:
        activation_symmetries = weight_symmetries[:1] * len(tensors)
    return SubnetConfig(
        weights=network.with_owners_forms(
            {
                layer.name: space.weight_form(
                    space.boundary_bits if layer.name in boundary_layers else width, granularity, symmetry
                )
                for layer, width, granularity, symmetry in zip(
                    layers, weight_bits, granularities, weight_symmetries, strict=True
                )
            }
        ),
        activations=tuple(
            (
                tensor.name,
                space.activation_form(
                    space.boundary_bits if tensor.name in boundary_tensors else width,
                    symmetry,
                    non_negative=tensor.non_negative,
                ),
            )
            for tensor, width, symmetry in zip(tensors, activation_bits, activation_symmetries, strict=True)
        ),
    )


def _draw(choices: Sequence[Value], count: int, generator: torch.Generator) -> list[Value]:
    """Draw ``count`` of ``choices`` with replacement."""
    return [choices[index] for index in torch.randint(len(choices), (count,), generator=generator).tolist()]


def _draw_once(choices: Sequence[Value], count: int, generator: torch.Generator) -> list[Value]:
    """Draw one of ``choices`` for all."""
    return _draw(choices, 1, generator) * count
