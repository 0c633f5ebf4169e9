"""Why a runtime's codes differ from the reference, tensor by tensor and code by code.

Every differing code is judged where it arises: from the runtime's own codes of the tensors before it, the region up
to the next encoded tensor is evaluated again, with the reference's arithmetic and with exact real numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.validation.bounds import (
    ROUNDING_STEPS,
    RoundedBias,
    bias_rounding_steps,
    rounded_biases,
    saturated_layer,
)
from eqdeploy.validation.noise import default_floor, expected_noise
from eqdeploy.validation.reference.exact import (
    ExactCodes,
    ExactIntegerSums,
    ExactNumbers,
    ExactValue,
    estimate,
)
from eqdeploy.validation.reference.graph import Graph, Walk
from eqdeploy.validation.reference.integer import IntegerReference
from eqdeploy.validation.reference.runtime_kernels import table_softmax_codes
from eqdeploy.validation.rounding import RoundingNoise

#: How near to half-way, in steps of the scale, counts as exactly half-way.
TIE_TOLERANCE = 1e-12


class Kind(StrEnum):
    """Why a code differs."""

    #: The exact number lies half-way between two codes; kernels that add the zero-point first round the other way.
    TIE = "tie"
    #: The exact number lies so near to half-way that float32 arithmetic may give either code.
    FLOAT_ROUNDING = "float_rounding"
    #: The runtime rounded a float bias to int32 when it fused the layer.
    RUNTIME_BIAS_ROUNDING = "runtime_bias_rounding"
    #: The runtime saturated a float bias that int32 cannot hold: the level fails.
    RUNTIME_BIAS_SATURATION = "runtime_bias_saturation"
    #: The runtime's table-based Softmax divides by ``floor(1 / scale)``.
    RUNTIME_SOFTMAX = "runtime_softmax"
    #: The codes before it differ already; from these, the code is right.
    PROPAGATED = "propagated"
    #: None of these.
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class TensorDifferences:
    """Differing codes of one tensor.

    Attributes:
        codes: Number of codes compared.
        differing: Number of codes that differ from the reference.
        kinds: Differing codes by kind; kinds that do not occur are left out.
        max_lsb: Largest difference of two codes.
        steps: Largest difference of two codes by kind.
        squares: Sum of the squares of all differences.
        allowed: What the sum of squares may be.
    """

    codes: int
    differing: int
    kinds: dict[Kind, int]
    max_lsb: int
    steps: dict[Kind, int] = field(default_factory=dict)
    squares: float = 0.0
    allowed: float = 0.0

    @property
    def is_excessive(self) -> bool:
        """Whether the differences together are larger than what is accepted."""
        return self.squares > self.allowed

    def plus(self, other: TensorDifferences) -> TensorDifferences:
        """Differences of both."""
        kinds = {kind: self.kinds.get(kind, 0) + other.kinds.get(kind, 0) for kind in Kind}
        return TensorDifferences(
            codes=self.codes + other.codes,
            differing=self.differing + other.differing,
            kinds={kind: count for kind, count in kinds.items() if count},
            max_lsb=max(self.max_lsb, other.max_lsb),
            steps={kind: max(self.steps.get(kind, 0), other.steps.get(kind, 0)) for kind in Kind if kinds[kind]},
            squares=self.squares + other.squares,
            allowed=self.allowed + other.allowed,
        )


class Examiner:
    """Explains differences between the codes of a runtime and those of the reference.

    Args:
        reference: The reference.
    """

    def __init__(self, reference: IntegerReference) -> None:
        self.reference = reference
        self._graph = reference.graph
        self._biases = rounded_biases(self._graph)
        noise = expected_noise(self._graph)
        self._accepted = {name: 10 ** (-default_floor(value) / 10) for name, value in noise.items()}
        self._exact: Walk[ExactValue] = Walk(self._graph, ExactNumbers())
        self._integer: Walk[ExactValue] = Walk(self._graph, ExactIntegerSums())

    def compare(
        self,
        images: NDArray[Any],
        expected: Mapping[str, NDArray[Any]],
        observed: Mapping[str, NDArray[Any]],
        float_operations: Collection[str],
    ) -> dict[str, TensorDifferences]:
        """Compare the codes of one batch.

        Args:
            images: The images.
            expected: Codes of the reference by tensor name.
            observed: Codes of the runtime by tensor name.
            float_operations: Names of the operations that the runtime computes in float; the others must add
                integers exactly.

        Returns:
            One entry for every encoded tensor, in order of execution.
        """
        differs = {name: expected[name] != observed[name] for name in self._graph.encodings}
        wrong = [name for name, mask in differs.items() if mask.any()]
        local = self.reference.follow(images, observed).codes if wrong else {}
        results = {}
        for name, mask in differs.items():
            found = TensorDifferences(int(mask.size), 0, {}, 0, allowed=self._allowed(name, expected[name]))
            if name in wrong:
                is_float = any(operation.name in float_operations for operation in self._graph.region(name))
                batch = _Batch(images, observed, self._exact if is_float else self._integer)
                distance = np.abs(expected[name].astype(np.int32) - observed[name].astype(np.int32))
                kinds, steps = self._kinds(name, mask, distance, local[name], batch)
                found = replace(
                    found,
                    differing=int(mask.sum()),
                    kinds=kinds,
                    max_lsb=int(distance.max()),
                    steps=steps,
                    squares=float(np.square(distance.astype(np.float64)).sum()),
                )
            results[name] = found
        return self._with_rounding_noise(results, images, expected)

    def _allowed(self, name: str, expected: NDArray[Any]) -> float:
        """What the squares of explained differences may add up to in any case.

        Either as if every code were moved by the one step that rounding may move it, or what would be accepted as
        its distance from float.
        """
        steps = expected.astype(np.float32).ravel() - np.float32(self._graph.encodings[name].zero_point)
        return max(float(np.dot(steps, steps)) * self._accepted[name], float(expected.size))

    def _with_rounding_noise(
        self, found: dict[str, TensorDifferences], images: NDArray[Any], expected: Mapping[str, NDArray[Any]]
    ) -> dict[str, TensorDifferences]:
        """Allow as much as rounding itself amounts to, where the layers between have made differences larger.

        A network that amplifies a difference amplifies what its own rounding does as well. It is computed only if a
        tensor exceeds the other bounds: it takes another pass.
        """
        if not any(differences.is_excessive for differences in found.values()):
            return found
        noise = self._rounding_noise.squares(images, expected)
        return {
            name: replace(differences, allowed=max(differences.allowed, noise[name]))
            for name, differences in found.items()
        }

    def saturated_layer(self, name: str) -> str | None:
        """Layer and channels before a tensor whose float bias the runtime saturates, None if there is none."""
        return saturated_layer(self._graph, name, self._biases)

    def output_is_explained(
        self,
        images: NDArray[Any],
        name: str,
        observed: Mapping[str, NDArray[Any]],
        output: NDArray[Any],
    ) -> bool:
        """Whether an output of the network is what the runtime's own codes give.

        Args:
            images: The images.
            name: Name of the output.
            observed: Codes of the runtime, of every encoded tensor.
            output: What the runtime returned: dequantized codes if the output is encoded, else anything that
                float32 arithmetic may give.
        """
        if name in self._graph.encodings:
            return bool(np.array_equal(output, self._graph.encodings[name].dequantize(observed[name])))
        known = _known(self._graph, name, observed)
        for walk in [self._exact] if self._rounded is None else [self._exact, self._rounded_exact]:
            exact = estimate(walk.run(images, _never, known=known, targets=[name])[name])
            reach = exact.error + np.finfo(np.float32).tiny
            if output.shape == exact.value.shape and bool(np.all(np.abs(output - exact.value) <= reach)):
                return True
        return False

    def _kinds(
        self, name: str, differs: NDArray[np.bool_], distance: NDArray[np.int32], local: NDArray[Any], batch: _Batch
    ) -> tuple[dict[Kind, int], dict[Kind, int]]:
        """Count the differing codes of one tensor by kind, and how far each kind moved one."""
        arises = differs & (batch.observed[name] != local)
        counts = {Kind.PROPAGATED: int(differs.sum() - arises.sum())}
        steps = {Kind.PROPAGATED: int(distance[differs & ~arises].max(initial=0))}
        if arises.any():
            left = arises
            if batch.is_separable((name, *self._graph.region_inputs(name))):
                rows = np.flatnonzero(arises.reshape(len(arises), -1).any(axis=1))
                left, local, batch = arises[rows], local[rows], batch.only(rows)
            moved = np.abs(batch.observed[name].astype(np.int32) - local.astype(np.int32))
            for kind, mask, most in self._explanations(name, batch, local):
                explained = left & mask if most is None else left & mask & (moved <= most)
                counts[kind], steps[kind] = int(explained.sum()), int(moved[explained].max(initial=0))
                left &= ~explained
                if not left.any():
                    break
            counts[Kind.UNEXPLAINED], steps[Kind.UNEXPLAINED] = int(left.sum()), int(moved[left].max(initial=0))
        found = [kind for kind, count in counts.items() if count]
        return {kind: counts[kind] for kind in found}, {kind: steps[kind] for kind in found}

    def _explanations(
        self, name: str, batch: _Batch, local: NDArray[Any]
    ) -> Iterator[tuple[Kind, NDArray[np.bool_], int | None]]:
        """Possible explanations, each with the codes that it explains and the steps by which it can move one."""
        runtime = batch.observed[name]
        exact = _exact_codes(batch.walk, name, batch)
        low, high = exact.lowest(), exact.highest()
        plausible = (low <= runtime) & (runtime <= high) & (low <= local) & (local <= high)
        yield Kind.TIE, plausible & exact.is_tie(TIE_TOLERANCE), ROUNDING_STEPS
        yield Kind.FLOAT_ROUNDING, plausible, ROUNDING_STEPS
        if self._rounded is not None and self._has_float_bias(name):
            rounded = _exact_codes(self._rounded_exact, name, batch)
            right = (rounded.lowest() <= runtime) & (runtime <= rounded.highest())
            yield Kind.RUNTIME_BIAS_ROUNDING, right, bias_rounding_steps(self._graph, name, self._biases)
            if self.saturated_layer(name) is not None:
                yield Kind.RUNTIME_BIAS_SATURATION, right, None
        softmax = table_softmax_codes(self._graph, name, batch.observed)
        if softmax is not None:
            # p·⌊1/s⌋ and p/s are less than one step apart for p ≤ 1.
            yield Kind.RUNTIME_SOFTMAX, softmax == runtime, ROUNDING_STEPS

    def _has_float_bias(self, name: str) -> bool:
        """Whether the region of a tensor has a bias that the runtime may round."""
        assert self._rounded is not None
        changed = self._rounded.graph.model.parameters.keys() - self._graph.model.parameters.keys()
        return any(changed.intersection(operation.inputs) for operation in self._graph.region(name))

    @cached_property
    def _rounding_noise(self) -> RoundingNoise:
        return RoundingNoise(self._graph.model)

    @cached_property
    def _rounded(self) -> IntegerReference | None:
        """The same network with float biases rounded like ONNX Runtime does, None if it has none."""
        model = with_rounded_biases(self._graph, self._biases)
        return None if model is None else IntegerReference(model)

    @cached_property
    def _rounded_exact(self) -> Walk[ExactValue]:
        assert self._rounded is not None
        return Walk(self._rounded.graph, ExactNumbers())


@dataclass(frozen=True, eq=False)
class _Batch:
    """Some images, the runtime's codes for them, and the exact arithmetic to hold them against."""

    images: NDArray[Any]
    observed: Mapping[str, NDArray[Any]]
    walk: Walk[ExactValue]

    def is_separable(self, names: Collection[str]) -> bool:
        """Whether these tensors hold one entry per image, or one for all images because no image matters to them."""
        return all(len(self.observed[name]) in (1, len(self.images)) for name in names)

    def only(self, rows: NDArray[np.intp]) -> _Batch:
        """Some of the images; tensors that are not separable are left whole."""
        images = len(self.images)
        observed = {name: codes[rows] if len(codes) == images else codes for name, codes in self.observed.items()}
        return _Batch(self.images[rows], observed, self.walk)


