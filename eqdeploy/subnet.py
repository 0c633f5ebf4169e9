"""A subnet: the form of every weight and every trained activation of a supernet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eqdeploy.errors import ProfileError
from eqdeploy.network import ElasticSpace, NetworkDescription
from eqdeploy.quant.form import Form, Granularity, Symmetry

SUBNET_SCHEMA = 1


@dataclass(frozen=True)
class SubnetConfig:
    """Forms of all layers and trained tensors, ordered and hashable.

    Attributes:
        weights: (layer name, form) in the order of the network's layers.
        activations: (tensor name, form) in the order of the network's tensors.
    """

    weights: tuple[tuple[str, Form], ...]
    activations: tuple[tuple[str, Form], ...]

    @staticmethod
    def uniform(
        network: NetworkDescription,
        *,
        weight_bits: int,
        activation_bits: int,
        granularity: Granularity,
        weight_symmetry: Symmetry,
        activation_symmetry: Symmetry,
        boundary_bits: int | None = None,
    ) -> SubnetConfig:
        """One form for the whole network; first and last layer at ``boundary_bits`` (the space's by default)."""
        space: ElasticSpace = network.space
        edge = space.boundary_bits if boundary_bits is None else boundary_bits
        layers, tensors = set(network.boundary_layers), set(network.boundary_tensors)
        return SubnetConfig(
            weights=tuple(
                (
                    layer.name,
                    space.weight_form(edge if layer.name in layers else weight_bits, granularity, weight_symmetry),
                )
                for layer in network.layers
            ),
            activations=tuple(
                (
                    tensor.name,
                    space.activation_form(
                        edge if tensor.name in tensors else activation_bits,
                        activation_symmetry,
                        non_negative=tensor.non_negative,
                    ),
                )
                for tensor in network.tensors
                if tensor.trained
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; :meth:`from_json` reads it back."""
        return {
            "schema": SUBNET_SCHEMA,
            "weights": {name: form.key for name, form in self.weights},
            "activations": {name: form.key for name, form in self.activations},
        }

    @staticmethod
    def from_json(data: object, *, where: str) -> SubnetConfig:
        """Read a subnet from parsed JSON.

        Args:
            data: The parsed document.
            where: File name for error messages.

        Raises:
            ProfileError: If the document is not a subnet of this schema.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SUBNET_SCHEMA:
            raise ProfileError(f"not a subnet file of schema {SUBNET_SCHEMA}", where=where)
        unknown = sorted(set(data) - {"schema", "weights", "activations"})
        if unknown:
            raise ProfileError(f"unknown key {unknown[0]!r}", where=where)
        return SubnetConfig(
            weights=_read_forms(data.get("weights"), where=f"{where}: weights"),
            activations=_read_forms(data.get("activations"), where=f"{where}: activations"),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, the same on every machine."""
        text = json.dumps(self.to_json(), sort_keys=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _read_forms(data: object, *, where: str) -> tuple[tuple[str, Form], ...]:
    """Read one table of forms."""
    if not isinstance(data, Mapping):
        raise ProfileError("must map names to forms", where=where)
    forms: list[tuple[str, Form]] = []
    for name, key in data.items():
        try:
            forms.append((str(name), Form.from_key(str(key))))
        except ValueError as error:
            raise ProfileError(
                str(error), where=f"{where}.{name}", hint="a form reads like '4-per_channel-symmetric-signed'"
            ) from error
    return tuple(forms)
