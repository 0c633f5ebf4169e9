"""JSON that means the same to every reader, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from eqdeploy.encoding_table import ENCODINGS_FILE, check_encodings
from eqdeploy.errors import CheckpointError, EqDeployError, ProfileError, UsageError
from eqdeploy.inspection import inspect_file
from eqdeploy.json_file import parse_json, parse_json_model, read_json, refuse_repeated_keys, refuse_repeated_tensors
from eqdeploy.pipeline.sources import load_subnet

TWICE = '{"a": {"b": 1, "c": [], "b": 1}}'


class Pair(BaseModel):
    a: int
    b: int = 0


@pytest.mark.parametrize("text", [TWICE, TWICE.encode(), f"[{TWICE}]"])
def test_a_key_that_occurs_twice_is_refused_at_any_depth(text: str | bytes) -> None:
    with pytest.raises(UsageError, match="file: the key 'b' occurs twice"):
        parse_json(text, "file", UsageError)
    with pytest.raises(UsageError, match="file: the key 'b' occurs twice"):
        refuse_repeated_keys(text, "file", UsageError)


def test_equal_keys_in_different_objects_are_allowed() -> None:
    assert parse_json('{"a": {"b": 1}, "b": {"b": 2}}', "file", UsageError) == {"a": {"b": 1}, "b": {"b": 2}}


@pytest.mark.parametrize(
    "text",
    ["{", "", "nul", "NaN", '{"a": Infinity}', "[" * 100_000, "9" * 5000, b"\xff\xfe", b'{"\xff": 1}', "\ud800"],
)
def test_what_is_no_json_is_refused_on_one_line(text: str | bytes) -> None:
    with pytest.raises(UsageError, match="^file: not valid JSON") as caught:
        parse_json(text, "file", UsageError)
    assert "\n" not in str(caught.value)


def test_models_are_strict_about_keys() -> None:
    assert parse_json_model('{"a": 1}', Pair, "a pair", "file", ProfileError) == Pair(a=1)
    with pytest.raises(ProfileError, match="file: the key 'a' occurs twice"):
        parse_json_model('{"a": 1, "a": 1}', Pair, "a pair", "file", ProfileError)
    with pytest.raises(ProfileError, match="file: b: not a pair"):
        parse_json_model('{"a": 1, "b": "x"}', Pair, "a pair", "file", ProfileError)


def test_files_have_a_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    assert read_json(path, 3, UsageError) == [1]
    with pytest.raises(UsageError, match="larger than"):
        read_json(path, 2, UsageError)
    with pytest.raises(UsageError, match="No such file"):
        read_json(tmp_path / "b.json", 2, UsageError)


def test_a_tensor_that_stands_twice_in_a_header(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"w":{entry},"w":{entry}}}'.encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="header: the key 'w' occurs twice"):
        refuse_repeated_tensors(path, CheckpointError)


def read_encodings(folder: Path, text: str) -> None:
    (folder / ENCODINGS_FILE).write_text(text)
    check_encodings(folder, None)  # type: ignore[arg-type] # the file is refused before it is compared with a model


def read_subnet(folder: Path, text: str) -> None:
    (folder / "subnet.json").write_text(text)
    load_subnet(folder / "subnet.json")


def inspect(folder: Path, text: str) -> None:
    (folder / "any.json").write_text(text)
    inspect_file(folder / "any.json")


@pytest.mark.parametrize("read", [read_encodings, read_subnet, inspect])
def test_every_reader_of_plain_documents_refuses_a_repeated_key(
    read: Callable[[Path, str], None], tmp_path: Path
) -> None:
    with pytest.raises(EqDeployError, match="the key 'schema' occurs twice"):
        read(tmp_path, '{"schema": 1, "schema": 1}')