def with_rounded_biases(graph: Graph, biases: Mapping[str, RoundedBias]) -> QuantizedModel | None:
    """The network with biases as the runtime rounds them, None if it rounds none."""
    rounded = {name: bias.parameter for name, bias in biases.items()}
    return replace(graph.model, parameters={**graph.model.parameters, **rounded}) if rounded else None


def _exact_codes(walk: Walk[ExactValue], name: str, batch: _Batch) -> ExactCodes:
    """Where exact numbers lie on the grid of one tensor, from the runtime's codes of the tensors before it."""
    found: dict[str, ExactCodes] = {}
    encoding = walk.graph.encodings[name]

    def encode(tensor: str, value: ExactValue) -> NDArray[np.int32]:
        found[tensor] = ExactCodes.of(value, encoding)
        return batch.observed[tensor].astype(np.int32)

    walk.run(batch.images, encode, known=_known(walk.graph, name, batch.observed), targets=[name])
    return found[name]


def _known(graph: Graph, name: str, observed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.int32]]:
    """The codes that the region of a tensor reads."""
    return {tensor: observed[tensor].astype(np.int32) for tensor in graph.region_inputs(name)}


def _never(name: str, value: ExactValue) -> NDArray[np.int32]:
    """Stands for the quantizer where no tensor is quantized."""
    raise AssertionError(f"{name} is not to be quantized, got {type(value).__name__}")
