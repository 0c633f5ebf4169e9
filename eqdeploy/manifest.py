"""``manifest.json``: what an artifact is made of, and from what.

It holds the size and SHA-256 of every other file, so that a changed, missing or added file is found, and the
digests of everything that went in. It holds no time, no absolute path and nothing about the machine: the same
inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from eqdeploy import __version__
from eqdeploy.artifact_folders import MANIFEST_FILE, MAXIMUM_BYTES
from eqdeploy.errors import MissingDependencyError, ValidationError
from eqdeploy.files import read_bounded, write_json
from eqdeploy.json_file import parse_json_model

#: Packages whose version can change a number or a byte of an artifact.
PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")


_MOST_FINDINGS = 3


Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Model(BaseModel):
    """Base of what is read from a manifest, which anybody may have written."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Provenance(_Model):
    """What an artifact was made from.

    Attributes:
        profile: Name of the device profile.
        profile_digest: SHA-256 of the profile.
        supernet: Name of the supernet, or of its file without the folders before it.
        supernet_digest: SHA-256 of the checkpoint.
        subnet_digest: SHA-256 of the subnet.
        data: Name of the data, or of its file or folder without the folders before it.
        data_digest: SHA-256 of the images that were used.
        seed: Seed of every random choice.
    """

    profile: str
    profile_digest: Digest
    supernet: str
    supernet_digest: Digest
    subnet_digest: Digest
    data: str
    data_digest: Digest
    seed: int


class FileEntry(_Model):
    """One file of an artifact.

    Attributes:
        sha256: Hash of its content, in hexadecimal digits.
        size: Its length in bytes.
    """

    sha256: Digest
    size: Annotated[int, Field(ge=0)]


class Manifest(_Model):
    """Content of ``manifest.json``.

    Attributes:
        artifact: Always ``"eqdeploy"``; tells the file from other manifests.
        schema_version: Version of this layout.
        provenance: What the artifact was made from.
        versions: Versions of Python and of the packages that can change a number.
        files: Every other file of the artifact by its path, with ``/`` between folders.
    """

    artifact: Literal["eqdeploy"]
    schema_version: Literal[1]
    provenance: Provenance
    versions: dict[str, str]
    files: dict[str, FileEntry]


def write_manifest(directory: Path, provenance: Provenance) -> Manifest:
    """Write the manifest of a folder that is complete but for it.

    Args:
        directory: The folder.
        provenance: What it was made from.

    Returns:
        What was written.

    Raises:
        OutputError: If the file cannot be written.
        ValidationError: If the folder holds anything but plain files and folders.
    """
    manifest = Manifest(
        artifact="eqdeploy",
        schema_version=1,
        provenance=provenance,
        versions=_versions(),
        files={name: _measure(directory / name) for name in _list_files(directory)},
    )
    write_json(directory / MANIFEST_FILE, manifest.model_dump(mode="json"), sort_keys=True)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of an artifact without looking at its other files.

    Raises:
        ValidationError: If it is missing or not a manifest of this layout.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise ValidationError("not an artifact of eqdeploy", where=str(directory), hint=f"it holds no {MANIFEST_FILE}")
    content = read_bounded(path, MAXIMUM_BYTES, ValidationError)
    return parse_json_model(content, Manifest, "a manifest", str(path), ValidationError)


def verify_manifest(directory: Path) -> Manifest:
    """Compare every file of an artifact with its manifest.

    Args:
        directory: Folder of the artifact.

    Returns:
        The manifest, with which every file agrees.

    Raises:
        ValidationError: If a file is missing, changed or added, is a link, or if the manifest names a path
            that leaves the folder. Names the first few findings.
    """
    manifest = read_manifest(directory)
    for name in manifest.files:
        if not _stays_inside(name):
            raise ValidationError(f"the path {name!r} leaves the artifact", where=str(directory / MANIFEST_FILE))
    present = set(_list_files(directory))
    listed = set(manifest.files)
    findings = [f"{name} is missing" for name in sorted(listed - present)]
    findings += [f"{name} is not in the manifest" for name in sorted(present - listed)]
    findings += [
        f"{name} was changed"
        for name in sorted(listed & present)
        # The size first: a hash of a file that cannot match is never computed.
        if (directory / name).stat().st_size != manifest.files[name].size
        or _measure(directory / name) != manifest.files[name]
    ]
    if findings:
        more = len(findings) - _MOST_FINDINGS
        text = "; ".join(findings[:_MOST_FINDINGS]) + (f"; and {more} more" if more > 0 else "")
        raise ValidationError(text, where=str(directory), hint="export it again")
    return manifest


def _stays_inside(name: str) -> bool:
    """Whether a path of a manifest is relative, in normal form and below the artifact."""
    path = PurePosixPath(name)
    parts_are_plain = bool(path.parts) and not any(part in ("..", ".") for part in path.parts)
    return parts_are_plain and not path.is_absolute() and str(path) == name and "\\" not in name and "\0" not in name


def refuse_links(directory: Path) -> None:
    """Refuse a folder with links in it, which may lead out of it, or with anything else but plain files and folders.

    Raises:
        ValidationError: Names the first one.
    """
    _list_files(directory)


def _list_files(directory: Path) -> list[str]:
    """Paths of all files of an artifact but its manifest, sorted, with ``/`` between folders.

    Raises:
        ValidationError: If there is anything but plain files and folders.
    """
    names: list[str] = []
    for folder, subfolders, files in os.walk(directory, onerror=_refuse, followlinks=False):
        for entry in (Path(folder) / name for name in (*subfolders, *files)):
            mode = entry.lstat().st_mode
            if stat.S_ISREG(mode):
                names.append(entry.relative_to(directory).as_posix())
            elif not stat.S_ISDIR(mode):
                raise ValidationError("neither a plain file nor a folder", where=str(entry))
    return sorted(name for name in names if name != MANIFEST_FILE)


def _refuse(reason: OSError) -> None:
    """Report a folder that cannot be listed."""
    raise ValidationError(reason.strerror or "cannot be read", where=str(reason.filename)) from reason


def _measure(path: Path) -> FileEntry:
    """Size and hash of a file."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return FileEntry(sha256=digest, size=stream.tell())
    except OSError as reason:
        raise ValidationError(reason.strerror or "cannot be read", where=str(path)) from reason


def _versions() -> dict[str, str]:
    """Versions of everything that can change a number or a byte; read without importing any of it."""
    versions: dict[str, Any] = {"eqdeploy": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError as reason:
            raise MissingDependencyError(
                f"the package {package} is not installed", hint="pip install eqdeploy"
            ) from reason
    return versions
