"""The device profile: what a device can execute, as data.

Every class here is one mapping of a profile file; ``docs/profiles.md`` explains the keys for people and
``profiles/profile.schema.json`` is generated from these classes for editors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from eqdeploy.network import LAYER_KINDS, OpKind
from eqdeploy.plan import BatchNormFolding
from eqdeploy.profile_fields import (
    MULTI_INPUT_KINDS,
    Bias,
    BitChoices,
    Bits,
    Encode,
    GranularityChoices,
    IntegerRange,
    KeyPath,
    LayerOperator,
    Operator,
    OperatorList,
    ResidualAdd,
    Rounding,
    Scale,
    ScaleConstraint,
    Storage,
    SymmetryChoices,
    Text,
    reject,
)
from eqdeploy.profile_gates import ProfileGates
from eqdeploy.quant.form import Granularity, Symmetry


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, serialize_by_alias=True)


class Source(_Model):
    """Where a claim of the profile comes from."""

    claim: Text = Field(description="What the source says about the device.")
    document: Text = Field(description="Title of the vendor's document, or name of the repository.")
    reference: Text = Field(description="Address, or path inside the repository.")


class Runtime(_Model):
    """The program that executes the exported files."""

    name: Text = Field(description="Name of the runtime.")
    opset: int = Field(default=21, ge=13, description="ONNX opset of the written model. Per-channel Q/DQ need 13.")
    notes: str = Field(default="", description="Versions, flags and traps worth knowing.")


class Export(_Model):
    """Which exporter writes the device's files."""

    format: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = Field(
        description="onnx_qdq, snpe, tensorrt, or the name of an installed exporter."
    )
    options: Mapping[str, JsonValue] = Field(default={}, description="Options of that exporter.")


class WeightRule(_Model):
    """The weights that one kind of layer can have."""

    bits: BitChoices = Field(description="Widths. The first is the default, the others are open to a subnet.")
    granularity: GranularityChoices = Field(description="Granularities in order of preference.")
    symmetry: SymmetryChoices = Field(description="Symmetries in order of preference.")
    range: IntegerRange = Field(default=IntegerRange.FULL, description="Whether −2^(b−1) may occur.")
    storage: Storage = Field(default=Storage.SIGNED, description="Signed or unsigned integers.")
    batch_norm: BatchNormFolding = Field(
        description="into_scale multiplies the scale of each channel: exact. requantize quantizes again."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self.range, self.storage, self.symmetry)
        if self.batch_norm is BatchNormFolding.INTO_SCALE and Granularity.PER_CHANNEL not in self.granularity:
            reject(
                ("batch_norm",),
                "into_scale needs one scale per channel, but granularity does not allow per_channel",
                "write batch_norm: requantize, or allow per_channel",
                others=(("granularity",),),
            )
        return self


class WeightOverride(_Model):
    """What differs for one kind of layer."""

    bits: BitChoices | None = None
    granularity: GranularityChoices | None = None
    symmetry: SymmetryChoices | None = None
    range: IntegerRange | None = None
    storage: Storage | None = None
    batch_norm: BatchNormFolding | None = None


class Weights(WeightRule):
    """Weights of the whole network."""

    boundary_bits: Bits | None = Field(
        default=None, description="Width of the first and the last layer. Default: the supernet's, if bits allows it."
    )
    scale: ScaleConstraint = Field(default=ScaleConstraint.ANY, description="Constraint on scales.")
    operators: Mapping[LayerOperator, WeightOverride] = Field(default={}, description="Differences by layer kind.")

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        for kind in (None, *self.operators):
            folding = self.batch_norm if kind is None else self.rule(kind).batch_norm
            if folding is BatchNormFolding.INTO_SCALE and self.scale is ScaleConstraint.POWER_OF_TWO:
                reject(
                    ("batch_norm",) if kind is None else ("operators", kind, "batch_norm"),
                    "into_scale makes scales that are no powers of two",
                    "write batch_norm: requantize",
                    others=(("batch_norm",), ("scale",)),
                )
        return self

    def rule(self, kind: OpKind) -> WeightRule:
        """The rule for one kind of layer, its override applied."""
        values = {name: getattr(self, name) for name in WeightRule.model_fields}
        if kind in self.operators:
            values |= _given(self.operators[kind])
        return _combined(WeightRule, values, ("operators", kind), base=())


