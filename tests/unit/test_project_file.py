"""The project file: what it says, what takes its place, and how mistakes in it are told."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from eqdeploy.errors import DataError, ProfileError, UsageError
from eqdeploy.project import ProjectSettings, load_project
from eqdeploy.requests import ExportRequest, Gates
from eqdeploy.yaml_file import MAXIMUM_BYTES, read_yaml_model

EVERYTHING = """
supernet: nets/mine.safetensors
model: nets.mine:make
data: images
profiles: [snpe-dsp, boards/npu.yaml]
output: artifacts
min_accuracy: 0.9
max_drop: 0.02
seed: 3
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "eqdeploy.yaml"


def test_without_a_file_the_shipped_defaults_are_asked_for(project: Path) -> None:
    settings = load_project(project.parent).override(profiles=("snpe-dsp",))
    assert settings.export_request() == ExportRequest(profiles=("snpe-dsp",))
    assert ExportRequest(profiles=("snpe-dsp",)) == ExportRequest(
        profiles=("snpe-dsp",), supernet="digits", data="digits", output=Path("build"), gates=Gates(), seed=0
    )


def test_the_file_takes_the_place_of_the_defaults(project: Path) -> None:
    project.write_text(EVERYTHING)
    request = load_project(project.parent).export_request(subnet=Path("s.json"), force=True)
    assert request == ExportRequest(
        profiles=("snpe-dsp", "boards/npu.yaml"),
        supernet="nets/mine.safetensors",
        model="nets.mine:make",
        data="images",
        output=Path("artifacts"),
        subnet=Path("s.json"),
        gates=Gates(min_accuracy=0.9, max_drop=0.02),
        force=True,
        seed=3,
    )


def test_flags_take_the_place_of_the_file_one_by_one(project: Path) -> None:
    project.write_text(EVERYTHING)
    settings = load_project(project.parent)
    flags = {
        "supernet": "digits",
        "model": "other:make",
        "data": "digits",
        "profiles": ("tensorrt",),
        "output": "elsewhere",
        "min_accuracy": 0.0,
        "max_drop": 0.0,
        "seed": 0,
    }
    for key, value in flags.items():
        changed = settings.override(**{key: value})  # type: ignore[arg-type]
        assert changed.model_dump() == {**settings.model_dump(), key: value}
    assert settings.override() == settings


@pytest.mark.parametrize(
    ("key", "flag"), [("supernet", "--supernet"), ("model", "--model"), ("data", "--data"), ("output", "--out")]
)
def test_an_empty_flag_is_no_flag_but_an_unset_variable(key: str, flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag}: is empty"):
        ProjectSettings().override(**{key: ""})  # type: ignore[arg-type]


def test_one_profile_need_not_be_a_list_and_none_is_exported_twice(project: Path) -> None:
    project.write_text("profiles: snpe-dsp\n")
    assert load_project(project.parent).profiles == ("snpe-dsp",)
    settings = ProjectSettings().override(profiles=("a", "b", "a"))
    assert settings.export_request().profiles == ("a", "b")


def test_a_profile_is_needed(project: Path) -> None:
    with pytest.raises(UsageError, match="no profile given"):
        ProjectSettings().export_request()
    with pytest.raises(UsageError, match="one profile at a time, got a, b"):
        ProjectSettings().override(profiles=("a", "b")).resolve_request()
    assert ProjectSettings().override(profiles=("a",)).resolve_request().profile == "a"


