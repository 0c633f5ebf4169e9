"""Output folders that appear complete or not at all.

An artifact is written into a hidden folder beside its destination and renamed at the end. Whatever ends the work
early (an error, Ctrl-C, a termination signal) removes the hidden folder; a killed process or a power cut leaves
it behind as ``.<name>.partial-…``, which nothing mistakes for a result. The next one that writes the same artifact
removes it: see :mod:`eqdeploy.hidden_folders`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from eqdeploy.artifact_folders import MANIFEST_FILE
from eqdeploy.errors import EqDeployError, OutputError, ValidationError
from eqdeploy.hidden_folders import hidden_folder, remove_abandoned
from eqdeploy.manifest import read_manifest

#: Raises an :class:`OutputError` for a folder that must never be replaced.
Recognize = Callable[[Path], None]


def artifact_directory(output: Path, profile: str) -> Path:
    """Folder of the artifact of one profile.

    Args:
        output: Folder that receives one folder per profile.
        profile: Name of the profile.

    Raises:
        OutputError: If the name cannot be a folder's name.
    """
    if (
        profile in ("", ".", "..")
        or profile.startswith(".")
        or Path(profile).name != profile
        or not profile.isprintable()
    ):
        raise OutputError(f"the profile's name {profile!r} cannot be the name of a folder", where=str(output))
    return output / profile


def recognize_artifact(directory: Path) -> None:
    """Refuse a folder that is no artifact.

    Raises:
        OutputError: If it has no valid manifest.
    """
    try:
        read_manifest(directory)
    except ValidationError as reason:
        raise OutputError(
            "holds something that is not an artifact and is never replaced",
            where=str(directory),
            hint=f"no valid {MANIFEST_FILE} in it; choose another folder with --out or remove it yourself",
        ) from reason


def check_destination(directory: Path, *, force: bool, recognize: Recognize = recognize_artifact) -> None:
    """Refuse a destination before any work is done.

    Args:
        directory: Where the artifact shall be.
        force: Whether an artifact that is there may be replaced.
        recognize: Raises an :class:`OutputError` for a folder that must never be replaced.

    Raises:
        OutputError: If something is there that must not be replaced: a file, a folder that holds no artifact
            (not even with ``force``), or an artifact without ``force``; or if the name is empty.
    """
    if directory == Path():  # an empty name, too, is the working directory
        raise OutputError("is the working directory, which cannot be replaced", where=".", hint="name a folder")
    try:
        occupied = _is_occupied(directory)
        str(directory.resolve()).encode()
    except OSError as reason:
        raise _output_error(reason, directory) from reason
    except UnicodeEncodeError as reason:
        raise OutputError(
            "ONNX opens only paths in UTF-8", where=str(directory), hint="choose another with --out"
        ) from reason
    except RuntimeError as reason:  # what resolve() raises before Python 3.13
        raise OutputError("is a link that leads to itself", where=str(directory)) from reason
    if not occupied:
        return
    recognize(directory)
    if not force:
        raise OutputError("exists already", where=str(directory), hint="replace it with --force")


@contextmanager
def write_artifact(
    directory: Path, *, force: bool = False, recognize: Recognize = recognize_artifact
) -> Iterator[Path]:
    """Open a folder to write an artifact into; it becomes ``directory`` when the context ends without an error.

    Args:
        directory: Where the artifact shall be; parents are made.
        force: Whether an artifact that is there may be replaced.
        recognize: Raises an :class:`OutputError` for a folder that must never be replaced.

    Yields:
        The folder to write into, empty, on the same file system.

    Raises:
        OutputError: If the destination is refused (see :func:`check_destination`), or if the disk is full,
            read-only or fails while the context is open.
    """
    check_destination(directory, force=force, recognize=recognize)
    destination = directory.resolve()
    made = _make_parents(destination.parent)
    prefix = _hidden_prefix(destination)
    try:
        remove_abandoned(destination.parent, prefix)
        with hidden_folder(destination.parent, prefix) as temporary:
            try:
                yield temporary
                _publish(temporary, destination, force=force, recognize=recognize)
            except EqDeployError as error:
                error.where = _as_destination(error.where, destination, directory)
                raise
    except OSError as reason:
        _remove_empty(made)
        if isinstance(reason.filename, str) and destination.parent not in Path(reason.filename).absolute().parents:
            raise  # a file that was read, not written
        refused = _output_error(reason, directory)
        refused.where = _as_destination(refused.where, destination, directory)
        raise refused from reason
    except BaseException:
        _remove_empty(made)
        raise


def _is_occupied(directory: Path) -> bool:
    """Whether a folder with something in it is there already.

    Raises:
        OutputError: If no folder can be there at all.
        OSError: If that cannot be found out.
    """
    if directory.is_symlink() and not directory.exists():
        raise OutputError("is a link to nowhere", where=str(directory))
    if directory.exists():
        if not directory.is_dir():
            raise OutputError("exists and is not a folder", where=str(directory), hint="choose another with --out")
        return next(directory.iterdir(), None) is not None
    parent = next(folder for folder in directory.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise OutputError("is not a folder", where=str(parent), hint="choose another with --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError("cannot be written to", where=str(parent), hint="choose another with --out")
    return False


def _make_parents(parent: Path) -> list[Path]:
    """Make a folder and its parents; returns those that did not exist, innermost first."""
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        _remove_empty([folder for folder in missing if folder.exists()])
        raise _output_error(reason, parent) from reason
    return missing


def _hidden_prefix(destination: Path) -> str:
    """Start of the names of the folders in which an artifact is made."""
    return f".{destination.name}.partial-"


def _publish(temporary: Path, destination: Path, *, force: bool, recognize: Recognize) -> None:
    """Rename the finished folder; an artifact in its place is moved aside first and comes back on failure."""
    check_destination(destination, force=force, recognize=recognize)
    if not destination.exists() or next(destination.iterdir(), None) is None:
        temporary.replace(destination)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{destination.name}.replaced-", dir=destination.parent))
    try:
        destination.replace(aside)
    except BaseException:
        aside.rmdir()
        raise
    try:
        temporary.replace(destination)
    except BaseException:
        aside.replace(destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that were made for nothing, as far as nobody else has put something into them."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _as_destination(where: str | None, destination: Path, directory: Path) -> str | None:
    """Replace the hidden folder in the place of an error by the destination, which the user knows."""
    hidden = re.escape(str(destination.parent / _hidden_prefix(destination)))
    return where and re.sub(f"{hidden}[^/]*", lambda _: str(directory), where)


def _output_error(reason: OSError, directory: Path) -> OutputError:
    """Explain a failure of the file system."""
    where = os.fsdecode(reason.filename) if isinstance(reason.filename, str | bytes) else str(directory)
    return OutputError(reason.strerror or str(reason), where=where)
