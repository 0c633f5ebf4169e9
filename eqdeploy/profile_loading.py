"""Load device profiles: find the file, apply ``inherits``, validate, and say in one line what is wrong where."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from eqdeploy.errors import ProfileError
from eqdeploy.profile_document import dotted, read_document
from eqdeploy.profile_fields import KeyPath
from eqdeploy.profile_schema import DeviceProfile

#: Keys by which a profile is known; they are never inherited.
OWN_KEYS = ("schema", "name", "description")
#: Nobody can follow a longer chain of ``inherits``.
MAXIMUM_ANCESTORS = 16
_SUFFIXES = (".yaml", ".yml")


def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with eqdeploy, sorted."""
    return tuple(sorted(path.stem for path in _profile_folder().glob("*.yaml")))


def load_profile(reference: str) -> DeviceProfile:
    """Load a profile.

    Args:
        reference: Name of a shipped profile, or path of a YAML file.

    Raises:
        ProfileError: If there is no such profile or the file is invalid; names file, line and key.
    """
    content = _load_merged(_locate(reference, Path()), chain=())
    try:
        return DeviceProfile.model_validate_json(json.dumps(content.data))
    except ValidationError as error:
        raise _first_problem(error, content) from error


@dataclass
class _Content:
    """A profile file with its ancestors merged in.

    Attributes:
        file: Name of the file in messages.
        data: Keys and values.
        origin: File and line of every key.
    """

    file: str
    data: dict[str, Any]
    origin: dict[KeyPath, str]

    def place(self, path: KeyPath) -> str:
        """``file:line`` of the nearest key above or at a path that some file holds."""
        known = (path[:length] for length in range(len(path), 0, -1) if path[:length] in self.origin)
        nearest = next(known, None)
        return self.file if nearest is None else self.origin[nearest]

    def where(self, path: KeyPath) -> str:
        """``file:line: key path``."""
        while path and isinstance(path[-1], int) and path not in self.origin:
            path = path[:-1]  # the file has one value where a list is possible
        return f"{self.place(path)}: {dotted(path)}" if path else self.file


def _profile_folder() -> Path:
    """Folder of the shipped profiles."""
    return Path(str(resources.files("eqdeploy.profiles")))


def _locate(reference: str, folder: Path) -> Path:
    """Find the file of a reference; the name of a shipped profile goes first.

    Args:
        reference: Name or path.
        folder: What a relative path is relative to.
    """
    names = shipped_profiles()
    if reference in names:
        return _profile_folder() / f"{reference}.yaml"
    path = Path(os.path.normpath(folder / reference))
    if reference and _exists(path):
        return path
    if path.suffix in _SUFFIXES or os.sep in reference:
        raise ProfileError("there is no such file", where=str(path))
    raise ProfileError(
        f"there is no profile {reference!r}",
        hint=_suggest(reference, names, f"shipped profiles are {', '.join(names)}; a path of a YAML file works too"),
    )


def _exists(path: Path) -> bool:
    """Whether a file is there; a name that no file can have is not."""
    try:
        return path.exists()
    except OSError:
        return False


def _load_merged(path: Path, *, chain: tuple[Path, ...]) -> _Content:
    """Read a file and everything that it inherits from."""
    if path.resolve() in (earlier.resolve() for earlier in chain):
        names = " -> ".join(str(file) for file in (*chain, path))
        raise ProfileError(f"inherits from itself: {names}", where=str(chain[-1]))
    if len(chain) >= MAXIMUM_ANCESTORS:
        raise ProfileError(f"inherits over more than {MAXIMUM_ANCESTORS} files", where=str(chain[0]))
    document = read_document(path)
    own = _Content(str(path), document.data, {key: f"{path}:{line}" for key, line in document.lines.items()})
    if "inherits" not in own.data:
        return own
    reference = own.data.pop("inherits")
    if not isinstance(reference, str):
        raise ProfileError("must be the name of a shipped profile or a path", where=own.where(("inherits",)))
    try:
        location = _locate(reference, path.parent)
    except ProfileError as error:
        raise ProfileError(str(error), where=own.where(("inherits",))) from error
    merged = _load_merged(location, chain=(*chain, path))
    for key in OWN_KEYS:
        merged.data.pop(key, None)
        _replace_origin(merged, own, (key,))
    merged.file = own.file
    _merge(merged, own, merged.data, own.data, ())
    return merged