def test_validation_leaves_open_what_is_not_said(project: Path) -> None:
    request = ProjectSettings().validate_request()
    assert (request.supernet, request.data) == (None, None)
    request = ProjectSettings().override(supernet="x", data="y", max_drop=0.1).validate_request()
    assert (request.supernet, request.data, request.gates) == ("x", "y", Gates(max_drop=0.1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: a\nprofile: x\n", r"^eqdeploy\.yaml:2: profile: unknown key 'profile' \(did you mean 'profiles'\?\)$"),
        (
            "seed: -1\nzzz: 1\n",
            r"^eqdeploy\.yaml:1: seed: .*got -1; also line 2: zzz: unknown key 'zzz' \(known keys: ",
        ),
        ("zzz: 1\n", r"^eqdeploy\.yaml:1: zzz: unknown key 'zzz' \(known keys: supernet, model, data,"),
        ("seed: '1'\n", r"^eqdeploy\.yaml:1: seed: .*integer, got '1'$"),
        ("seed: true\n", "seed: .*integer, got True"),
        ("seed: -1\n", "seed: .*greater than or equal to 0, got -1"),
        ("seed: 9223372036854775808\n", "seed: .*less than or equal to 9223372036854775807"),
        ('output: "a\\0b"\n', r"^eqdeploy\.yaml:1: output: must not hold control characters"),
        ('data: "\\ud800"\n', "data: .*unicode"),
        ("\n\nmin_accuracy: 95\n", r"eqdeploy\.yaml:3: min_accuracy: .*less than or equal to 1, got 95"),
        ("max_drop: .nan\n", "max_drop: .*finite"),
        ("profiles:\n  - a\n  - 3\n", r"eqdeploy\.yaml:3: profiles\.1: .*string, got 3"),
        ("supernet: ''\n", "supernet: .*at least 1 character"),
        ("seed: 1\nseed: 2\n", r"eqdeploy\.yaml:2: the key 'seed' occurs twice"),
        ("- a\n", "must hold keys and values"),
        ("seed: [1\n", r"eqdeploy\.yaml:2: "),
        ("x: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("seed: &a [*a]\n", "seed: .*integer"),
        ("seed: 2026-13-45\n", "not valid YAML"),
        ("? [a]\n: 1\n", "unhashable"),
        ("a: 1\n---\nb: 2\n", "another document"),
    ],
)
def test_mistakes_are_told_with_file_line_and_key(project: Path, text: str, message: str) -> None:
    project.write_text(text)
    with pytest.raises(ProfileError, match=message):
        load_project(project.parent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
        (b"\x00", "not valid YAML"),
        (b"[" * 50_000, "nested too deeply"),
        (b"# " + b"x" * MAXIMUM_BYTES, "larger than 1 MiB"),
    ],
)
def test_files_that_are_no_text(project: Path, content: bytes, message: str) -> None:
    project.write_bytes(content)
    with pytest.raises(ProfileError, match=message):
        load_project(project.parent)


def test_a_file_that_cannot_be_read(project: Path) -> None:
    project.mkdir()
    with pytest.raises(ProfileError, match="eqdeploy.yaml: Is a directory"):
        load_project(project.parent)


def test_a_link_to_nowhere_is_not_taken_for_no_file(project: Path) -> None:
    project.symlink_to("missing")
    with pytest.raises(ProfileError, match="No such file"):
        load_project(project.parent)


def test_an_empty_file_says_nothing(project: Path) -> None:
    project.write_text("# nothing yet\n")
    assert load_project(project.parent) == ProjectSettings()


def test_another_folder_is_named_in_messages(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "eqdeploy.yaml").write_text("seed: x\n")
    with pytest.raises(ProfileError, match="other/eqdeploy.yaml:1: seed"):
        load_project(other)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_content_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with contextlib.suppress(ProfileError):  # anything else fails the test
        assert isinstance(read_yaml_model(path, ProjectSettings), ProjectSettings)


class Nested(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    steps: list[dict[str, int]]


def test_lines_of_nested_keys_and_the_error_of_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("steps:\n  - a: 1\n  - a: 1\n    b: x\n")
    with pytest.raises(DataError, match=r"a\.yaml:4: steps\.1\.b: .*integer, got 'x'"):
        read_yaml_model(path, Nested, DataError)
    path.write_text("base: &base {a: 1, b: 2}\nsteps: [{<<: *base, b: 3}]\n")
    with pytest.raises(DataError, match="unknown key 'base'"):
        read_yaml_model(path, Nested, DataError)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_gates_are_fractions(value: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Gates(min_accuracy=value)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Gates(max_drop=value)
