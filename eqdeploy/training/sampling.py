"""Subnets of one training step: highest, random and lowest widths (the sandwich rule of EQ-Net, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch

from eqdeploy.network import NetworkDescription
from eqdeploy.subnet import SubnetConfig

Value = TypeVar("Value")


class Sandwich(NamedTuple):
    """The three subnets that share one batch, in the order in which they guide each other."""

    highest: SubnetConfig
    random: SubnetConfig
    lowest: SubnetConfig


def sample_sandwich(network: NetworkDescription, generator: torch.Generator) -> Sandwich:
    """Draw the three subnets of one step.

    ``highest`` has the largest width everywhere, ``lowest`` the smallest, ``random`` an independent width for every
    weight and every activation. Granularity and symmetry are independent for every weight (and symmetry for every
    activation) in all three. The first and the last layer, and the tensors that they read, always have the
    boundary width, because that is how they are deployed.

    Args:
        network: The network to draw for; its space gives the choices.
        generator: Source of randomness; its state advances by an amount that depends on the network only.

    Returns:
        Three subnets of ``network``.
    """
    bits = network.space.bits
    return Sandwich(
        highest=sample_subnet(network, generator, bits=bits[-1:]),
        random=sample_subnet(network, generator, bits=bits),
        lowest=sample_subnet(network, generator, bits=bits[:1]),
    )


def sample_subnet(network: NetworkDescription, generator: torch.Generator, *, bits: Sequence[int]) -> SubnetConfig:
    """Draw one subnet whose searchable widths come from ``bits``, uniformly and independently.

    Args:
        network: The network to draw for.
        generator: Source of randomness.
        bits: Widths to choose from; each must be one of the space's.

    Returns:
        A subnet of ``network``.
    """
    space = network.space
    layers, boundary_layers = network.layers, set(network.boundary_layers)
    tensors = [tensor for tensor in network.tensors if tensor.trained]
    boundary_tensors = set(network.boundary_tensors)
    weight_choices = zip(
        layers,
        _draw(bits, len(layers), generator),
        _draw(space.granularities, len(layers), generator),
        _draw(space.symmetries, len(layers), generator),
        strict=True,
    )
    activation_choices = zip(
        tensors,
        _draw(bits, len(tensors), generator),
        _draw(space.symmetries, len(tensors), generator),
        strict=True,
    )
    return SubnetConfig(
        weights=tuple(
            (
                layer.name,
                space.weight_form(
                    space.boundary_bits if layer.name in boundary_layers else width, granularity, symmetry
                ),
            )
            for layer, width, granularity, symmetry in weight_choices
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
            for tensor, width, symmetry in activation_choices
        ),
    )


def _draw(choices: Sequence[Value], count: int, generator: torch.Generator) -> list[Value]:
    """Draw ``count`` of ``choices`` with replacement."""
    return [choices[index] for index in torch.randint(len(choices), (count,), generator=generator).tolist()]
