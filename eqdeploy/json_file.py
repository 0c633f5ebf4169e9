"""Reading JSON that anybody may have written: one meaning for every reader, or an error.

Of a key that occurs twice in one object, Python takes the last value, other readers take the first or complain. A
document with such a key means different things to different programs, so it is refused wherever JSON is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from eqdeploy.errors import EqDeployError
from eqdeploy.files import model_error, read_bounded

if TYPE_CHECKING:  # reading plain JSON does not wait for pydantic
    from pydantic import BaseModel

Model = TypeVar("Model", bound="BaseModel")

#: A safetensors file starts with the length of its JSON header, 8 bytes; the format ends headers at 100 MB.
_HEADER_LENGTH_BYTES = 8
_MAXIMUM_HEADER_BYTES = 100_000_000


class _RepeatedKeyError(ValueError):
    """A key occurs twice in one object."""


def refuse_constant(name: str) -> Any:
    """Refuse NaN and infinities, which are no JSON.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is no number of JSON")


def parse_json(
    text: str | bytes,
    where: str,
    error: type[EqDeployError],
    *,
    parse_float: Callable[[str], Any] = float,
    parse_constant: Callable[[str], Any] = refuse_constant,
) -> Any:
    """Parse a JSON document.

    Args:
        text: The document.
        where: File name for the message.
        error: What to raise when it is not valid.
        parse_float: Makes a value of the text of a number with a point or an exponent.
        parse_constant: Makes a value of ``NaN``, ``Infinity`` and ``-Infinity``.

    Raises:
        EqDeployError: The given ``error``, if it is no JSON in UTF-8, holds NaN, an infinity or a number of
            thousands of digits, is nested too deeply, or has a key twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=parse_constant, parse_float=parse_float)
    except _RepeatedKeyError as reason:
        raise error(str(reason), where=where, hint="programs differ in which of the two they take") from reason
    except RecursionError as reason:
        raise error("not valid JSON: nested too deeply", where=where) from reason
    except UnicodeDecodeError as reason:
        raise error("not valid JSON: no text in UTF-8", where=where) from reason
    except ValueError as reason:
        raise error(f"not valid JSON: {reason}", where=where) from reason


def parse_json_model(text: str | bytes, model: type[Model], what: str, where: str, error: type[EqDeployError]) -> Model:
    """Parse a JSON document into a model of pydantic, whose strictness then means JSON's types.

    Args:
        text: The document.
        model: What it must look like.
        what: What that is, for the message, e.g. ``"a manifest"``.
        where: File name for the message.
        error: What to raise when it does not.

    Raises:
        EqDeployError: The given ``error``, naming the first key that is wrong or occurs twice.
    """
    from pydantic import ValidationError

    try:
        found = model.model_validate_json(text)
    except ValidationError as reason:
        raise model_error(reason, what, where, error) from reason
    refuse_repeated_keys(text, where, error)
    return found


def refuse_repeated_keys(text: str | bytes, where: str, error: type[EqDeployError]) -> None:
    """Refuse a document that another reader parsed, if a key occurs twice in one of its objects.

    Raises:
        EqDeployError: The given ``error``, naming the key.
    """
    try:
        json.loads(text, object_pairs_hook=_unique_keys)
    except _RepeatedKeyError as reason:
        raise error(str(reason), where=where, hint="programs differ in which of the two they take") from reason
    except (ValueError, RecursionError) as reason:
        raise error(f"not valid JSON: {reason}", where=where) from reason


def refuse_repeated_tensors(path: Path, error: type[EqDeployError]) -> None:
    """Refuse a safetensors file whose header names a tensor twice, or has a metadata key twice.

    Args:
        path: A file that the safetensors library has opened: the length of its header is known to be right.
        error: What to raise.

    Raises:
        EqDeployError: The given ``error``, naming the key.
    """
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_HEADER_LENGTH_BYTES), "little")
            header = stream.read(min(length, _MAXIMUM_HEADER_BYTES))
    except OSError as reason:
        raise error(reason.strerror or "cannot be read", where=str(path)) from reason
    refuse_repeated_keys(header, f"{path}: header", error)


def read_json(path: Path, maximum_bytes: int, error: type[EqDeployError]) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        maximum_bytes: Largest size.
        error: What to raise when it is missing, too large or not valid; see :func:`parse_json`.
    """
    return parse_json(read_bounded(path, maximum_bytes, error), str(path), error)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless a key occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _RepeatedKeyError(f"the key {repeated!r} occurs twice")
    return found
