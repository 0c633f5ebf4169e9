"""The report: its verdict follows from its levels, and what is written is read back."""

from __future__ import annotations

import itertools
import json
import re
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from rich.console import Console

from eqdeploy.errors import AccuracyError, OutputError, ParityError, ValidationError
from eqdeploy.manifest import Provenance
from eqdeploy.plan import (
    BatchNormFolding,
    BiasFormat,
    Coverage,
    DevicePlan,
    EncodingSource,
    TensorPlan,
    WeightPlan,
)
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.quantized_model import FoldedLayer
from eqdeploy.report import (
    ArtifactReport,
    CoverageSummary,
    Level,
    PlanSummary,
    Verdict,
    read_report,
    report_json_schema,
    write_report,
)
from eqdeploy.report.view import view_report
from eqdeploy.subnet import SubnetConfig
from eqdeploy.validation.differences import Kind
from eqdeploy.validation.parity import ParityVerdict
from eqdeploy.validation.runtime import Exposure
from eqdeploy.validation.runtime import Level as OptimizationLevel

DOCS = Path(__file__).resolve().parents[2] / "docs"
WEIGHT = Form(4, Granularity.PER_CHANNEL, Symmetry.SYMMETRIC, signed=True)
ACTIVATION = Form(8, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=False)
PLAN = DevicePlan(
    profile="snpe-dsp",
    subnet=SubnetConfig(weights=(("stem.conv", WEIGHT),), activations=(("x", ACTIVATION),)),
    weights=(WeightPlan("stem.conv", WEIGHT, WEIGHT, BatchNormFolding.INTO_SCALE, "profile: per_channel"),),
    tensors=(
        TensorPlan(
            "x", Coverage.QUANTIZED, EncodingSource.TRAINED, ACTIVATION, ACTIVATION, None, None, ("add",), "input"
        ),
        TensorPlan(
            "stem_conv", Coverage.INSIDE_FUSED_GROUP, EncodingSource.NONE, None, None, None, None, (), "conv+relu"
        ),
        TensorPlan("pool", Coverage.QUANTIZED, EncodingSource.SHARED, None, ACTIVATION, "x", None, (), "moves codes"),
    ),
    bias=BiasFormat.INT32,
)
PASSED = Level.of(True, "all held", {"images": 256, "per_level": [{"level": "all", "differing": 0}], "ok": True})
FAILED = Level.of(False, "3 codes differ", {"differing": 3})
NOT_RUN = Level.not_run("the data have no labels")


def make_report(
    static: Level = PASSED,
    parity: Level = PASSED,
    accuracy: Level = NOT_RUN,
    distance: Level = PASSED,
    agreement: Level = PASSED,
    float_share: Level = PASSED,
    origin: Level = PASSED,
) -> ArtifactReport:
    return ArtifactReport(
        provenance=Provenance(
            profile="snpe-dsp",
            profile_digest="0" * 64,
            supernet="digits",
            supernet_digest="1" * 64,
            subnet_digest=PLAN.subnet.digest,
            data="digits",
            data_digest="3" * 64,
            seed=0,
        ),
        plan=PlanSummary.of(PLAN),
        folding=(
            FoldedLayer("stem.conv", "into_scale", True, 0.0, negated_channels=1),
            FoldedLayer("head", "requantize", False, 0.125, dead_channels=2),
        ),
        coverage=CoverageSummary.of(
            {plan.tensor: plan.coverage for plan in PLAN.tensors}, {plan.tensor: plan.reason for plan in PLAN.tensors}
        ),
        static=static,
        origin=origin,
        parity=parity,
        distance=distance,
        agreement=agreement,
        accuracy=accuracy,
        float_share=float_share,
        operators={"fused": {"QLinearConv": 5}, "float": [{"name": "t", "reason": "tanh"}]},
        notes=("block2: no image excites it",),
    )


@pytest.mark.parametrize(
    ("static", "parity", "accuracy"),
    list(itertools.product([PASSED, FAILED, NOT_RUN], repeat=3)),
    ids=lambda level: level.status,
)
def test_verdict_and_failure_follow_from_the_levels(static: Level, parity: Level, accuracy: Level) -> None:
    report = make_report(static, parity, accuracy)
    failure = report.failure()
    if FAILED in (static, parity, accuracy):
        assert report.verdict is Verdict.FAILED
        first = ValidationError if static is FAILED else ParityError if parity is FAILED else AccuracyError
        assert type(failure) is first
        assert "3 codes differ" in str(failure)
    else:
        assert failure is None
        assert report.verdict is (Verdict.UNPROVEN if NOT_RUN in (static, parity) else Verdict.VALID)


def test_nothing_is_valid_whose_origin_is_not_proved() -> None:
    assert make_report(origin=NOT_RUN).verdict is Verdict.UNPROVEN


