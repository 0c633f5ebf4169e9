"""The manifest finds every change of an artifact and cannot be turned against its reader."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from eqdeploy import __version__
from eqdeploy.errors import ValidationError
from eqdeploy.manifest import PACKAGES, Provenance, read_manifest, verify_manifest, write_manifest

PROVENANCE = Provenance(
    profile="snpe-dsp",
    profile_digest="0" * 64,
    supernet="digits",
    supernet_digest="1" * 64,
    subnet_digest="2" * 64,
    data="digits",
    data_digest="3" * 64,
    seed=7,
)
FILES = {"model.onnx": b"\x00\x01", "sub/encodings.json": b"{}", "report.json": "ü".encode()}


def fill(folder: Path) -> None:
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_manifest(folder, PROVENANCE)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_content(tmp_path: Path) -> None:
    fill(tmp_path)
    document = json.loads((tmp_path / "manifest.json").read_bytes())
    assert document["files"] == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} for name, content in FILES.items()
    }
    assert document["provenance"] == PROVENANCE.model_dump()
    assert document["versions"]["eqdeploy"] == __version__
    assert {name: document["versions"][name] for name in PACKAGES} == {
        name: metadata.version(name) for name in PACKAGES
    }
    assert verify_manifest(tmp_path) == read_manifest(tmp_path)


def test_same_files_give_the_same_bytes_in_any_folder_and_order(tmp_path: Path) -> None:
    for name, order in (("a", list(FILES)), ("b", list(reversed(FILES)))):
        for file in order:
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(FILES[file])
        os.utime(tmp_path / name / order[0], (0, 0))
        write_manifest(tmp_path / name, PROVENANCE)
    first, second = ((tmp_path / name / "manifest.json").read_bytes() for name in ("a", "b"))
    assert first == second
    assert str(tmp_path).encode() not in first


def rewrite(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\x00\x02")


def lengthen(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\x00\x01\x00")


def remove(folder: Path) -> None:
    (folder / "sub" / "encodings.json").unlink()


def add(folder: Path) -> None:
    (folder / "sub" / "extra.bin").write_bytes(b"")


def link(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere")


def link_folder(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent, target_is_directory=True)


def make_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewrite, "model.onnx was changed"),
        (lengthen, "model.onnx was changed"),
        (remove, "sub/encodings.json is missing"),
        (add, "sub/extra.bin is not in the manifest"),
        (link, "model.onnx: neither a plain file nor a folder"),
        (link_folder, "more: neither a plain file nor a folder"),
        (make_pipe, "pipe: neither a plain file nor a folder"),
    ],
)
def test_every_change_is_found(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    folder = tmp_path / "artifact"
    fill(folder)
    verify_manifest(folder)
    change(folder)
    with pytest.raises(ValidationError, match=message):
        verify_manifest(folder)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "./model.onnx", "a//b", "", ".", "a\\..\\b", "a\0"]
)
def test_a_path_that_leaves_the_artifact(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "artifact"
    fill(folder)
    (tmp_path / "secret").write_bytes(b"")
    edit(folder, lambda document: document["files"].update({name: {"sha256": "0" * 64, "size": 0}}))
    with pytest.raises(ValidationError, match="leaves the artifact"):
        verify_manifest(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(extra=1),
        lambda document: document.update(schema_version=2),
        lambda document: document.update(artifact="other"),
        lambda document: document.pop("files"),
        lambda document: document["files"]["model.onnx"].update(size="2"),
        lambda document: document["files"]["model.onnx"].update(size=-1),
        lambda document: document["files"]["model.onnx"].update(sha256="xyz"),
        lambda document: document["provenance"].update(seed=None),
        lambda document: document["provenance"].update(path="/home"),
    ],
)
def test_a_manifest_of_another_layout(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fill(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(ValidationError, match="manifest.json.*not a manifest"):
        verify_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b'{"artifact": "eqdeploy"', b"[" * 100_000])
def test_a_damaged_manifest(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValidationError, match="not a manifest"):
        read_manifest(tmp_path)


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="not an artifact of eqdeploy"):
        verify_manifest(tmp_path)
    with pytest.raises(ValidationError, match="not an artifact of eqdeploy"):
        verify_manifest(tmp_path / "missing")
