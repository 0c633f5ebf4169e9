"""The predictor of what a subnet loses (CQAP of EQ-Net, section 3.5): an ensemble of small networks, run by numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from eqdeploy.errors import CheckpointError, UsageError
from eqdeploy.files import write_atomically
from eqdeploy.json_file import parse_json_model, refuse_repeated_tensors
from eqdeploy.quant.form import Form
from eqdeploy.search.encoding import Column, SubnetEncoding
from eqdeploy.search.genes import Role
from eqdeploy.search.measurement import Score
from eqdeploy.search.space import SearchSpace

METADATA_KEY = "eqdeploy"
_MAXIMUM_METADATA = 16 << 20

#: Cross-entropies are not taken for smaller than this: their logarithm is predicted.
_SMALLEST = 1e-12

#: Logarithms of losses, and of odds, lie between its negative and it.
_LARGEST = 100.0

#: Larger weights and biases are no predictor's: sums of their products stay finite.
_LARGEST_PARAMETER = 1e6

#: Most unknown choices that a message names.
_MOST_NAMED = 5

Floats = NDArray[np.float32]
Scalar = bool | int | float | str


class Target(StrEnum):
    """What is predicted. The loss of both is lower for better subnets.

    Attributes:
        CROSS_ENTROPY: The mean cross-entropy in nats; inside, its logarithm.
        ACCURACY: The top-1 accuracy; its loss is the share of wrong images; inside, the logarithm of their odds.
    """

    CROSS_ENTROPY = "cross_entropy"
    ACCURACY = "accuracy"

    def losses(self, scores: Sequence[Score]) -> NDArray[np.float64]:
        """What is to be predicted of some measurements, (N,)."""
        if self is Target.CROSS_ENTROPY:
            return np.array([score.cross_entropy for score in scores], np.float64)
        return np.array([1.0 - score.correct / score.images for score in scores], np.float64)

    def transformed(self, scores: Sequence[Score]) -> NDArray[np.float64]:
        """The same on the scale on which it is predicted, (N,)."""
        if self is Target.CROSS_ENTROPY:
            logarithms: NDArray[np.float64] = np.log(np.maximum(self.losses(scores), _SMALLEST))
            return logarithms
        # Half an image more on both sides: the odds of a subnet without a single error are finite, too.
        return np.array([np.log((s.images - s.correct + 0.5) / (s.correct + 0.5)) for s in scores], np.float64)

    def restored(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Losses of transformed ones."""
        exponentials: NDArray[np.float64] = np.exp(values)
        return exponentials if self is Target.CROSS_ENTROPY else exponentials / (1.0 + exponentials)

    def normalized(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Transformed values of losses, the inverse of :meth:`restored`."""
        logarithms: NDArray[np.float64] = np.log(np.maximum(losses, _SMALLEST))
        return logarithms if self is Target.CROSS_ENTROPY else logarithms - np.log1p(-np.minimum(losses, 1 - _SMALLEST))

    def slope(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """How much a loss changes with its transformed value."""
        return losses if self is Target.CROSS_ENTROPY else losses * (1.0 - losses)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is predicted of N subnets.

    Attributes:
        loss: (N,) predicted loss, lower is better.
        uncertainty: (N,) standard deviation of the ensemble's members, in the same unit.
    """

    loss: NDArray[np.float64]
    uncertainty: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictor:
    """An ensemble of multilayer perceptrons with ReLU between their layers.

    Attributes:
        encoding: Turns subnets into inputs.
        target: What is predicted.
        weights: Of each layer (E, I, O); E members, the first I is the length of the encoding, the last O is 1.
        biases: Of each layer (E, O).
        offset: Mean of the transformed targets that it was fitted to.
        scale: Their standard deviation.
        seen: (F,) which columns were one in some subnet that it was fitted to.
        provenance: What it was fitted to, for people.
    """

    encoding: SubnetEncoding
    target: Target
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    offset: float
    scale: float
    seen: NDArray[np.bool_]
    provenance: Mapping[str, Scalar]

    def predict(self, features: Floats) -> Prediction:
        """Predict from vectors of the encoding.

        Args:
            features: (N, F).
        """
        return self._prediction(self._members(features, self.weights[0], self.biases[0]))

    def on(self, space: SearchSpace) -> Callable[[NDArray[np.int64]], Prediction]:
        """Specialize to a search space: a function of vectors of choices, (P, G), that is as cheap as can be.

        Raises:
            UsageError: If the predictor was fitted for another network, or never saw a choice of the space.
        """
        table = self.encoding.table(space)
        self._require_seen(space)
        # The first layer of a sum of rows is the sum of the rows' first layers.
        first = np.matmul(table.rows, self.weights[0])
        bias = np.matmul(table.base, self.weights[0]) + self.biases[0]

        def predict(choices: NDArray[np.int64]) -> Prediction:
            return self._prediction(self._members(table.one_hot(choices), first, bias))

        return predict

    def save(self, path: Path) -> None:
        """Write a file; the same predictor gives the same bytes.

        Raises:
            OutputError: If it cannot be written.
        """
        metadata = _Metadata(
            target=self.target.value,
            layers=list(self.encoding.layers),
            tensors=list(self.encoding.tensors),
            columns=[list(column) for column in self.encoding.columns],
            offset=self.offset,
            scale=self.scale,
            provenance=dict(self.provenance),
        )
        tensors: dict[str, NDArray[Any]] = {"seen": self.seen.astype(np.uint8)}
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors |= {f"{index}.weight": weight, f"{index}.bias": bias}
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        write_atomically(path, save(contiguous, metadata={METADATA_KEY: metadata.model_dump_json()}))

    @staticmethod
    def load(path: Path) -> Predictor:
        """Read a file that :meth:`save` wrote.

        Raises:
            CheckpointError: If it is missing, damaged or something else.
        """
        if not path.is_file():
            raise CheckpointError("no such predictor", where=str(path), hint="eqdeploy fit makes one")
        try:
            with safe_open(str(path), framework="numpy") as stream:
                text = (stream.metadata() or {}).get(METADATA_KEY, "")
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"not a valid safetensors file: {error}", where=str(path)) from error
        if len(text) > _MAXIMUM_METADATA:
            raise CheckpointError("the metadata are too long", where=str(path))
        refuse_repeated_tensors(path, CheckpointError)
        metadata = parse_json_model(text, _Metadata, "a predictor", str(path), CheckpointError)
        columns = tuple(Column(*column) for column in metadata.columns)
        weights, biases, seen = _checked(tensors, len(columns), path)
        return Predictor(
            encoding=SubnetEncoding(tuple(metadata.layers), tuple(metadata.tensors), columns),
            target=Target(metadata.target),
            weights=weights,
            biases=biases,
            offset=metadata.offset,
            scale=metadata.scale,
            seen=seen,
            provenance=metadata.provenance,
        )

    def _members(self, inputs: Floats, weight: Floats, bias: Floats) -> Floats:
        """Outputs of all members, (E, N), given the first layer."""
        values: Floats = np.matmul(inputs, weight) + bias[:, None]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            values = np.matmul(np.maximum(values, 0.0), weight) + bias[:, None]
        outputs: Floats = values[:, :, 0]
        return outputs

    def _prediction(self, members: Floats) -> Prediction:
        """Turn normalized outputs of the members into losses."""
        values = np.clip(members.astype(np.float64) * self.scale + self.offset, -_LARGEST, _LARGEST)
        loss = self.target.restored(values.mean(axis=0))
        return Prediction(loss, self.target.slope(loss) * values.std(axis=0))

    def _require_seen(self, space: SearchSpace) -> None:
        """Refuse choices about which nothing is known."""
        unknown = []
        for gene in space.genes:
            for bits, forms in zip(gene.bits, gene.forms, strict=True):
                names = [(str(gene.role), name, form) for name, form in zip(gene.names, forms, strict=True)]
                if not self._has_seen(names):
                    unknown.append(f"{gene.names[0]} at {bits} bits")
        if unknown:
            raise UsageError(
                f"the predictor never saw {_listed(unknown)}",
                hint="sample more subnets, or with --forms per_layer, and fit again",
            )

    def unseen_fixed(self, space: SearchSpace) -> str | None:
        """What is the same in all subnets of a space and was in none that this was fitted to, None if nothing.

        It does not change which of them is predicted to be better, but what it costs is missing in all predictions.
        """
        searched = {(gene.role, name) for gene in space.genes for name in gene.names}
        unknown = [
            f"{name} at {form.bits} bits"
            for role, forms in ((Role.WEIGHT, space.base.weights), (Role.ACTIVATION, space.base.activations))
            for name, form in forms
            if (role, name) not in searched and not self._has_seen([(str(role), name, form)])
        ]
        return _listed(unknown) if unknown else None

    def _has_seen(self, names: Sequence[tuple[str, str, Form]]) -> bool:
        """Whether every one of some weights and tensors has had its form in some subnet that this was fitted to."""
        return all(self.seen[self.encoding.ones(*name)].all() for name in names)


