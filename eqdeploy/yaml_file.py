"""Reading YAML files that people write into pydantic models, with errors that name file, line and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from eqdeploy.errors import EqDeployError, ProfileError
from eqdeploy.files import read_bounded

#: Nobody writes a larger file by hand.
MAXIMUM_BYTES = 1 << 20

#: Values and keys of a document in which every alias is replaced by what it stands for.
_MAXIMUM_VALUES = 1 << 20

_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
_LONGEST_NUMBER = 128

Model = TypeVar("Model", bound=BaseModel)


def read_yaml(path: Path, error: type[EqDeployError] = ProfileError) -> tuple[Any, yaml.Node | None]:
    """Read a YAML document without running anything from it.

    Args:
        path: The file.
        error: What to raise when it cannot be read.

    Returns:
        The document as plain data, and its syntax tree, which knows line numbers.

    Raises:
        EqDeployError: The given ``error``, if the file is missing, not UTF-8, not YAML, or too large, also with all
            aliases written out.
    """
    content = read_bounded(path, MAXIMUM_BYTES, error)
    try:
        loader = yaml.SafeLoader(content.decode("utf-8"))
        node = loader.get_single_node()
        _refuse_repeated_keys(node)
        _refuse_many_values(node)
        _refuse_long_numbers(node)
        return (None if node is None else loader.construct_document(node)), node
    except UnicodeDecodeError as reason:
        raise error("not a text file in UTF-8", where=str(path)) from reason
    except yaml.MarkedYAMLError as reason:
        mark = reason.problem_mark
        where = str(path) if mark is None else f"{path}:{mark.line + 1}"
        raise error(
            ", ".join(filter(None, (reason.context, reason.problem))) or "not valid YAML", where=where
        ) from reason
    except (yaml.YAMLError, ValueError, LookupError) as reason:  # PyYAML's converters let the last two through
        raise error(f"not valid YAML: {reason}", where=str(path)) from reason
    except RecursionError as reason:
        raise error("nested too deeply", where=str(path)) from reason


def read_yaml_model(path: Path, model: type[Model], error: type[EqDeployError] = ProfileError) -> Model:
    """Read a YAML file into a model.

    Args:
        path: The file; an empty one stands for ``{}``.
        model: What it must look like.
        error: What to raise when it does not.

    Raises:
        EqDeployError: The given ``error``, naming file, line and key of everything that is wrong.
    """
    document, node = read_yaml(path, error)
    document = {} if document is None else document
    if not isinstance(document, dict):
        raise error("must hold keys and values", where=str(path))
    try:
        return model.model_validate(document)
    except ValidationError as reason:
        known = tuple(model.model_fields)
        findings = reason.errors(include_url=False)
        raise together([_explain(finding, path, node, known, error) for finding in findings]) from reason


Error = TypeVar("Error", bound=EqDeployError)

#: Problems of one file that are listed; nobody mends more at once.
_MOST_LISTED = 40

#: ``file:line: key``, the line and what follows it being the rest.
_PLACE = re.compile(r"(?P<file>.*?):(?P<rest>[0-9]+(?::.*)?)$", re.DOTALL)


def together(problems: Sequence[Error]) -> Error:
    """One error that lists several, each with its place.

    Args:
        problems: At least one; the first gives the place of the whole.
    """
    first, *others = problems[:_MOST_LISTED]
    if not others:
        return first
    hint = f" ({first.hint})" if first.hint else ""
    listed = "".join(f"; also {_briefly(other, first)}" for other in others)
    more = len(problems) - _MOST_LISTED
    rest = f"; and {more} more" if more > 0 else ""
    return type(first)(f"{first.message}{hint}{listed}{rest}", where=first.where)


def _briefly(problem: EqDeployError, first: EqDeployError) -> str:
    """A problem with its place; of the file that was named already, the line is enough."""
    named, place = (_PLACE.match(item.where or "") for item in (first, problem))
    if named is None or place is None or named["file"] != place["file"]:
        return str(problem)
    return str(type(problem)(problem.message, where=f"line {place['rest']}", hint=problem.hint))


def suggest(word: str, known: tuple[str, ...]) -> str | None:
    """Suggest what a misspelt word may have meant.

    >>> suggest("profile", ("profiles", "data"))
    "did you mean 'profiles'?"
    """
    matches = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {matches[0]!r}?" if matches else None


def line_of(node: yaml.Node | None, location: tuple[str | int, ...]) -> int | None:
    """Line, counted from 1, of the innermost part of ``location`` that the syntax tree holds.

    Args:
        node: Syntax tree of the document.
        location: Keys and indices from the root.
    """
    line = None
    for step in location:
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
            if str(step) not in pairs:
                break
            key, node = pairs[str(step)]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _refuse_repeated_keys(root: yaml.Node | None) -> None:
    """Refuse a key that occurs twice in one mapping; YAML itself would keep the last one silently.

    Raises:
        yaml.MarkedYAMLError: If there is one.
    """
    pending, visited = [root], set[int]()
    while pending:
        node = pending.pop()
        if id(node) in visited:  # an alias, possibly to a node around it
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            pending.extend(value for _, value in node.value)
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)


def _refuse_many_values(root: yaml.Node | None) -> None:
    """Refuse a document that is small only because of aliases to aliases to aliases: written out it fills the memory.

    Raises:
        yaml.MarkedYAMLError: If it is.
    """
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = 1  # an alias to a node around it is found when it is written out
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            flat = (part for pair in parts for part in pair) if isinstance(node, yaml.MappingNode) else parts
            sizes[id(node)] += sum(map(size, flat))
            if sizes[id(node)] > _MAXIMUM_VALUES:
                raise yaml.MarkedYAMLError(
                    problem=f"more than {_MAXIMUM_VALUES:,} values with all aliases written out",
                    problem_mark=node.start_mark,
                )
        return sizes[id(node)]

    if root is not None:
        size(root)


def _refuse_long_numbers(root: yaml.Node | None) -> None:
    """Refuse numbers of more characters than any number needs, also in hexadecimal and to the base of 60.

    Python neither prints integers of thousands of digits nor turns them into floats.

    Raises:
        yaml.MarkedYAMLError: If there is one.
    """
    pending, visited = [root], set[int]()
    while pending:
        node = pending.pop()
        if node is None or id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            pending.extend(part for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            pending.extend(node.value)
        elif node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise yaml.MarkedYAMLError(
                problem=f"a number of {len(node.value)} characters", problem_mark=node.start_mark
            )


def _explain(
    finding: ErrorDetails, path: Path, node: yaml.Node | None, known: tuple[str, ...], error: type[EqDeployError]
) -> EqDeployError:
    """Turn a finding of pydantic into one of our errors."""
    location = finding["loc"]
    key = ".".join(str(step) for step in location)
    line = line_of(node, location)
    where = f"{path}:{line}: {key}" if line else f"{path}: {key}"
    if finding["type"] == "extra_forbidden":
        name = str(location[-1])
        hint = suggest(name, known) or f"known keys: {', '.join(known)}"
        return error(f"unknown key {name!r}", where=where, hint=hint)
    message = finding["msg"].removeprefix("Value error, ")
    return error(f"{message[:1].lower()}{message[1:]}, got {_short(finding['input'])}", where=where)


def _short(value: object) -> str:
    """Show a value in few characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
