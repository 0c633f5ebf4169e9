"""Words and value types that device profiles are written in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from eqdeploy.network import LAYER_KINDS, OpKind
from eqdeploy.quant.form import Granularity, Symmetry

#: Keys and list indices from the top of a mapping to a value.
KeyPath = tuple[str | int, ...]

#: Operators with more than one input tensor.
MULTI_INPUT_KINDS = frozenset({OpKind.ADD, OpKind.MUL, OpKind.CONCAT, OpKind.MATMUL})

#: Kinds of tensors that no operator of a device computes.
_NO_OPERATORS = frozenset({OpKind.INPUT, OpKind.REQUANTIZE, OpKind.OTHER})


class IntegerRange(StrEnum):
    """Whether a signed range uses its lowest value: ``full`` −2^(b−1) … 2^(b−1)−1, ``narrow`` without it."""

    FULL = "full"
    NARROW = "narrow"


class Storage(StrEnum):
    """How the device stores integers. It moves codes and zero-points by 2^(b−1) and changes nothing else."""

    SIGNED = "signed"
    UNSIGNED = "unsigned"


class ScaleConstraint(StrEnum):
    """Which scales the device can multiply by."""

    ANY = "any"
    POWER_OF_TWO = "power_of_two"


class Encode(StrEnum):
    """Which tensors carry an encoding: ``all``, or only those that a quantized operator reads."""

    ALL = "all"
    OPERATOR_INPUTS = "operator_inputs"


class ResidualAdd(StrEnum):
    """Which inputs of an addition carry an encoding: both, or only the one that skips the convolution."""

    BOTH = "both"
    SKIP_ONLY = "skip_only"


class Bias(StrEnum):
    """How the device holds a bias. Integers other than ``int32`` can be written but not yet resolved."""

    FLOAT = "float"
    INT8 = "int8"
    INT16 = "int16"
    INT20 = "int20"
    INT30 = "int30"
    INT32 = "int32"
    INT40 = "int40"
    INT64 = "int64"


class Rounding(StrEnum):
    """How the device rounds activations. Only ``half_to_even`` can be resolved yet."""

    HALF_TO_EVEN = "half_to_even"
    HALF_AWAY_FROM_ZERO = "half_away_from_zero"
    HALF_UP = "half_up"


def reject(key: KeyPath, message: str, hint: str | None = None, *, others: tuple[KeyPath, ...] = ()) -> NoReturn:
    """Reject a combination of keys.

    Args:
        key: Path of the offending key from the mapping being validated; the loader adds file and line.
        message: What is wrong.
        hint: What would be right.
        others: Paths of the keys that it contradicts. Where a file changes one of them that it inherits from, the
            contradiction is that file's.

    Raises:
        PydanticCustomError: Always.
    """
    context = {"key": key, "message": message, "hint": hint, "others": others}
    raise PydanticCustomError("combination", "{message}", context)


@dataclass(frozen=True)
class _OneOrMore:
    """Lets a file write ``8`` for ``[8]``; refuses repeated choices."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        listed = core_schema.no_info_before_validator_function(self._as_tuple, handler(source))
        return core_schema.no_info_after_validator_function(distinct, listed)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        array = handler(schema)
        return {"anyOf": [array["items"], {**array, "uniqueItems": True}]}

    @staticmethod
    def _as_tuple(value: object) -> object:
        return tuple(value) if isinstance(value, list | tuple) else (value,)


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a list that names something twice."""
    repeated = [value for position, value in enumerate(values) if value in values[:position]]
    if repeated:
        reject((), f"lists {repeated[0]} twice")
    return values


def _operator(kind: OpKind) -> OpKind:
    if kind in _NO_OPERATORS:
        reject((), f"{kind} is not an operator that a device can be asked to quantize")
    return kind


def _layer(kind: OpKind) -> OpKind:
    if kind not in LAYER_KINDS:
        reject((), f"{kind} has no weights", f"operators with weights are {', '.join(sorted(LAYER_KINDS))}")
    return kind


def _enumerated(kinds: list[OpKind]) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": [kind.value for kind in kinds]})


Bits = Annotated[int, Field(ge=1, le=16)]
#: Far inside float32: the product of two scales is still a normal number.
Scale = Annotated[float, Field(ge=1e-18, le=1e18)]
Text = Annotated[str, Field(min_length=1)]
Operator = Annotated[
    OpKind,
    AfterValidator(_operator),
    _enumerated([kind for kind in OpKind if kind not in _NO_OPERATORS]),
]
LayerOperator = Annotated[OpKind, AfterValidator(_layer), _enumerated([kind for kind in OpKind if kind in LAYER_KINDS])]
BitChoices = Annotated[tuple[Bits, ...], Field(min_length=1), _OneOrMore()]
GranularityChoices = Annotated[tuple[Granularity, ...], Field(min_length=1), _OneOrMore()]
SymmetryChoices = Annotated[tuple[Symmetry, ...], Field(min_length=1), _OneOrMore()]
OperatorList = Annotated[tuple[Operator, ...], AfterValidator(distinct)]