@pytest.mark.parametrize("name", ["origin", "distance", "agreement", "accuracy", "float_share"])
def test_every_gate_counts(name: str) -> None:
    report = make_report(**{name: FAILED})
    assert report.verdict is Verdict.FAILED
    failure = report.failure()
    assert type(failure) is (ValidationError if name == "origin" else AccuracyError)
    assert failure.where == f"snpe-dsp: {name.replace('_', ' ')}"
    not_run = make_report(**{name: NOT_RUN})
    assert not_run.verdict is (Verdict.UNPROVEN if name in ("origin", "distance") else Verdict.VALID)


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    report = make_report()
    path = write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    assert path.read_bytes() == write_report(tmp_path, make_report()).read_bytes()
    assert json.loads(path.read_text())["verdict"] == "valid"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_any_details_survive(details: Any) -> None:
    report = make_report(parity=Level.of(True, "", {"details": details}))
    assert ArtifactReport.from_json(json.dumps(report.to_json()), where="r") == report


def test_a_verdict_that_is_not_earned_is_refused() -> None:
    document = make_report(parity=FAILED).to_json()
    assert document["verdict"] == "failed"
    with pytest.raises(ValidationError, match="r: verdict: the levels add up to 'failed', not to 'valid'"):
        ArtifactReport.from_json(json.dumps({**document, "verdict": "valid"}), where="r")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "r: extra: not a report"),
        ({"schema_version": 2}, "r: schema_version: not a report"),
        ({"coverage": None}, "r: coverage: not a report"),
        ({"notes": [1]}, "r: notes.0: not a report"),
        ({"static": {"status": "great", "summary": "", "details": {}}}, "r: static.status: not a report"),
    ],
)
def test_a_document_of_another_layout_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ArtifactReport.from_json(json.dumps({**make_report().to_json(), **change}), where="r")


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
def test_a_document_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="not a report"):
        ArtifactReport.from_json(text, where="r")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="No such file"):
        read_report(tmp_path)
    with pytest.raises(OutputError, match="No such file"):
        write_report(tmp_path / "missing", make_report())


def test_numbers_that_json_does_not_know_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="JSON"):
        Level.of(True, "", {"error": float("nan")})


def test_coverage_adds_up() -> None:
    coverage = make_report().coverage
    assert coverage.total == sum(coverage.counts.values()) == 3
    assert [entry.tensor for entry in coverage.unquantized] == ["stem_conv"]
    assert set(coverage.counts) == set(Coverage)


def render(report: ArtifactReport, *, verbose: bool) -> str:
    stream = StringIO()
    Console(file=stream, width=300, markup=False).print(view_report(report, verbose=verbose))
    return stream.getvalue()


def test_view_in_short() -> None:
    text = render(make_report(accuracy=FAILED), verbose=False)
    assert "snpe-dsp: failed" in text
    assert re.search(r"static +passed +all held", text)
    assert re.search(r"accuracy +failed +3 codes differ", text)
    assert "3 tensors: 2 quantized, 1 inside fused group" in text
    assert "1 of 2 layers quantized again, largest relative error 0.125 in head" in text
    assert "note: block2: no image excites it" in text
    assert "per_channel" not in text


def test_view_of_everything_names_every_layer_tensor_reason_and_measurement() -> None:
    report = make_report()
    text = render(report, verbose=True)
    for word in (
        "profile: per_channel",
        "4-per_channel-symmetric-signed",
        "conv+relu",
        "shared x",
        "stem_conv",
        "0.125",
    ):
        assert word in text
    for word in ("differing", "QLinearConv", "tanh", "256"):
        assert word in text


def test_names_cannot_drive_the_terminal() -> None:
    report = make_report(static=Level.of(False, "layer \x1b[2J[bold]", {}))
    text = render(report, verbose=True)
    assert "\x1b" not in text
    assert "[bold]" in text


def models(model: type[BaseModel]) -> set[type]:
    """The model and everything that its fields are made of."""
    found: set[type] = {model}
    pending: list[Any] = [field.annotation for field in model.model_fields.values()]
    while pending:
        annotation = pending.pop()
        pending += get_args(annotation)
        if isinstance(annotation, type) and annotation not in found:
            if issubclass(annotation, BaseModel):
                found |= models(annotation)
            elif annotation is FoldedLayer or issubclass(annotation, StrEnum):
                found.add(annotation)
    return found


def test_every_field_and_every_value_is_documented() -> None:
    documented = set(re.findall(r"`(\w+)`", (DOCS / "report.md").read_text(encoding="utf-8")))
    expected: set[str] = {"verdict"}
    for model in models(ArtifactReport):
        if issubclass(model, BaseModel):
            expected |= set(model.model_fields)
        elif issubclass(model, StrEnum):
            expected |= {str(value) for value in model}
        else:
            expected |= set(FoldedLayer.__dataclass_fields__)
    expected |= {str(value) for value in (*Verdict, *ParityVerdict, *Kind, *Exposure, *OptimizationLevel)}
    assert expected - documented == set()


def test_published_schema_is_current() -> None:
    published = json.loads((DOCS / "report.schema.json").read_text(encoding="utf-8"))
    current = report_json_schema()
    for schema in (published, current):  # before 2.14 pydantic says neither of a dataclass, though it is as strict
        for key in ("additionalProperties", "description"):
            schema["$defs"]["FoldedLayer"].pop(key, None)
    assert published == current, "write eqdeploy.report.report_json_schema() into docs/report.schema.json"


def test_published_schema_knows_every_key_of_a_report() -> None:
    schema = report_json_schema()
    document = make_report().to_json()
    assert set(schema["properties"]) == set(document)
    assert set(schema["required"]) <= set(document)
    assert schema["additionalProperties"] is False
