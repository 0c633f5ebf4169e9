"""What contradicts itself is refused, the published JSON Schema is the code's, and the documents name every key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from eqdeploy.errors import ProfileError
from eqdeploy.network import ElasticSpace, OpKind
from eqdeploy.plan import BatchNormFolding
from eqdeploy.profile import load_profile, profile_json_schema
from eqdeploy.profile_schema import DeviceProfile
from eqdeploy.quant.form import Form, Granularity, Symmetry
from eqdeploy.resolve import resolve
from tests.unit.network_support import residual_network
from tests.unit.test_profile_loading import MINIMAL, failure, write

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("symmetry: symmetric\n", "symmetry: symmetric\n  range: narrow\n  storage: unsigned\n", "range: narrow needs"),
        ("symmetry: symmetric\n", "symmetry: asymmetric\n  range: narrow\n", "range: narrow needs symmetry"),
        (
            "symmetry: symmetric\n",
            "symmetry: [symmetric, asymmetric]\n  range: narrow\n",
            "range: narrow needs symmetry",
        ),
        ("per_channel", "per_tensor", "weights.batch_norm: into_scale needs one scale per channel"),
        (
            "into_scale",
            "into_scale\n  operators:\n    linear: {granularity: per_tensor}",
            "npu.yaml:15: weights.operators.linear.granularity: into_scale needs",
        ),
        (
            "into_scale",
            "into_scale\n  operators:\n    linear: {range: narrow, symmetry: asymmetric}",
            "npu.yaml:15: weights.operators.linear.range: narrow needs symmetry",
        ),
        ("into_scale", "into_scale\n  scale: power_of_two", "weights.batch_norm: into_scale makes scales"),
        (
            "into_scale",
            "requantize\n  scale: power_of_two\n  operators: {conv: {batch_norm: into_scale}}",
            "weights.operators.conv.batch_norm: into_scale makes scales",
        ),
        ("into_scale", "into_scale\n  operators: {add: {bits: 4}}", "weights.operators.add: add has no weights"),
        ("into_scale", "into_scale\n  operators: {cnv: {bits: 4}}", "did you mean conv?"),
        ("encode: all", "encode: all\n  residual_add: skip_only", "activations.residual_add: skip_only contradicts"),
        (
            "asymmetric, storage: unsigned}",
            "asymmetric, storage: unsigned}\n  operators: {add: {range: narrow}}",
            "activations.operators.add.range: narrow needs storage",
        ),
        (
            "non_negative: {bits: 8, symmetry: symmetric, storage: unsigned}",
            "non_negative: {bits: [4, 1], symmetry: symmetric, storage: signed}",
            "activations.non_negative.bits: 1 signed symmetric bit",
        ),
        (
            "asymmetric, storage: unsigned}",
            "asymmetric, storage: unsigned}\n  operators: {relu: {bits: 1, storage: signed}}",
            "activations.operators.relu.bits: 1 signed symmetric bit",
        ),
        ("add]", "add]\n  shared: [conv]", "operators.shared: conv computes new values"),
        ("add]", "add]\n  shared: [softmax]", "operators.shared: softmax computes new values"),
        (
            "add]",
            "add]\n  shared: [add]\n  fixed: {add: {storage: unsigned, scale: 1.0, zero_point: 0}}",
            "operators.shared: add has a fixed encoding",
        ),
        ("add]", "add]\n  shared_inputs: [conv]", "operators.shared_inputs: conv has one input"),
        ("add]", "add]\n  shared: [concat]\n  shared_inputs: [concat]", "operators.shared_inputs: concat is listed"),
        ("add]", "add]\n  fused: [[conv]]", "operators.fused[0]: a fused group has at least two"),
        ("add]", "add]\n  fused: [[conv, relu], [conv, add]]", "operators.fused[1]: add has several inputs"),
        (
            "add]",
            "add]\n  fixed: {softmax: {storage: unsigned, scale: 1.0, zero_point: 0}}",
            "operators.fixed.softmax: softmax is not listed in quantized",
        ),
        (
            "add]",
            "add]\n  fixed: {add: {storage: unsigned, scale: 1.0, zero_point: -1}}",
            "operators.fixed.add.zero_point: -1 lies outside [0, 255]",
        ),
        (
            "add]",
            "add]\n  fixed: {add: {storage: signed, bits: 4, scale: 1.0, zero_point: 8}}",
            "zero_point: 8 lies outside [-8, 7]",
        ),
        ("add]", "add]\n  fixed: {add: {storage: signed, scale: 0.0, zero_point: 0}}", "operators.fixed.add.scale"),
    ],
)
def test_contradiction_is_named(old: str, new: str, expected: str, tmp_path: Path) -> None:
    assert MINIMAL.count(old) == 1
    assert expected in failure(write(tmp_path, MINIMAL.replace(old, new)))


def test_skip_only_needs_a_quantized_add(tmp_path: Path) -> None:
    text = MINIMAL.replace("encode: all", "encode: operator_inputs\n  residual_add: skip_only")
    assert load_profile(write(tmp_path, text)).name == "npu"
    assert "activations.residual_add: skip_only has no effect" in failure(
        write(tmp_path, text.replace("linear, add]", "linear]"))
    )


def test_override_applies_to_its_operator_only(tmp_path: Path) -> None:
    text = MINIMAL.replace(
        "into_scale",
        "into_scale\n  operators:\n    linear: {granularity: per_tensor, batch_norm: requantize, bits: [4, 8]}",
    )
    weights = load_profile(write(tmp_path, text)).weights
    conv, linear = weights.rule(OpKind.CONV), weights.rule(OpKind.LINEAR)
    assert (conv.granularity, conv.bits, conv.batch_norm) == (
        (Granularity.PER_CHANNEL,),
        (8,),
        BatchNormFolding.INTO_SCALE,
    )
    assert (linear.granularity, linear.bits, linear.batch_norm) == (
        (Granularity.PER_TENSOR,),
        (4, 8),
        BatchNormFolding.REQUANTIZE,
    )
    assert linear.symmetry == conv.symmetry == (Symmetry.SYMMETRIC,)


def test_published_json_schema_is_the_codes() -> None:
    published = (ROOT / "profiles" / "profile.schema.json").read_text(encoding="utf-8")
    expected = json.dumps(profile_json_schema(), indent=2, ensure_ascii=False) + "\n"
    assert published == expected, "regenerate it as docs/adding-a-profile.md says"


def test_json_schema_requires_everything_only_without_inherits() -> None:
    schema = profile_json_schema()
    complete, changes = schema["else"], schema["then"]
    assert {"weights", "activations", "operators", "bias", "sources"} <= set(complete["required"])
    assert "inherits" not in complete["properties"]
    assert set(changes["required"]) == {"schema", "name", "description", "inherits"}
    assert "required" in schema["$defs"]["Weights"]
    assert "required" not in schema["$defs"]["WeightsChanges"]


def test_every_reference_of_the_json_schema_resolves() -> None:
    schema = profile_json_schema()
    references = set(re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(schema)))
    assert references
    assert references <= set(schema["$defs"])


def _keys(model: type[BaseModel]) -> Iterator[str]:
    yield from (info.alias or name for name, info in model.model_fields.items())


def test_documentation_names_every_key() -> None:
    text = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    mappings: list[dict[str, Any]] = [*profile_json_schema()["$defs"].values()]
    keys = {key for mapping in mappings for key in mapping.get("properties", {})} | {*_keys(DeviceProfile)}
    missing = sorted(key for key in keys | {"inherits"} if f"`{key}`" not in text)
    assert not missing


def guide_examples(folder: Path) -> dict[str, DeviceProfile]:
    """The complete profiles in the guide, loaded."""
    guide = (ROOT / "docs" / "adding-a-profile.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(schema: 1.*?)```", guide, flags=re.DOTALL)
    profiles = [load_profile(write(folder, block, name=f"{position}.yaml")) for position, block in enumerate(blocks)]
    return {profile.name: profile for profile in profiles}


def test_examples_of_the_guide_load_and_resolve(tmp_path: Path) -> None:
    profiles = guide_examples(tmp_path)
    assert set(profiles) == {"onnxruntime-avx2", "int8-npu"}
    plan = resolve(profiles["onnxruntime-avx2"], residual_network())
    assert {weight.device.bits for weight in plan.weights} == {7}
    plan = resolve(profiles["int8-npu"], residual_network(ElasticSpace(narrow=True)))
    assert plan.weight["stem"].device.key == "8-per_channel-symmetric-signed_narrow"
    assert plan.weight["fc"].device.key == "8-per_tensor-symmetric-signed_narrow"
    assert plan.tensor["a_relu"].device == Form(8, Granularity.PER_TENSOR, Symmetry.ASYMMETRIC, signed=True)


def test_example_of_the_guide_refuses_a_supernet_trained_on_the_full_range(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="weights.range: layer 'stem' needs the narrow range"):
        resolve(guide_examples(tmp_path)["int8-npu"], residual_network())


def test_every_yaml_block_of_the_reference_is_a_valid_change(tmp_path: Path) -> None:
    """Each fragment in docs/profiles.md, merged into a shipped profile, is accepted."""
    text = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        head = (
            "" if block.startswith("schema: 1") else "schema: 1\nname: f\ndescription: f\ninherits: onnxruntime-x86\n"
        )
        try:
            load_profile(write(tmp_path, head + block))
        except ProfileError as error:
            pytest.fail(f"{error}\n{block}")
