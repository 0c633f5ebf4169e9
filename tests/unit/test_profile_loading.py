"""Profiles are found, merged and checked; whatever is wrong is one line that names file, line and key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eqdeploy.errors import ProfileError
from eqdeploy.profile import DeviceProfile, load_profile, shipped_profiles
from eqdeploy.profile_fields import Bias, Encode, Storage
from eqdeploy.quant.form import Granularity, Symmetry

SHIPPED = ("onnxruntime-w2a4", "onnxruntime-w4a4", "onnxruntime-x86", "snpe-dsp", "tensorrt")

MINIMAL = """\
schema: 1
name: npu
description: A test device.
device: nothing
sources:
  - {claim: it exists, document: manual, reference: page 1}
runtime: {name: npu-runtime}
export: {format: onnx_qdq}
weights:
  bits: 8
  granularity: per_channel
  symmetry: symmetric
  batch_norm: into_scale
activations:
  non_negative: {bits: 8, symmetry: symmetric, storage: unsigned}
  signed: {bits: 8, symmetry: asymmetric, storage: unsigned}
  encode: all
  network_output: true
bias: int32
operators:
  quantized: [conv, linear, add]
"""


def write(folder: Path, text: str, name: str = "npu.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def failure(reference: str) -> str:
    """The one line that a user sees."""
    with pytest.raises(ProfileError) as caught:
        load_profile(reference)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_shipped_profiles_are_listed_by_name() -> None:
    assert shipped_profiles() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profile_loads_under_its_own_name(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert all(source.reference for source in profile.sources)


def test_shipped_profiles_pull_in_the_directions_of_their_devices() -> None:
    x86, snpe, tensorrt = (load_profile(name) for name in ("onnxruntime-x86", "snpe-dsp", "tensorrt"))
    assert x86.weights.storage is Storage.SIGNED
    assert x86.activations.signed.storage is Storage.UNSIGNED
    assert snpe.weights.granularity == (Granularity.PER_TENSOR,)
    assert snpe.weights.symmetry[0] is Symmetry.ASYMMETRIC
    assert snpe.activations.minimum_range == 0.01
    assert tensorrt.activations.encode is Encode.OPERATOR_INPUTS
    assert tensorrt.bias is Bias.FLOAT


def test_path_works_wherever_a_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = write(tmp_path, MINIMAL)
    write(tmp_path, MINIMAL, name="device")  # no suffix
    monkeypatch.chdir(tmp_path)
    assert load_profile(absolute) == load_profile("npu.yaml") == load_profile("./npu.yaml") == load_profile("device")


def test_single_value_stands_for_a_list_of_one(tmp_path: Path) -> None:
    one = load_profile(write(tmp_path, MINIMAL))
    listed = load_profile(write(tmp_path, MINIMAL.replace("bits: 8\n", "bits: [8]\n")))
    assert one == listed
    assert one.weights.bits == (8,)


def test_digest_depends_on_content_only(tmp_path: Path) -> None:
    base = load_profile(write(tmp_path, MINIMAL))
    assert base.digest == load_profile(write(tmp_path, "# a comment\n" + MINIMAL)).digest
    assert base.digest != load_profile(write(tmp_path, MINIMAL.replace("bias: int32", "bias: float"))).digest


def test_dumped_profile_loads_again(tmp_path: Path) -> None:
    profile = load_profile("tensorrt")
    text = yaml.safe_dump(profile.model_dump(mode="json"))
    assert load_profile(write(tmp_path, text)) == profile


class TestInherits:
    def test_child_changes_only_what_it_names(self) -> None:
        base, child = load_profile("onnxruntime-x86"), load_profile("onnxruntime-w4a4")
        assert child.weights.bits == (4,)
        assert child.activations.non_negative.storage is base.activations.non_negative.storage
        assert child.operators == base.operators
        assert child.description != base.description

    def test_sources_accumulate(self) -> None:
        base, child = load_profile("onnxruntime-x86"), load_profile("onnxruntime-w4a4")
        assert child.sources[: len(base.sources)] == base.sources
        assert len(child.sources) > len(base.sources)

    def test_path_is_relative_to_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "sub").mkdir()
        write(tmp_path, MINIMAL, name="base.yaml")
        child = "schema: 1\nname: child\ndescription: c\ninherits: ../base.yaml\nbias: float\n"
        path = write(tmp_path / "sub", child, name="child.yaml")
        monkeypatch.chdir("/")
        assert load_profile(path).bias is Bias.FLOAT

    def test_null_removes_an_inherited_key(self, tmp_path: Path) -> None:
        text = "schema: 1\nname: c\ndescription: c\ninherits: onnxruntime-x86\nactivations: {calibrated_bits: null}\n"
        assert load_profile(write(tmp_path, text)).activations.calibrated_bits is None

    def test_null_removes_one_operator_of_many(self, tmp_path: Path) -> None:
        fixed = (
            "  fixed:\n"
            "    add: {storage: unsigned, scale: 0.5, zero_point: 3}\n"
            "    conv: {storage: signed, scale: 1.0, zero_point: 0}\n"
        )
        write(tmp_path, MINIMAL + fixed, name="base.yaml")
        child = "schema: 1\nname: c\ndescription: c\ninherits: base.yaml\noperators: {fixed: {conv: null}}\n"
        assert list(load_profile(write(tmp_path, child)).operators.fixed) == ["add"]

    def test_null_without_anything_to_remove_is_an_error(self, tmp_path: Path) -> None:
        text = "schema: 1\nname: c\ndescription: c\ninherits: tensorrt\nactivations:\n  boundry_bits: null\n"
        assert "npu.yaml:6: activations.boundry_bits: null removes" in failure(write(tmp_path, text))

    def test_removing_a_required_key_names_the_line_that_removes_it(self, tmp_path: Path) -> None:
        text = "schema: 1\nname: c\ndescription: c\ninherits: tensorrt\nbias: null\n"
        assert "npu.yaml:5: bias: the key is missing" in failure(write(tmp_path, text))

    def test_name_is_never_inherited(self, tmp_path: Path) -> None:
        text = "schema: 1\ndescription: c\ninherits: tensorrt\n"
        assert "npu.yaml: name: the key is missing" in failure(write(tmp_path, text)).replace(str(tmp_path), "")

    def test_circle_is_named(self, tmp_path: Path) -> None:
        write(tmp_path, "schema: 1\nname: a\ndescription: a\ninherits: b.yaml\n", name="a.yaml")
        write(tmp_path, "schema: 1\nname: b\ndescription: b\ninherits: a.yaml\n", name="b.yaml")
        line = failure(str(tmp_path / "a.yaml"))
        assert "inherits from itself" in line
        assert line.count("a.yaml") >= 2

    def test_endless_chain_ends(self, tmp_path: Path) -> None:
        for number in range(2000):
            parent = f"schema: 1\nname: a\ndescription: a\ninherits: p{number + 1}.yaml\n"
            write(tmp_path, parent, name=f"p{number}.yaml")
        line = failure(str(tmp_path / "p0.yaml"))
        assert "p0.yaml: inherits over more than 16 files" in line

    def test_unknown_parent_names_the_line(self, tmp_path: Path) -> None:
        line = failure(write(tmp_path, "schema: 1\nname: c\ndescription: c\ninherits: tensort\n"))
        assert "npu.yaml:4: inherits: there is no profile 'tensort'" in line
        assert "did you mean tensorrt?" in line

    def test_mistake_in_the_parent_names_the_parents_line(self, tmp_path: Path) -> None:
        write(tmp_path, MINIMAL.replace("bias: int32", "bias: int33"), name="base.yaml")
        child = write(tmp_path, "schema: 1\nname: c\ndescription: c\ninherits: base.yaml\n")
        assert "base.yaml:19: bias" in failure(child)

    def test_mistake_in_an_added_source_names_the_childs_line(self, tmp_path: Path) -> None:
        text = "schema: 1\nname: c\ndescription: c\ninherits: tensorrt\nsources:\n  - {claim: x, document: y}\n"
        line = failure(write(tmp_path, text))
        inherited = len(load_profile("tensorrt").sources)
        assert f"npu.yaml:6: sources[{inherited}].reference: the key is missing" in line

    @pytest.mark.parametrize(
        ("base", "child", "expected"),
        [
            ("", "weights:\n  granularity: per_tensor", "npu.yaml:6: weights.granularity: into_scale needs one scale"),
            ("", "weights:\n  scale: power_of_two", "npu.yaml:6: weights.scale: into_scale makes scales that are no"),
            ("  range: narrow\n", "weights:\n  storage: unsigned", "npu.yaml:6: weights.storage: narrow needs storage"),
            (
                "  operators: {conv: {range: narrow}}\n",
                "weights:\n  symmetry: asymmetric",
                "npu.yaml:6: weights.symmetry: narrow needs symmetry",
            ),
            (
                "  operators:\n    linear: {granularity: per_channel}\n",
                "weights:\n  granularity: per_tensor\n  batch_norm: requantize\n"
                "  operators: {linear: {batch_norm: into_scale, granularity: per_tensor}}",
                "npu.yaml:8: weights.operators.linear.batch_norm: into_scale needs",
            ),
        ],
    )
    def test_a_contradiction_to_the_parent_is_the_childs(
        self, base: str, child: str, expected: str, tmp_path: Path
    ) -> None:
        parent = MINIMAL.replace("activations:", f"{base}activations:")
        load_profile(write(tmp_path, parent, name="base.yaml"))
        line = failure(write(tmp_path, f"schema: 1\nname: c\ndescription: c\ninherits: base.yaml\n{child}\n"))
        assert expected in line
        assert "base.yaml" not in line

    def test_a_contradiction_inside_the_parent_is_the_parents(self, tmp_path: Path) -> None:
        write(tmp_path, MINIMAL.replace("per_channel", "per_tensor"), name="base.yaml")
        child = "schema: 1\nname: c\ndescription: c\ninherits: base.yaml\nweights: {bits: 4}\n"
        assert "base.yaml:13: weights.batch_norm: into_scale needs" in failure(write(tmp_path, child))

    def test_a_contradiction_two_generations_up_names_the_middle_file(self, tmp_path: Path) -> None:
        write(tmp_path, MINIMAL, name="base.yaml")
        middle = "schema: 1\nname: m\ndescription: m\ninherits: base.yaml\nweights: {granularity: per_tensor}\n"
        write(tmp_path, middle, name="middle.yaml")
        child = "schema: 1\nname: c\ndescription: c\ninherits: middle.yaml\nbias: float\n"
        assert "middle.yaml:5: weights.granularity: into_scale" in failure(write(tmp_path, child))

    def test_aliases_of_a_parent_are_changed_one_by_one(self, tmp_path: Path) -> None:
        text = MINIMAL.replace("non_negative: {", "non_negative: &form {").replace(
            "signed: {bits: 8, symmetry: asymmetric, storage: unsigned}", "signed: *form"
        )
        write(tmp_path, text, name="base.yaml")
        child = "schema: 1\nname: c\ndescription: c\ninherits: base.yaml\nactivations: {signed: {storage: signed}}\n"
        profile = load_profile(write(tmp_path, child))
        assert profile.activations.signed.storage is Storage.SIGNED
        assert profile.activations.non_negative.storage is Storage.UNSIGNED


class TestReferences:
    def test_unknown_name_lists_the_known_ones(self) -> None:
        line = failure("snpe")
        assert "there is no profile 'snpe'" in line
        assert "did you mean snpe-dsp?" in line
        assert all(name in line for name in SHIPPED)

    @pytest.mark.parametrize("reference", ["missing.yaml", "./nothing", "/no/such/file.yml"])
    def test_missing_file(self, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert "there is no such file" in failure(reference)

    @pytest.mark.parametrize("reference", ["", " ", "x" * 5000, "a\0b"])
    def test_impossible_names(self, reference: str) -> None:
        assert "there is no profile" in failure(reference)

    def test_folder(self, tmp_path: Path) -> None:
        assert "is not a file" in failure(str(tmp_path))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_unreadable_file(self, tmp_path: Path) -> None:
        path = write(tmp_path, MINIMAL)
        Path(path).chmod(0)
        assert "npu.yaml" in failure(path)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("bias: int32", "bais: int32", "npu.yaml:19: bais: unknown key 'bais'"),
        ("bias: int32", "bais: int32", "did you mean bias?"),
        ("  encode: all", "  encod: all", "npu.yaml:17: activations.encod: unknown key 'encod'"),
        ("  encode: all", "  encod: all", "did you mean encode?"),
        ("non_negative: {bits: 8", "non_negative: {bit: 8", "did you mean bits?"),
        ("name: npu-runtime", "nme: npu-runtime", "runtime.nme: unknown key 'nme'"),
        ("claim: it exists", "clam: it exists", "sources[0].clam: unknown key 'clam'"),
        ("bias: int32\n", "", "npu.yaml: bias: the key is missing"),
        ("  symmetry: symmetric\n", "", "npu.yaml:9: weights.symmetry: the key is missing"),
        ("schema: 1", "schema: 2", "npu.yaml:1: schema: 2 is not possible (possible are 1)"),
        ("schema: 1", "schema: '1'", 'schema: "1" is not possible'),
        ("  bits: 8", "  bits: eight", 'npu.yaml:10: weights.bits: must be a whole number, got "eight"'),
        ("  bits: 8", "  bits: 8.0", "weights.bits: must be a whole number, got 8.0"),
        ("  bits: 8", "  bits: true", "weights.bits: must be a whole number, got true"),
        ("  bits: 8", "  bits: []", "weights.bits: must be a list of at least one, got an empty list"),
        ("  bits: 8", "  bits: 0", "weights.bits: input should be greater than or equal to 1, got 0"),
        ("  bits: 8", "  bits: 17", "weights.bits: input should be less than or equal to 16, got 17"),
        ("  bits: 8", "  bits: [8, 8]", "weights.bits: lists 8 twice"),
        ("per_channel", "per_chanel", "did you mean per_channel? possible are per_tensor, per_channel"),
        ("bias: int32", "bias: 32", "npu.yaml:19: bias: 32 is not possible"),
        ("runtime: {name: npu-runtime}", "runtime: npu", 'runtime: must be a mapping of keys to values, got "npu"'),
        ("runtime: {name: npu-runtime}", "runtime:", "runtime: must be a mapping of keys to values, got nothing"),
        ("operators:\n", "operators:\n  fixed: []\n", "operators.fixed: must be a mapping"),
        (
            "[conv, linear, add]",
            "[conv, liner, add]",
            'operators.quantized[1]: "liner" is not possible (did you mean linear?',
        ),
        ("[conv, linear, add]", "[conv, conv]", "operators.quantized: lists conv twice"),
        ("[conv, linear, add]", "[input]", "operators.quantized[0]: input is not an operator"),
        ("[conv, linear, add]", "conv", 'operators.quantized: must be a list, got "conv"'),
        ("name: npu\n", "name: ../evil\n", "npu.yaml:2: name: "),
        ("name: npu\n", "name: NPU\n", "npu.yaml:2: name: "),
        ("description: A test device.", "description: ''", 'description: must be some text, got ""'),
        ("encode: all", "encode: all\n  minimum_range: 1e-4", "YAML reads 1e-4 as text, write 1.0e-4"),
        ("encode: all", "encode: all\n  minimum_scale: .nan", "activations.minimum_scale: must be a finite number"),
        ("encode: all", "encode: all\n  minimum_scale: -1.0", "activations.minimum_scale: "),
        ("encode: all", "encode: all\n  minimum_scale: 1.0e+300", "activations.minimum_scale: input should be less"),
        ("encode: all", "encode: all\n  minimum_range: 1.0e+300", "activations.minimum_range: input should be less"),
        *(
            (
                "[conv, linear, add]",
                f"[conv, linear, add]\n  fixed: {{add: {{storage: unsigned, scale: {scale}, zero_point: 0}}}}",
                "operators.fixed.add.scale: input should be",
            )
            for scale in ("0.0", "1.0e-46", "1.0e+39")
        ),
        ("encode: all", "encode: all\n  calibrated_bits: [8]", "activations.calibrated_bits: must be a whole number"),
        ("network_output: true", "network_output: 'yes'", "activations.network_output: must be true or false"),
    ],
)
def test_mistake_is_named_with_file_line_and_key(old: str, new: str, expected: str, tmp_path: Path) -> None:
    assert MINIMAL.count(old) == 1
    assert expected in failure(write(tmp_path, MINIMAL.replace(old, new)))


def test_several_mistakes_are_all_listed_with_their_lines(tmp_path: Path) -> None:
    text = (
        MINIMAL.replace("bias: int32", "bias: x").replace("bits: 8\n", "bits: x\n").replace("encode: all", "enc: all")
    )
    path = write(tmp_path, text)
    line = failure(path)
    assert line.startswith(f"{path}:17: activations.enc: unknown key 'enc' (did you mean encode?")  # it tells most
    assert "; also line 10: weights.bits: must be " in line
    assert '; also line 19: bias: "x" is not possible (possible are float, int8' in line
    assert line.count("; also ") == 2  # encode, which was meant, is not missing besides


def test_more_mistakes_than_anybody_reads_are_counted(tmp_path: Path) -> None:
    many = "".join(f"k{index}: 1\n" for index in range(60))
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    line = failure(write(folder, MINIMAL + many))
    assert line.count("unknown key") == 40
    assert line.endswith("; and 20 more")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("# nothing\n", "empty"),
        ("- a\n- b\n", "must hold keys and values"),
        ("just text\n", "must hold keys and values"),
        ("a: [1, 2\n", "npu.yaml:"),
        ("a:\n\tb: 1\n", "npu.yaml:2"),
        ("a: 1\nb: 2\na: 3\n", "npu.yaml:3"),
        ("weights:\n  bits: 8\n  bits: 4\n", "npu.yaml:3"),
        ("name: 2024-01-01\n", "npu.yaml:1: name: 2024-01-01 is read as a date"),
        ("on: 1\n", "npu.yaml:1: the key 'on' is not text"),
        ("1: 1\n", "npu.yaml:1: the key '1' is not text"),
        ("? [a]\n: 1\n", "npu.yaml:1"),
        ("a: !!python/object/apply:os.system ['touch x']\n", "npu.yaml:1"),
        ("a: !!binary aGk=\n", "npu.yaml:1: a: the YAML type binary is not allowed"),
        ("a: !!set {b}\n", "npu.yaml:1"),
        ("a: !!int 'x'\n", "npu.yaml"),
        ("a: !!int ''\n", "npu.yaml"),
        ("a: !!bool 'x'\n", "npu.yaml"),
        (f"a: {'1' * 5000}\n", "npu.yaml"),
        ("a: 1\n---\nb: 2\n", "npu.yaml:2"),
        ("a: &x [*x]\n", "npu.yaml:1"),
        ("a: \x01\n", "npu.yaml"),
        ("[" * 20_000, "npu.yaml"),
        ("a: " + "[" * 30 + "]" * 30, "nested deeper than"),
        ("a: &a {<<: *a}\n", "npu.yaml"),
    ],
)
def test_hostile_yaml_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in failure(write(tmp_path, text))


@pytest.mark.parametrize(("levels", "expected"), [(5, "aliases expanded"), (12, "aliases written out")])
def test_billion_laughs_end_early(levels: int, expected: str, tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, levels)]
    assert expected in failure(write(tmp_path, "\n".join(lines)))


def test_huge_file_is_refused(tmp_path: Path) -> None:
    assert "larger than" in failure(write(tmp_path, "# " + "x" * (2 << 20)))


@pytest.mark.parametrize(
    "content", [b"name: \xff\xfe\n", MINIMAL.encode("utf-16"), b"\x00\x01\x02", bytes(range(128, 192))]
)
def test_other_encodings_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "npu.yaml"
    path.write_bytes(content)
    assert "npu.yaml" in failure(str(path))


def test_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "npu.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_profile(str(path)).name == "npu"


def test_loading_imports_neither_torch_nor_onnx() -> None:
    code = (
        "import sys; from eqdeploy.profile import load_profile; import eqdeploy.resolve; load_profile('tensorrt');"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'onnx_ir'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"


def test_profile_cannot_be_changed() -> None:
    profile = load_profile("tensorrt")
    with pytest.raises(ValueError, match="frozen"):
        setattr(profile, "bias", Bias.INT32)  # noqa: B010 - a plain assignment is what mypy forbids already
    assert isinstance(profile, DeviceProfile)
