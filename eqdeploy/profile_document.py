"""Read one profile file as plain data with the line of every key, and refuse what no profile needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from eqdeploy.errors import ProfileError
from eqdeploy.profile_fields import KeyPath
from eqdeploy.yaml_file import read_yaml

#: Bounds that no honest file comes near. Nodes are counted with aliases expanded.
MAXIMUM_NODES = 20_000
MAXIMUM_DEPTH = 24

_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq"))
_TEXT_TAG = "tag:yaml.org,2002:str"


@dataclass(frozen=True)
class ProfileDocument:
    """One parsed file.

    Attributes:
        data: Mappings, lists, text, numbers, booleans and None only; nothing occurs in two places.
        lines: 1-based line of every key and list element, by its path from the top.
    """

    data: dict[str, Any]
    lines: Mapping[KeyPath, int]


def read_document(path: Path) -> ProfileDocument:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ProfileError: If the file cannot be read, is no UTF-8 or no YAML, or holds a key twice, a key that is
            not text, a date, a YAML type, endless aliases, or anything but one mapping.
    """
    if path.exists() and not path.is_file():
        raise ProfileError("is not a file", where=str(path))
    data, node = read_yaml(path)
    if node is None:
        raise ProfileError("the file is empty", where=str(path))
    if not isinstance(node, yaml.MappingNode):
        raise ProfileError("must hold keys and values at the top level", where=str(path))
    walk = _Walk(str(path))
    walk.visit(node, ())
    # Aliases make PyYAML return one object in several places; a profile that inherits changes only one of them.
    return ProfileDocument(data=json.loads(json.dumps(data)), lines=walk.lines)


@dataclass
class _Walk:
    """Visits a parsed file as the tree that it means, aliases expanded."""

    file: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    nodes: int = 0

    def visit(self, node: yaml.Node, path: KeyPath) -> None:
        self.nodes += 1
        if self.nodes > MAXIMUM_NODES:
            raise self._error(node, (), f"holds more than {MAXIMUM_NODES} values, aliases expanded")
        if len(path) > MAXIMUM_DEPTH:
            raise self._error(node, (), f"is nested deeper than {MAXIMUM_DEPTH} levels")
        if node.tag not in _PLAIN_TAGS:
            raise self._unexpected_tag(node, path)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.tag != _TEXT_TAG:
                    written = f" {key.value!r}" if isinstance(key, yaml.ScalarNode) else ""
                    raise self._error(key, path, f"the key{written} is not text", "put it in quotes")
                self.lines[(*path, key.value)] = key.start_mark.line + 1
                self.visit(value, (*path, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for position, element in enumerate(node.value):
                self.lines[(*path, position)] = element.start_mark.line + 1
                self.visit(element, (*path, position))

    def _unexpected_tag(self, node: yaml.Node, path: KeyPath) -> ProfileError:
        if node.tag == "tag:yaml.org,2002:timestamp":
            return self._error(node, path, f"{node.value} is read as a date", "put it in quotes")
        return self._error(node, path, f"the YAML type {node.tag.rsplit(':', 1)[-1]} is not allowed")

    def _error(self, node: yaml.Node, path: KeyPath, message: str, hint: str | None = None) -> ProfileError:
        where = f"{self.file}:{node.start_mark.line + 1}"
        return ProfileError(message, where=f"{where}: {dotted(path)}" if path else where, hint=hint)


def dotted(path: KeyPath) -> str:
    """Write a path as people do.

    >>> dotted(("operators", "fused", 0, 1))
    'operators.fused[0][1]'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