def _listed(names: Sequence[str]) -> str:
    """The first of several names."""
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")


class _Metadata(BaseModel):
    """What the file says besides the tensors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    format: Literal["eqdeploy-predictor"] = "eqdeploy-predictor"
    version: Literal[1] = 1
    target: Literal["cross_entropy", "accuracy"]
    layers: list[str]
    tensors: list[str]
    columns: list[Annotated[list[str], Field(min_length=4, max_length=4)]]
    offset: Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
    scale: Annotated[float, Field(gt=0, le=_LARGEST)]
    provenance: dict[str, Scalar]


def _checked(
    tensors: dict[str, NDArray[Any]], columns: int, path: Path
) -> tuple[tuple[Floats, ...], tuple[Floats, ...], NDArray[np.bool_]]:
    """Weights and biases of the layers in order, and the columns seen."""
    depth = (len(tensors) - 1) // 2
    names = {"seen", *(f"{index}.{part}" for index in range(depth) for part in ("weight", "bias"))}
    problem = depth < 1 or set(tensors) != names or tensors["seen"].shape != (columns,)
    width = columns
    for index in range(0 if problem else depth):
        weight, bias = tensors[f"{index}.weight"], tensors[f"{index}.bias"]
        problem = problem or weight.ndim != 3 or weight.dtype != np.float32 or bias.dtype != np.float32
        problem = problem or weight.shape[1] != width or bias.shape != (weight.shape[0], weight.shape[2])
        problem = problem or weight.shape[0] != tensors["0.weight"].shape[0] or weight.shape[0] < 1
        problem = problem or not all((np.abs(part) <= _LARGEST_PARAMETER).all() for part in (weight, bias))
        if problem:
            break
        width = weight.shape[2]
    if problem or width != 1:
        raise CheckpointError("the tensors are not those of a predictor", where=str(path), hint="fit it again")
    return (
        tuple(tensors[f"{index}.weight"] for index in range(depth)),
        tuple(tensors[f"{index}.bias"] for index in range(depth)),
        tensors["seen"].astype(np.bool_),
    )
