"""Damaged, hostile and foreign checkpoints: one line that names the file, and nothing is executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from eqdeploy.errors import CheckpointError
from eqdeploy.supernet.checkpoint import METADATA_KEY, load_checkpoint, read_metadata, save_checkpoint
from tests.unit.checkpoint_support import build, describe, trained_supernet

Json = dict[str, Any]


@pytest.fixture(scope="module")
def content() -> bytes:
    supernet = trained_supernet()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_checkpoint(supernet, describe(supernet), path)
        return path.read_bytes()


def split(content: bytes) -> tuple[Json, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: Json, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def refuse(content: bytes, folder: Path, message: str = ".") -> None:
    path = folder / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path, build)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_off_anywhere(content: bytes, tmp_path: Path) -> None:
    (length,) = struct.unpack("<Q", content[:8])
    generator = random.Random(0)
    cuts = {0, 1, 7, 8, 9, 8 + length - 1, 8 + length, 8 + length + 1, len(content) - 1}
    cuts |= {generator.randrange(len(content)) for _ in range(60)}
    for cut in cuts:
        refuse(content[:cut], tmp_path, "not a valid safetensors file")
    refuse(content + b"\0", tmp_path, "not a valid safetensors file")


def test_flipped_bits_in_the_header_never_end_in_a_traceback(content: bytes, tmp_path: Path) -> None:
    (length,) = struct.unpack("<Q", content[:8])
    generator = random.Random(1)
    path = tmp_path / "flipped.safetensors"
    refused = 0
    for _ in range(150):
        flipped = bytearray(content)
        flipped[generator.randrange(8 + length)] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(flipped))
        try:
            load_checkpoint(path, build)  # a bit of a class name may flip unnoticed
        except CheckpointError:
            refused += 1
    assert refused > 120


class Attack:
    """Unpickling this would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_foreign_files_are_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save(Attack(mark), tmp_path / "model.pt")
    foreign = {
        "text": b"hello\n" * 50,
        "empty": b"",
        "pickle": pickle.dumps(Attack(mark)),
        "torch": (tmp_path / "model.pt").read_bytes(),
        "zeros": bytes(1000),
        "header longer than the file": struct.pack("<Q", 2**63 - 1) + b"{}",
        "header of 99 MB": struct.pack("<Q", 99_000_000) + b"{}",
        "list for a header": struct.pack("<Q", 2) + b"[]",
        "header that is no UTF-8": struct.pack("<Q", 4) + b"\xff\xfe{}",
    }
    for content in foreign.values():
        refuse(content, tmp_path, "not a valid safetensors file")
    assert not mark.exists()


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is a folder"),
        (tmp_path / "none", "no such file"),
        (Path("/dev/null"), "is not a plain file"),
    ):
        for read in (read_metadata, lambda path: load_checkpoint(path, build)):
            with pytest.raises(CheckpointError, match=message):
                read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    path.chmod(0)
    with pytest.raises(CheckpointError, match="permission denied"):
        load_checkpoint(path, build)


def test_a_plain_safetensors_file_is_no_supernet(tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {METADATA_KEY: "x" * 2_000_000}):
        refuse(save({"a": torch.zeros(2)}, metadata=metadata), tmp_path, "not a supernet")


#: Changes of the metadata, and what the error must say.
METADATA: dict[str, tuple[Callable[[Json], Any], str]] = {
    "unknown key": (lambda m: m.update(evil=1), "evil"),
    "missing key": (lambda m: m.pop("space"), "space"),
    "another version": (lambda m: m.update(version=2), "version"),
    "another format": (lambda m: m.update(format="pickle"), "format"),
    "nested unknown key": (lambda m: m["space"].update(extra=[]), r"space\.extra"),
    "repeated bits": (lambda m: m["space"].update(bits=[8, 8]), "bits"),
    "impossible bits": (lambda m: m["space"].update(bits=[8, 64]), "bits"),
    "a hundred thousand bits": (lambda m: m["space"].update(bits=list(range(100_000))), "bits"),
    "bits as text": (lambda m: m["space"].update(bits=["8"]), r"space\.bits\.0"),
    "unknown granularity": (lambda m: m["space"].update(granularities=["per_row"]), "per_row"),
    "another space than the tensors'": (lambda m: m["space"].update(narrow=True), "missing: .*narrow"),
    "empty shape": (lambda m: m.update(input_shape=[]), "input_shape"),
    "negative shape": (lambda m: m.update(input_shape=[-3, 8, 8]), r"input_shape\.0"),
    "fractional shape": (lambda m: m.update(input_shape=[3.5, 8, 8]), r"input_shape\.0"),
    "another shape": (lambda m: m.update(input_shape=[3, 9, 9]), "input_shape"),
    "huge shape": (lambda m: m.update(input_shape=[2**20] * 5), "input_shape"),
    "shape that fits no layer": (lambda m: m.update(input_shape=[3, 8]), "Sequential"),
    "huge image": (
        lambda m: (m.update(input_shape=[3, 16384, 16384]), m["preprocessing"].update(image_size=[16384, 16384])),
        "resize_shorter_side|input_shape",
    ),
    "wrong mean": (lambda m: m["preprocessing"].update(mean=[[1], 2, 3]), "preprocessing"),
    "mean that is not finite": (lambda m: m["preprocessing"].update(mean=[float("nan"), 0, 0]), "preprocessing"),
    "negative shift": (lambda m: m["augmentation"].update(shift=-1), "shift"),
    "huge shift": (lambda m: m["augmentation"].update(shift=10**9), "shift"),
    "class that is no text": (lambda m: m.update(classes=[1]), r"classes\.0"),
    "list in provenance": (lambda m: m["provenance"].update(a=[1]), "provenance"),
    "list as an argument": (lambda m: m["architecture"].update(arguments={"a": [1]}), "architecture"),
}


