"""Reading and writing small files with errors that name the file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqdeploy.errors import EqDeployError, OutputError

if TYPE_CHECKING:
    from pydantic import ValidationError


#: What is read at once of something whose size nobody knows.
_PIECE_BYTES = 1 << 20


def read_bounded(path: Path, maximum_bytes: int, error: type[EqDeployError]) -> bytes:
    """Read a whole file, unless it is larger than such a file can be.

    Args:
        path: The file.
        maximum_bytes: Largest size.
        error: What to raise when it cannot be read.

    Raises:
        EqDeployError: The given ``error``, if the file is missing, unreadable or too large.
    """
    try:
        with path.open("rb") as stream:
            # Never more than the size says in one go: reading takes memory for all that is asked for.
            length = os.fstat(stream.fileno()).st_size
            pieces = [stream.read(length)] if length <= maximum_bytes else []
            while length <= maximum_bytes and (piece := stream.read(_PIECE_BYTES)):  # no plain file, or one that grows
                pieces.append(piece)
                length += len(piece)
    except OSError as reason:
        raise error(reason.strerror or "cannot be read", where=str(path)) from reason
    if length > maximum_bytes:
        raise error(f"larger than {maximum_bytes >> 20} MiB", where=str(path))
    return b"".join(pieces)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees either the old content or all of the new.

    Raises:
        OutputError: If the folder cannot be written to or is full; nothing is left behind.
    """
    # One fixed name: what a kill leaves behind is overwritten by the next attempt instead of piling up.
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror or error}", where=str(path)) from error


def temporary_prefix(process: int) -> str:
    """Start of the names of all temporary folders of a process: whoever has to kill it can clear up after it.

    Args:
        process: Its id.
    """
    return f"eqdeploy-{process}-"


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder of this process, which is removed when its context ends."""
    return tempfile.TemporaryDirectory(prefix=temporary_prefix(os.getpid()))


def write_json(path: Path, document: Mapping[str, Any], *, sort_keys: bool = False) -> None:
    """Write a JSON document: indented, in UTF-8, with a newline at the end, without NaN or infinity.

    Raises:
        OutputError: If the file cannot be written.
    """
    text = json.dumps(document, indent=2, sort_keys=sort_keys, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.write_bytes(text.encode("utf-8"))
    except OSError as reason:
        raise OutputError(reason.strerror or "cannot be written", where=str(path)) from reason


def model_error(reason: ValidationError, what: str, where: str, error: type[EqDeployError]) -> EqDeployError:
    """Explain the first thing that pydantic found wrong in a file that a program wrote.

    Args:
        reason: What pydantic found.
        what: What the file should be, e.g. ``"a manifest"``.
        where: File name.
        error: Class of the result.
    """
    finding = reason.errors(include_url=False, include_input=False, include_context=False)[0]
    key = ".".join(str(step) for step in finding["loc"])
    return error(f"not {what}: {finding['msg']}", where=f"{where}: {key}" if key else where)