def _merge(merged: _Content, own: _Content, base: dict[str, Any], changes: dict[str, Any], path: KeyPath) -> None:
    """Merge the mapping at ``path`` in place: mappings merge, null removes, everything else replaces."""
    for key, value in changes.items():
        here = (*path, key)
        present = base.get(key)
        if isinstance(value, dict) and isinstance(present, dict):
            _merge(merged, own, present, value, here)
        elif here == ("sources",) and isinstance(value, list) and isinstance(present, list):
            _append_sources(merged, own, present, value)
        else:
            if value is not None:
                base[key] = value
            elif base.pop(key, None) is None:
                raise ProfileError("null removes an inherited key, but none is inherited", where=own.where(here))
            _replace_origin(merged, own, here)


def _replace_origin(merged: _Content, own: _Content, path: KeyPath) -> None:
    """Let everything at and below ``path`` come from ``own``."""

    def below(known: KeyPath) -> bool:
        return known[: len(path)] == path

    merged.origin = {known: place for known, place in merged.origin.items() if not below(known)}
    merged.origin |= {known: place for known, place in own.origin.items() if below(known)}


def _append_sources(merged: _Content, own: _Content, base: list[Any], added: list[Any]) -> None:
    """Evidence accumulates: what an ancestor claims still holds."""
    offset = len(base)
    base.extend(added)
    for known, place in own.origin.items():
        if known[0] == "sources" and len(known) > 1 and isinstance(known[1], int):
            merged.origin["sources", known[1] + offset, *known[2:]] = place


def _first_problem(error: ValidationError, content: _Content) -> ProfileError:
    """The most telling of pydantic's findings, in our words."""
    # A list of which no element is valid counts as too short a second time.
    problems = [found for found in error.errors() if not (found["type"] == "too_short" and found["input"])]
    # A misspelt key is also a missing one; saying that it is unknown helps more.
    problem = min(problems, key=lambda candidate: candidate["type"] != "extra_forbidden")
    path: KeyPath = tuple(part for part in problem["loc"] if part != "[key]")
    message, hint = _explain(problem, path)
    if problem["type"] == "combination":
        path += problem["ctx"]["key"]
    if len(problems) > 1:
        message += f"; {len(problems) - 1} more problem{'s' if len(problems) > 2 else ''} in this file"
    return ProfileError(message, where=content.where(path), hint=hint)


def _explain(problem: ErrorDetails, path: KeyPath) -> tuple[str, str | None]:
    """Message and hint for one finding."""
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "combination":
        return context["message"], context["hint"]
    if kind == "missing":
        return "the key is missing", None
    if kind == "extra_forbidden":
        allowed = _keys_at(path[:-1])
        return f"unknown key {path[-1]!r}", _suggest(str(path[-1]), allowed, f"known keys are {', '.join(allowed)}")
    if kind in ("enum", "literal_error"):
        allowed = tuple(context["expected"].replace("' or '", "', '").strip("'").split("', '"))
        return f"{_written(value)} is not possible", _suggest(str(value), allowed, f"possible are {', '.join(allowed)}")
    expected = _EXPECTED.get(kind)
    if expected is not None:
        hint = "YAML reads 1e-4 as text, write 1.0e-4" if kind == "float_type" and _is_number(value) else None
        return f"must be {expected}, got {_written(value)}", hint
    return problem["msg"][:1].lower() + problem["msg"][1:] + f", got {_written(value)}", None


_EXPECTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "mapping_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "string_too_short": "some text",
    "too_short": "a list of at least one",
}


def _is_number(value: object) -> bool:
    """Whether a text is a number that YAML 1.1 does not recognize."""
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _written(value: object) -> str:
    """A value as it would stand in the file, shortened."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggest(given: str, allowed: Iterable[str], otherwise: str) -> str:
    """Suggest the nearest name, and say what there is."""
    near = difflib.get_close_matches(given.lower(), list(allowed), n=1, cutoff=0.6)
    return f"did you mean {near[0]}? {otherwise}" if near else otherwise


def _keys_at(path: KeyPath) -> tuple[str, ...]:
    """Keys that the mapping at this place of a profile can have."""
    model: Any = DeviceProfile
    for part in path:
        if isinstance(part, str) and _is_model(model):
            model = next((info.annotation for name, info in _fields(model).items() if name == part), None)
        else:  # an element of a list, or an entry of a mapping by operator
            model = _innermost(model)
        if not _is_model(model) and _innermost(model) is None:
            return ()
    model = model if _is_model(model) else _innermost(model)
    extra = ("inherits",) if not path else ()
    return (*_fields(model), *extra) if _is_model(model) else ()


def _innermost(annotation: Any) -> type[BaseModel] | None:
    """The model inside ``tuple[Model, ...]``, ``Mapping[key, Model]`` or ``Model | None``."""
    for argument in get_args(annotation):
        found = argument if _is_model(argument) else _innermost(argument)
        if found is not None:
            return found
    return None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """Fields of a model by the name that files use."""
    return {info.alias or name: info for name, info in model.model_fields.items()}
