"""The search space: everything that a device lets a subnet choose, as a vector of small integers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import ProfileError
from eqdeploy.network import NetworkDescription
from eqdeploy.plan import DevicePlan
from eqdeploy.profile import DeviceProfile
from eqdeploy.quant.form import Form
from eqdeploy.resolve import resolve
from eqdeploy.search.genes import Gene, Role, find_genes
from eqdeploy.subnet import SubnetConfig

__all__ = ["Gene", "Role", "SearchSpace", "search_space"]


@dataclass(frozen=True)
class SearchSpace:
    """The subnets that a device can execute, one for every vector of choices.

    Attributes:
        profile: The device.
        network: The network.
        genes: What can be chosen, weights in the order of layers first, then activations in the order of tensors.
            Empty where the device leaves no choice.
        base: Forms of everything when each gene has the profile's default. What is no gene always has these.
    """

    profile: DeviceProfile
    network: NetworkDescription
    genes: tuple[Gene, ...]
    base: SubnetConfig

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Number of choices of each gene, shape (G,)."""
        return np.array([len(gene.bits) for gene in self.genes], np.int64)

    @cached_property
    def base_plan(self) -> DevicePlan:
        """What the device gets for :attr:`base`."""
        return resolve(self.profile, self.network, self.base)

    @property
    def subnets(self) -> int:
        """Number of different choices; 1 where there is nothing to search."""
        count = 1
        for gene in self.genes:
            count *= len(gene.bits)
        return count

    def plan(self, choices: NDArray[np.int64]) -> DevicePlan:
        """What the device gets.

        Args:
            choices: Index of the choice of every gene, shape (G,).

        Raises:
            ValueError: If the shape is another one or a choice does not exist.
        """
        return resolve(self.profile, self.network, self._given(choices))

    def subnet(self, choices: NDArray[np.int64]) -> SubnetConfig:
        """The subnet of a vector of choices; its plan has this very subnet.

        Args:
            choices: Index of the choice of every gene, shape (G,).

        Raises:
            ValueError: If the shape is another one or a choice does not exist.
        """
        return self.plan(choices).subnet

    def choices(self, subnet: SubnetConfig) -> NDArray[np.int64]:
        """The choices that give a subnet, shape (G,); the inverse of :meth:`subnet`.

        Raises:
            ProfileError: If the subnet does not fit the network or the device, or differs from the space where
                nothing can be chosen.
        """
        resolved = resolve(self.profile, self.network, subnet).subnet
        forms = {Role.WEIGHT: dict(resolved.weights), Role.ACTIVATION: dict(resolved.activations)}
        found = np.zeros(len(self.genes), np.int64)
        for index, gene in enumerate(self.genes):
            bits = forms[gene.role][gene.names[0]].bits
            trained = [choice[0].bits for choice in gene.forms]
            if bits not in trained:  # resolve() allows only what became a choice
                raise _foreign(self, gene.names[0], f"{bits} bits")
            found[index] = trained.index(bits)
        own = self.subnet(found)
        for (name, form), (_, expected) in zip(
            (*resolved.weights, *resolved.activations), (*own.weights, *own.activations), strict=True
        ):
            if form != expected:
                raise _foreign(self, name, form.key, f"searched with {expected.key}")
        return found

    def uniform(self) -> NDArray[np.int64]:
        """All uniform configurations, shape (U, G), each once.

        One width for all weights and one for all activations. A gene that lacks the width has the nearest one that
        it has, the smaller of two. Ascending by the width of weights, then of activations.
        """
        widths = [
            sorted({bits for gene in self.genes if gene.role is role for bits in gene.bits}) or [0] for role in Role
        ]
        rows: dict[tuple[int, ...], None] = {}
        for pair in itertools.product(*widths):
            width = dict(zip(Role, pair, strict=True))
            rows[tuple(_nearest(gene.bits, width[gene.role]) for gene in self.genes)] = None
        return np.array(list(rows), np.int64).reshape(len(rows), len(self.genes))

    def _given(self, choices: NDArray[np.int64]) -> SubnetConfig:
        """The chosen forms, before the device has tensors share theirs."""
        if np.shape(choices) != (len(self.genes),) or np.any(choices < 0) or np.any(choices >= self.sizes):
            raise ValueError(f"choices must hold one index for each of {len(self.genes)} genes, got {choices!r}")
        forms: Mapping[Role, dict[str, Form]] = {
            Role.WEIGHT: dict(self.base.weights),
            Role.ACTIVATION: dict(self.base.activations),
        }
        for gene, choice in zip(self.genes, choices.tolist(), strict=True):
            forms[gene.role].update(zip(gene.names, gene.forms[choice], strict=True))
        return SubnetConfig(tuple(forms[Role.WEIGHT].items()), tuple(forms[Role.ACTIVATION].items()))


def search_space(profile: DeviceProfile, network: NetworkDescription) -> SearchSpace:
    """Find out what a device lets a subnet of a network choose.

    Choices are widths. Granularity and symmetry are the first ones of the profile that the supernet is trained for.
    The first and the last layer, and the tensors that they read, keep the width that the profile gives them: a
    supernet is trained with one width there, and mean widths leave them out.

    Args:
        profile: The device. Widths that the supernet is not trained for are left out.
        network: The network and the forms that it is trained for.

    Raises:
        ProfileError: If the supernet is trained for none of a layer's or tensor's widths, or the profile cannot be
            resolved for this network.
    """
    found = find_genes(profile, network)
    space = SearchSpace(profile, network, tuple(gene for gene in found.genes if len(gene.bits) > 1), found.base)
    resolve(profile, network, space.base)  # refuses profiles that cannot be resolved
    return space


def _nearest(bits: tuple[int, ...], width: int) -> int:
    """Index of the nearest width, the smaller of two."""
    return min(range(len(bits)), key=lambda index: (abs(bits[index] - width), bits[index]))


def _foreign(space: SearchSpace, name: str, what: str, hint: str | None = None) -> ProfileError:
    return ProfileError(
        f"{what} is not in the search space of {space.profile.name}", where=f"subnet: {name}", hint=hint
    )
