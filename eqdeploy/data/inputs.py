"""Inputs that are no images: numbers, ids, and several inputs by name; how stored arrays become what a network reads.

Several inputs travel as one structured array with a field for each, so that row ``i`` is one sample whatever it holds.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from eqdeploy.data.preprocessing import LARGEST, Preprocessing, as_tuple, require_integer, require_number, require_tuple
from eqdeploy.errors import CheckpointError, DataError

_MAX_AXES = 5
_MAX_SIDE = 1 << 20
_MAX_VOCABULARY = 1 << 31
_MAX_INPUTS = 16

#: Key that tells the kinds apart; images, which were there first, have none.
KIND = "kind"


@dataclass(frozen=True)
class ValuePreprocessing:
    """Numbers such as time series or feature vectors: ``(value - mean) / std`` of each feature, or as they are.

    Attributes:
        shape: Shape of one sample, such as (features,), (channels, length) or (length, channels).
        mean: Mean of each feature; empty to leave the numbers alone.
        std: Standard deviation of each feature; empty exactly when ``mean`` is.
        feature_axis: Axis of a sample along which the features lie.

    Raises:
        ValueError: If a field is of the wrong type or out of range.
    """

    kind: ClassVar[str] = "values"

    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    feature_axis: int = 0

    def __post_init__(self) -> None:
        _require_shape(self.shape)
        if type(self.feature_axis) is not int or not 0 <= self.feature_axis < len(self.shape):
            axes = f"0 to {len(self.shape) - 1}"
            raise ValueError(f"feature_axis must be an axis of shape, {axes}, not {reprlib.repr(self.feature_axis)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if self.mean == () and self.std == ():
                break
            features = self.shape[self.feature_axis]
            try:
                require_tuple(name, values, features)
            except ValueError as error:
                raise ValueError(f"{error}: one for each index of feature_axis {self.feature_axis}") from error
            for value in values:
                require_number(name, value)
        if self.std and min(self.std) < 1 / LARGEST:
            raise ValueError("std must be positive")

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the network reads, with the shape of one sample."""
        return np.dtype(np.float32)

    def apply(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Normalize in float32.

        Args:
            values: (N, *shape) numbers as stored.

        Returns:
            A new float32 array of the same shape.

        Raises:
            DataError: If the values are not of this shape.
        """
        _require_fitting(values, self.shape)
        result = values.astype(np.float32)
        if self.mean:
            sizes = [-1 if axis == self.feature_axis else 1 for axis in range(len(self.shape))]
            result -= np.array(self.mean, np.float32).reshape(sizes)
            result /= np.array(self.std, np.float32).reshape(sizes)
        return result

    def example(self, count: int) -> NDArray[np.float32]:
        """``count`` samples that a network can be tried on: zeros."""
        return np.zeros((count, *self.shape), np.float32)

    def to_json(self) -> dict[str, Any]:
        """Plain data; :func:`read_preprocessing` reads it back exactly."""
        return _to_json(self)


@dataclass(frozen=True)
class TokenPreprocessing:
    """Integers that stand for something, such as words: they reach the network as int64, as they are.

    Attributes:
        shape: Shape of one sample, such as (length,).
        vocabulary: Number of different ids, which run from 0.

    Raises:
        ValueError: If a field is of the wrong type or out of range.
    """

    kind: ClassVar[str] = "tokens"

    shape: tuple[int, ...]
    vocabulary: int

    def __post_init__(self) -> None:
        _require_shape(self.shape)
        require_integer("vocabulary", self.vocabulary, _MAX_VOCABULARY)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the network reads, with the shape of one sample."""
        return np.dtype(np.int64)

    def apply(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Return the ids as int64.

        Args:
            values: (N, *shape) integers.

        Raises:
            DataError: If they are not of this shape, no integers, or one is no id of the vocabulary.
        """
        _require_fitting(values, self.shape)
        if values.dtype.kind not in "iu":
            raise DataError(f"ids are {values.dtype}", hint="store integers")
        ids = values.astype(np.int64)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary:
            raise DataError(
                f"ids run from {int(ids.min())} to {int(ids.max())}, the vocabulary from 0 to {self.vocabulary - 1}",
                hint="set vocabulary in the preprocessing to the number of rows of the embedding",
            )
        return ids

    def example(self, count: int) -> NDArray[np.int64]:
        """``count`` samples that a network can be tried on: ids spread over the vocabulary."""
        size = count * math.prod(self.shape)
        ids = np.linspace(0, self.vocabulary - 1, size).astype(np.int64)
        return ids.reshape(count, *self.shape)

    def to_json(self) -> dict[str, Any]:
        """Plain data; :func:`read_preprocessing` reads it back exactly."""
        return _to_json(self)


#: What one input of a network is.
SinglePreprocessing = Preprocessing | ValuePreprocessing | TokenPreprocessing


@dataclass(frozen=True)
class NamedPreprocessing:
    """Several inputs, by the names of the arguments of the network's ``forward``.

    Attributes:
        inputs: Name and preprocessing of each, in the order of the arguments.

    Raises:
        ValueError: If there is none, or a name is no identifier or is repeated.
    """

    kind: ClassVar[str] = "named"

    inputs: tuple[tuple[str, SinglePreprocessing], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.inputs]
        if not 1 <= len(names) <= _MAX_INPUTS or len(set(names)) != len(names):
            raise ValueError(f"inputs must hold 1 to {_MAX_INPUTS} inputs, each once")
        for name in names:
            if not name.isidentifier() or name in ("labels", "classes"):
                raise ValueError(f"inputs must be named like arguments of forward, not {reprlib.repr(name)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: none, as it is a record."""
        return ()

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the network reads: one field for each input."""
        return np.dtype([(name, part.dtype, part.shape) for name, part in self.inputs])

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        """Preprocess every input.

        Args:
            values: (N,) records with a field for each input.

        Raises:
            DataError: If a field is missing or does not fit; names it.
        """
        missing = [name for name, _ in self.inputs if name not in (values.dtype.names or ())]
        if missing:
            raise DataError("the data have no such input", where=missing[0])
        result = np.empty(len(values), self.dtype)
        for name, part in self.inputs:
            try:
                result[name] = part.apply(values[name])
            except DataError as error:
                raise DataError(f"{name}: {error.message}", where=error.where, hint=error.hint) from error
        return result

    def example(self, count: int) -> NDArray[Any]:
        """``count`` samples that a network can be tried on."""
        result = np.empty(count, self.dtype)
        for name, part in self.inputs:
            result[name] = part.example(count)
        return result

    def to_json(self) -> dict[str, Any]:
        """Plain data; :func:`read_preprocessing` reads it back exactly."""
        return {KIND: self.kind, "inputs": [{"name": name, **part.to_json()} for name, part in self.inputs]}


#: From what is stored to what a network reads.
InputPreprocessing = SinglePreprocessing | NamedPreprocessing

_KINDS: Mapping[str, type[ValuePreprocessing] | type[TokenPreprocessing]] = {
    kind.kind: kind for kind in (ValuePreprocessing, TokenPreprocessing)
}


def read_preprocessing(data: object, *, where: str) -> InputPreprocessing:
    """Read any preprocessing from parsed JSON, strictly: every key once, no other key, exact types.

    Args:
        data: The parsed value. Without a key ``kind`` it is one of images.
        where: File and key for error messages.

    Raises:
        CheckpointError: If it is not what ``to_json`` writes.
    """
    if not isinstance(data, Mapping) or KIND not in data:
        return Preprocessing.from_json(data, where=where)
    if data[KIND] == NamedPreprocessing.kind:
        return _read_named(data, where=where)
    kind = _KINDS.get(data[KIND]) if isinstance(data[KIND], str) else None
    if kind is None:
        known = ", ".join([*_KINDS, NamedPreprocessing.kind])
        raise CheckpointError(f"unknown kind {reprlib.repr(data[KIND])}", where=where, hint=f"there are {known}")
    names = [item.name for item in fields(kind)]
    wrong = sorted({str(key) for key in data} ^ {KIND, *names})
    if wrong:
        raise CheckpointError(
            f"key {reprlib.repr(wrong[0])} is unknown or missing",
            where=where,
            hint=f"the keys are {', '.join([KIND, *names])}",
        )
    try:
        return kind(**{name: as_tuple(data[name]) for name in names})
    except ValueError as error:
        raise CheckpointError(str(error), where=where) from error


def _read_named(data: Mapping[str, Any], *, where: str) -> NamedPreprocessing:
    """Read several inputs."""
    entries = data.get("inputs")
    plain = isinstance(entries, list) and all(
        isinstance(entry, Mapping) and isinstance(entry.get("name"), str) and entry.get(KIND) != NamedPreprocessing.kind
        for entry in entries
    )
    if set(data) != {KIND, "inputs"} or not plain:
        raise CheckpointError("must hold 'kind' and a list 'inputs' of named inputs", where=where)
    parts: list[tuple[str, SinglePreprocessing]] = []
    for entry in entries or []:
        rest = {key: value for key, value in entry.items() if key != "name"}
        part = read_preprocessing(rest, where=f"{where}: {entry['name']}")
        assert not isinstance(part, NamedPreprocessing)  # refused above
        parts.append((entry["name"], part))
    try:
        return NamedPreprocessing(tuple(parts))
    except ValueError as error:
        raise CheckpointError(str(error), where=where) from error


def noun_of(preprocessing: InputPreprocessing) -> str:
    """What one calls the samples: ``images``, or ``inputs`` where they are none."""
    return "images" if isinstance(preprocessing, Preprocessing) else "inputs"


def _to_json(preprocessing: ValuePreprocessing | TokenPreprocessing) -> dict[str, Any]:
    """Plain data."""
    data = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(preprocessing).items()}
    return {KIND: preprocessing.kind, **data}


def _require_shape(shape: object) -> None:
    """Refuse what is no shape of a sample."""
    if not isinstance(shape, tuple) or not 1 <= len(shape) <= _MAX_AXES:
        raise ValueError(f"shape must hold 1 to {_MAX_AXES} sizes, not {reprlib.repr(shape)}")
    for size in shape:
        require_integer("shape", size, _MAX_SIDE)


def _require_fitting(values: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Refuse samples of another shape than the network reads."""
    if values.shape[1:] != shape:
        raise DataError(
            f"inputs of shape {values.shape[1:]}, the network reads {shape}",
            hint="store them in this shape, or change shape in the preprocessing",
        )
