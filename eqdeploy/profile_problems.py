"""What is wrong with a profile: every finding in our words, at the file and line of whoever wrote it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from eqdeploy.errors import ProfileError
from eqdeploy.profile_document import dotted
from eqdeploy.profile_fields import KeyPath
from eqdeploy.profile_schema import DeviceProfile
from eqdeploy.yaml_file import together


@dataclass(frozen=True)
class Origin:
    """Where a key was written.

    Attributes:
        file: Name of the file in messages.
        line: Its line, counted from 1.
        ancestry: 0 for the file that was asked for, 1 for what it inherits from, and so on.
    """

    file: str
    line: int
    ancestry: int

    def __str__(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}"


@dataclass
class Content:
    """A profile file with its ancestors merged in.

    Attributes:
        file: Name of the file in messages.
        data: Keys and values.
        origin: Where every key was written.
    """

    file: str
    data: dict[str, Any]
    origin: dict[KeyPath, Origin]

    def where(self, path: KeyPath) -> str:
        """``file:line: key path``."""
        while path and isinstance(path[-1], int) and path not in self.origin:
            path = path[:-1]  # the file has one value where a list is possible
        return f"{self._nearest(path) or self.file}: {dotted(path)}" if path else self.file

    def written_last(self, keys: Iterable[KeyPath]) -> KeyPath:
        """Of keys that contradict each other, the one that the youngest file holds: the others were there before it.

        Among those of one file it is the first; a key that no file holds has its default, and contradicts nobody.
        """
        present = [key for key in keys if key in self.origin]
        return min(present, key=lambda key: self.origin[key].ancestry, default=next(iter(keys)))

    def _nearest(self, path: KeyPath) -> Origin | None:
        """Origin of the nearest key above or at a path that some file holds."""
        known = (path[:length] for length in range(len(path), 0, -1) if path[:length] in self.origin)
        nearest = next(known, None)
        return None if nearest is None else self.origin[nearest]


def explain(error: ValidationError, content: Content) -> ProfileError:
    """All of pydantic's findings, in our words, the most telling one first."""
    # A list of which no element is valid counts as too short a second time.
    problems = [found for found in error.errors() if not (found["type"] == "too_short" and found["input"])]
    misspelt = {meant for found in problems for meant in _meant(found)}
    problems = [found for found in problems if not (found["type"] == "missing" and found["loc"] in misspelt)]
    # Saying that a key is unknown helps more than what follows from it.
    problems.sort(key=lambda found: found["type"] != "extra_forbidden")
    return together([_problem(found, content) for found in problems])


def _meant(problem: ErrorDetails) -> tuple[tuple[int | str, ...], ...]:
    """The key that was probably meant by one that is unknown: it is not missing besides."""
    path = problem["loc"]
    if problem["type"] != "extra_forbidden":
        return ()
    return tuple((*path[:-1], near) for near in _near(str(path[-1]), _keys_at(path[:-1])))


def _problem(problem: ErrorDetails, content: Content) -> ProfileError:
    """One finding with its place."""
    path: KeyPath = tuple(part for part in problem["loc"] if part != "[key]")
    message, hint = _explain(problem, path)
    if problem["type"] == "combination":
        context = problem["ctx"]
        path = content.written_last([(*path, *key) for key in (context["key"], *context["others"])])
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
        return f"unknown key {path[-1]!r}", suggest(str(path[-1]), allowed, f"known keys are {', '.join(allowed)}")
    if kind in ("enum", "literal_error"):
        allowed = tuple(context["expected"].replace("' or '", "', '").strip("'").split("', '"))
        return f"{_written(value)} is not possible", suggest(str(value), allowed, f"possible are {', '.join(allowed)}")
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


def suggest(given: str, allowed: Iterable[str], otherwise: str) -> str:
    """Suggest the nearest name, and say what there is."""
    near = _near(given, allowed)
    return f"did you mean {near[0]}? {otherwise}" if near else otherwise


def _near(given: str, allowed: Iterable[str]) -> list[str]:
    """The nearest name, if one is near."""
    return difflib.get_close_matches(given.lower(), list(allowed), n=1, cutoff=0.6)


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