@pytest.mark.parametrize("name", METADATA)
def test_wrong_metadata_is_refused_with_its_key(name: str, content: bytes, tmp_path: Path) -> None:
    change, message = METADATA[name]
    header, body = split(content)
    metadata = json.loads(header["__metadata__"][METADATA_KEY])
    change(metadata)
    header["__metadata__"][METADATA_KEY] = json.dumps(metadata)
    refuse(join(header, body), tmp_path, message)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "1",
        '"a"',
        "[" * 200_000,
        '{"a":' * 100_000,
        "\ud800".encode("utf-16", "surrogatepass").hex(),
    ],
)
def test_metadata_that_is_no_object(text: str, content: bytes, tmp_path: Path) -> None:
    header, body = split(content)
    header["__metadata__"][METADATA_KEY] = text
    refuse(join(header, body), tmp_path)


@pytest.mark.parametrize(
    "dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F16", "BF16", "I8", "BOOL", "U64", "C64", "F64"]
)
def test_tensors_of_other_dtypes(dtype: str, content: bytes, tmp_path: Path) -> None:
    header, body = split(content)
    size = {"F4": 4, "F6_E2M3": 6, "F16": 16, "BF16": 16, "U64": 64, "F64": 64, "C64": 64}.get(dtype, 8)
    header["extra"] = {"dtype": dtype, "shape": [8], "data_offsets": [len(body), len(body) + size]}
    refuse(join(header, body + bytes(size)), tmp_path, "unexpected: extra|Dtype not understood|unknown variant")
    del header["extra"]
    bias = header["4.bias"]
    header["4.bias"] = {**bias, "dtype": dtype}
    refuse(join(header, body), tmp_path)


def test_sizes_that_overflow(content: bytes, tmp_path: Path) -> None:
    header, body = split(content)
    for shape in ([2**40, 2**40], [2**62, 4], [-1]):
        header["0.weight"]["shape"] = shape
        refuse(join(header, body), tmp_path, "not a valid safetensors file")


def test_overlapping_tensors(content: bytes, tmp_path: Path) -> None:
    header, body = split(content)
    header["0.bias"]["data_offsets"] = header["1.bias"]["data_offsets"]
    refuse(join(header, body), tmp_path, "not a valid safetensors file")


def test_everything_wrong_with_the_tensors_is_said_at_once(content: bytes, tmp_path: Path) -> None:
    header, _ = split(content)
    tensors = load(content)
    del tensors["0.weight"]
    tensors["extra"] = torch.zeros(1)
    tensors["0.bias"] = torch.zeros(9)
    tensors["4.weight"] = tensors["4.weight"].double()
    tensors["4.bias"][1] = float("nan")
    tensors["1.weight"][0] = float("inf")
    tensors["1.running_var"][2] = -1.0
    refuse(
        save(tensors, metadata=header["__metadata__"]),
        tmp_path,
        "missing: 0.weight; unexpected: extra; wrong shape or dtype: 0.bias, 4.weight; "
        "not finite: 1.weight, 4.bias; negative variance: 1.running_var",
    )


def test_long_lists_are_cut_short(content: bytes, tmp_path: Path) -> None:
    header, _ = split(content)
    refuse(save({"a": torch.zeros(1)}, metadata=header["__metadata__"]), tmp_path, r"missing: .* and \d+ more")


def test_an_unknown_architecture_is_refused_by_the_zoo(content: bytes, tmp_path: Path) -> None:
    from eqdeploy.zoo import architectures

    header, body = split(content)
    metadata = json.loads(header["__metadata__"][METADATA_KEY])
    path = tmp_path / "a.safetensors"
    for name, arguments in (("os.system", {}), ("mlp", {"classes": 10**12}), ("mlp", {"evil": 1})):
        metadata["architecture"] = {"name": name, "arguments": arguments}
        header["__metadata__"][METADATA_KEY] = json.dumps(metadata)
        path.write_bytes(join(header, body))
        with pytest.raises(CheckpointError, match=str(path)):
            load_checkpoint(path, architectures.build)