class ActivationRule(_Model):
    """The form of an activation. Activations always have one scale."""

    bits: BitChoices = Field(description="Widths. The first is the default, the others are open to a subnet.")
    symmetry: SymmetryChoices = Field(description="Symmetries in order of preference.")
    range: IntegerRange = Field(default=IntegerRange.FULL, description="Whether −2^(b−1) may occur.")
    storage: Storage = Field(description="Signed or unsigned integers.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_range(self.range, self.storage, self.symmetry)
        return self


class ActivationOverride(_Model):
    """What differs for the tensors that one kind of operator produces."""

    bits: BitChoices | None = None
    symmetry: SymmetryChoices | None = None
    range: IntegerRange | None = None
    storage: Storage | None = None


class Activations(_Model):
    """Activations: their forms, and which of them carry an encoding."""

    non_negative: ActivationRule = Field(description="Tensors that are never negative, e.g. after ReLU.")
    signed: ActivationRule = Field(description="Tensors that may be negative.")
    calibrated_bits: Bits | None = Field(
        default=None, description="Width of tensors that feed no layer and have no trained scale. Default: bits."
    )
    boundary_bits: Bits | None = Field(
        default=None,
        description="Width of the inputs of the first and the last layer. Default: the supernet's, if bits allows it.",
    )
    encode: Encode = Field(description="Which tensors carry an encoding.")
    residual_add: ResidualAdd = Field(default=ResidualAdd.BOTH, description="Which inputs of an addition do.")
    network_output: bool = Field(description="Whether the network's output carries an encoding.")
    scale: ScaleConstraint = Field(default=ScaleConstraint.ANY, description="Constraint on scales.")
    minimum_scale: float = Field(default=0.0, ge=0, le=1e18, description="Smallest scale that the device accepts.")
    minimum_range: float = Field(
        default=0.0,
        ge=0,
        le=1e18,
        description="Smallest distance of the smallest and the largest real value of an encoding.",
    )
    operators: Mapping[OpKind, ActivationOverride] = Field(
        default={}, description="Differences by the operator that produces the tensor."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.residual_add is ResidualAdd.SKIP_ONLY and self.encode is Encode.ALL:
            reject(
                ("residual_add",),
                "skip_only contradicts encode: all",
                "write encode: operator_inputs",
                others=(("encode",),),
            )
        for kind in (OpKind.OTHER, *self.operators):
            rule = self.rule(kind, non_negative=True)
            if rule.storage is Storage.SIGNED and rule.symmetry[0] is Symmetry.SYMMETRIC and 1 in rule.bits:
                places: list[KeyPath] = (
                    [("non_negative",)] if kind is OpKind.OTHER else [("operators", kind), ("non_negative",)]
                )
                keys = [(*place, name) for place in places for name in ("bits", "symmetry", "storage")]
                reject(
                    keys[0],
                    "1 signed symmetric bit cannot hold a tensor that is never negative",
                    others=tuple(keys[1:]),
                )
            self.rule(kind, non_negative=False)
        return self

    def rule(self, kind: OpKind, *, non_negative: bool) -> ActivationRule:
        """The rule for a tensor that an operator of this kind produces, its override applied."""
        base = self.non_negative if non_negative else self.signed
        if kind not in self.operators:
            return base
        values = _given(base) | _given(self.operators[kind])
        section = "non_negative" if non_negative else "signed"
        return _combined(ActivationRule, values, ("operators", kind), base=(section,))


class FixedRule(_Model):
    """An encoding that the device prescribes for the output of an operator."""

    bits: Bits = 8
    storage: Storage
    scale: Scale
    zero_point: int

    @model_validator(mode="after")
    def _check(self) -> Self:
        low = -(1 << (self.bits - 1)) if self.storage is Storage.SIGNED else 0
        high = low + (1 << self.bits) - 1
        if not low <= self.zero_point <= high:
            reject(("zero_point",), f"{self.zero_point} lies outside [{low}, {high}]", others=(("bits",), ("storage",)))
        return self


class Operators(_Model):
    """What the device does with operators."""

    quantized: OperatorList = Field(description="Operators that run on integers.")
    shared: OperatorList = Field(
        default=(),
        description="Operators whose inputs and output have one encoding: they move codes, or the device wants it.",
    )
    shared_inputs: OperatorList = Field(
        default=(), description="Operators whose inputs have one encoding while the output has its own."
    )
    fused: tuple[tuple[Operator, ...], ...] = Field(
        default=(),
        description="Chains that run as one, without an encoding inside. A folded batch_norm may be left out.",
    )
    fixed: Mapping[Operator, FixedRule] = Field(default={}, description="Encodings that the device prescribes.")

    @model_validator(mode="after")
    def _check_shared(self) -> Self:
        for kind in self.shared:
            if kind in LAYER_KINDS or kind in (OpKind.BATCH_NORM, OpKind.SOFTMAX, OpKind.MATMUL):
                reject(("shared",), f"{kind} computes new values, its output needs an encoding of its own")
            if kind in self.fixed:
                reject(("shared",), f"{kind} has a fixed encoding and cannot share one", others=(("fixed", kind),))
        for kind in self.shared_inputs:
            if kind not in MULTI_INPUT_KINDS:
                reject(
                    ("shared_inputs",), f"{kind} has one input", f"possible are {', '.join(sorted(MULTI_INPUT_KINDS))}"
                )
            if kind in self.shared:
                reject(("shared_inputs",), f"{kind} is listed in shared already", others=(("shared",),))
        return self

    @model_validator(mode="after")
    def _check_fused(self) -> Self:
        for position, group in enumerate(self.fused):
            if len(group) < 2:
                reject(("fused", position), "a fused group has at least two operators")
            inner = [kind for kind in group[1:] if kind in MULTI_INPUT_KINDS]
            if inner:
                reject(
                    ("fused", position),
                    f"{inner[0]} has several inputs and can only begin a group",
                    "activations.residual_add: skip_only leaves the main branch of an addition without an encoding",
                )
        return self

    @model_validator(mode="after")
    def _check_fixed(self) -> Self:
        for kind in self.fixed:
            if kind not in self.quantized:
                reject(("fixed", kind), f"{kind} is not listed in quantized", others=(("quantized",),))
        return self


class DeviceProfile(_Model):
    """What a device can execute and which files it wants.

    Attributes are the keys of a profile file, ``inherits`` already applied; see ``docs/profiles.md``.
    """

    schema_version: Literal[1] = Field(alias="schema", description="Version of this format.")
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)] = Field(
        description="Name, also of the output folder."
    )
    description: Text = Field(description="One sentence.")
    device: Text = Field(description="The hardware.")
    sources: tuple[Source, ...] = Field(min_length=1, description="Evidence for the claims of this profile.")
    runtime: Runtime = Field(description="The program that executes the files.")
    export: Export = Field(description="The exporter that writes the files.")
    weights: Weights = Field(description="Weights.")
    activations: Activations = Field(description="Activations.")
    bias: Bias = Field(description="How a bias is held; int32 means scale s_x·s_w and zero-point 0.")
    rounding: Rounding = Field(default=Rounding.HALF_TO_EVEN, description="How activations are rounded.")
    operators: Operators = Field(description="Operators.")
    gates: ProfileGates = Field(default=ProfileGates(), description="Limits that an artifact is judged by.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.activations.residual_add is ResidualAdd.SKIP_ONLY and OpKind.ADD not in self.operators.quantized:
            reject(
                ("activations", "residual_add"),
                "skip_only has no effect while add is missing in operators.quantized",
                others=(("operators", "quantized"),),
            )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the profile says, the same on every machine."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _check_range(integers: IntegerRange, storage: Storage, symmetry: tuple[Symmetry, ...]) -> None:
    """A narrow range exists so that −q is representable for every q: only with signed symmetric integers."""
    if integers is IntegerRange.FULL:
        return
    if storage is Storage.UNSIGNED:
        reject(("range",), "narrow needs storage: signed", others=(("storage",),))
    if Symmetry.ASYMMETRIC in symmetry:
        reject(("range",), "narrow needs symmetry: symmetric alone", others=(("symmetry",),))


def _given(model: _Model) -> dict[str, Any]:
    """Fields of a model that have a value."""
    return {name: value for name in type(model).model_fields if (value := getattr(model, name)) is not None}


_Rule = TypeVar("_Rule", WeightRule, ActivationRule)


def _combined(rule: type[_Rule], values: dict[str, Any], override: KeyPath, *, base: KeyPath) -> _Rule:
    """Build a rule from a base and an override; a contradiction may be between any two keys of them."""
    try:
        return rule.model_validate(values)
    except ValidationError as error:
        context: dict[str, Any] = error.errors()[0].get("ctx", {})
        named: list[KeyPath] = [context["key"], *context["others"]]
        keys = [place + key for place in (override, base) for key in named]
        reject(keys[0], context["message"], context["hint"], others=tuple(keys[1:]))
