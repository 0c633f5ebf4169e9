"""Subnets as binary vectors, the input of the predictor (the conditions and widths of EQ-Net, Eq. 9)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import UsageError
from eqdeploy.network import NetworkDescription
from eqdeploy.quant.form import Form
from eqdeploy.subnet import SubnetConfig

if TYPE_CHECKING:
    from eqdeploy.search.space import SearchSpace

WEIGHT, ACTIVATION = "weight", "activation"

#: What of a form is encoded, each one-hot.
BITS = "bits"
_ASPECTS = (BITS, "granularity", "symmetry")


class Column(NamedTuple):
    """What a one in a place of the vector means.

    Attributes:
        role: ``"weight"`` or ``"activation"``.
        name: Layer or tensor.
        aspect: ``"bits"``, ``"granularity"`` or ``"symmetry"``.
        value: Its value.
    """

    role: str
    name: str
    aspect: str
    value: str


@dataclass(frozen=True)
class SubnetEncoding:
    """Turns subnets of a network into vectors of zeros and ones.

    For every weight the width, the granularity and the symmetry, for every trained tensor the width and the symmetry,
    each one-hot over what the supernet is trained for. What has a single choice has no column. A weight that several
    layers share has the columns of the first.

    Attributes:
        layers: Names of the layers.
        tensors: Names of the trained tensors.
        columns: What each place of the vector means.
    """

    layers: tuple[str, ...]
    tensors: tuple[str, ...]
    columns: tuple[Column, ...]

    @staticmethod
    def of(network: NetworkDescription) -> SubnetEncoding:
        """The encoding of a network's subnets."""
        space = network.space
        trained = [tensor for tensor in network.tensors if tensor.trained]
        forms: dict[tuple[str, str], tuple[Form, ...]] = {}
        forms |= {(WEIGHT, layer.name): space.weight_forms() for layer in network.weight_owners}
        forms |= {
            (ACTIVATION, tensor.name): space.activation_forms(non_negative=tensor.non_negative) for tensor in trained
        }
        columns = []
        for (role, name), choices in forms.items():
            for aspect in _ASPECTS:
                values = dict.fromkeys(str(getattr(form, aspect)) for form in choices)
                columns += [Column(role, name, aspect, value) for value in values if len(values) > 1]
        return SubnetEncoding(
            tuple(layer.name for layer in network.layers), tuple(tensor.name for tensor in trained), tuple(columns)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"layers": list(self.layers), "tensors": list(self.tensors), "columns": [list(c) for c in self.columns]}

    @property
    def digest(self) -> str:
        """SHA-256: networks whose subnets are the same have the same."""
        return hashlib.sha256(json.dumps(self.to_json(), separators=(",", ":")).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Length F of a vector."""
        return len(self.columns)

    def encode(self, subnets: Iterable[SubnetConfig]) -> NDArray[np.float32]:
        """Encode subnets.

        Returns:
            (N, F) zeros and ones.

        Raises:
            UsageError: If a subnet is of another network.
        """
        rows = list(subnets)
        features = np.zeros((len(rows), self.size), np.float32)
        for row, subnet in enumerate(rows):
            for role, forms, names in (
                (WEIGHT, subnet.weights, self.layers),
                (ACTIVATION, subnet.activations, self.tensors),
            ):
                if tuple(name for name, _ in forms) != names:
                    raise UsageError("the subnet is of another network than the predictor")
                for name, form in forms:
                    features[row, self.ones(role, name, form)] = 1.0
        return features

    def table(self, space: SearchSpace) -> ChoiceTable:
        """Prepare for encoding many vectors of choices of a search space at once.

        Raises:
            UsageError: If the space is of another network.
        """
        if SubnetEncoding.of(space.network) != self:
            raise UsageError(
                "the predictor was fitted for another network or other forms", hint="sample and fit with this supernet"
            )
        base = self.encode([space.base])[0]
        rows = []
        for gene in space.genes:
            owners = {(str(gene.role), name) for name in gene.names}
            # What a gene decides is taken out of the base, and comes back with each of its choices.
            base[[index for index, column in enumerate(self.columns) if (column.role, column.name) in owners]] = 0.0
            for forms in gene.forms:
                row = np.zeros(self.size, np.float32)
                for name, form in zip(gene.names, forms, strict=True):
                    row[self.ones(str(gene.role), name, form)] = 1.0
                rows.append(row)
        return ChoiceTable(base, np.array(rows, np.float32).reshape(-1, self.size), space.sizes)

    @cached_property
    def _positions(self) -> Mapping[Column, int]:
        """Place of every column."""
        return {column: index for index, column in enumerate(self.columns)}

    @cached_property
    def _varying(self) -> frozenset[tuple[str, str, str]]:
        """Role, name and aspect of everything that has columns."""
        return frozenset((column.role, column.name, column.aspect) for column in self.columns)

    def ones(self, role: str, name: str, form: Form) -> list[int]:
        """Places that are one for a form of a layer or tensor.

        Raises:
            UsageError: If the form is none of the encoding.
        """
        places = []
        for aspect in _ASPECTS:
            if (role, name, aspect) in self._varying:
                place = self._positions.get(Column(role, name, aspect, str(getattr(form, aspect))))
                if place is None:
                    raise UsageError(f"the predictor does not know {form.key}", where=f"subnet: {name}")
                places.append(place)
        return places


@dataclass(frozen=True, eq=False)
class ChoiceTable:
    """The vectors of a search space's subnets as sums of rows.

    Attributes:
        base: (F,) what is the same in all subnets of the space.
        rows: (S, F) what each choice of each gene adds, gene after gene; S is the sum of ``sizes``.
        sizes: (G,) number of choices of each gene.
    """

    base: NDArray[np.float32]
    rows: NDArray[np.float32]
    sizes: NDArray[np.int64]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(G,) row of the first choice of each gene."""
        offsets: NDArray[np.int64] = np.cumsum(self.sizes) - self.sizes
        return offsets

    def one_hot(self, choices: NDArray[np.int64]) -> NDArray[np.float32]:
        """(P, S) with a one for each gene's choice, from (P, G) indices of choices."""
        chosen = np.zeros((len(choices), len(self.rows)), np.float32)
        np.put_along_axis(chosen, choices + self.offsets, 1.0, axis=1)
        return chosen

    def features(self, choices: NDArray[np.int64]) -> NDArray[np.float32]:
        """(P, F) vectors of (P, G) choices: what :meth:`SubnetEncoding.encode` makes of their subnets."""
        vectors: NDArray[np.float32] = self.base + self.one_hot(choices) @ self.rows
        return vectors
