"""Device profiles: load one by name or path, list those that come with eqdeploy, publish the JSON Schema."""

from __future__ import annotations

import copy
from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import CoreSchema

from eqdeploy.profile_loading import OWN_KEYS, load_profile, shipped_profiles
from eqdeploy.profile_schema import DeviceProfile

__all__ = ["DeviceProfile", "load_profile", "profile_json_schema", "shipped_profiles"]

_CHANGES = "Changes"


def profile_json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a profile file.

    A file without ``inherits`` is complete. A file with it names only what differs, and null removes a key; so
    every mapping is defined a second time with nothing required.
    """
    whole = DeviceProfile.model_json_schema(by_alias=True, schema_generator=_Untitled)
    definitions: dict[str, Any] = whole.pop("$defs")
    mappings = {name: schema for name, schema in definitions.items() if schema.get("type") == "object"}
    changes = {f"{name}{_CHANGES}": _changes(schema, mappings) for name, schema in mappings.items()}
    properties = _changes({"properties": whole["properties"]}, mappings)["properties"]
    own = {key: whole["properties"][key] for key in OWN_KEYS}
    inherits = {"type": "string", "description": "A shipped profile, or a path relative to this file."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "eqdeploy device profile",
        "description": "See docs/profiles.md.",
        "type": "object",
        "if": {"required": ["inherits"]},
        "then": {
            "properties": {**properties, **own, "inherits": inherits},
            "required": [*OWN_KEYS, "inherits"],
            "additionalProperties": False,
        },
        "else": {"properties": whole["properties"], "required": whole["required"], "additionalProperties": False},
        "$defs": dict(sorted({**definitions, **changes}.items())),
    }


class _Untitled(GenerateJsonSchema):
    """Leaves out titles that only repeat the key."""

    def field_title_should_be_set(self, schema: CoreSchema | Any) -> bool:
        return False


def _changes(schema: dict[str, Any], mappings: dict[str, Any]) -> dict[str, Any]:
    """Copy the definition of a mapping so that every key may be absent, or null to remove it."""
    part: dict[str, Any] = _refer_to_changes(copy.deepcopy(schema), mappings)
    part.pop("required", None)
    for name, value in part.get("properties", {}).items():
        if isinstance(value.get("additionalProperties"), dict):
            value["additionalProperties"] = _or_null(value["additionalProperties"])
        part["properties"][name] = _or_null(value)
    return part


def _refer_to_changes(node: Any, mappings: dict[str, Any]) -> Any:
    """Point references to mappings at their copies; elements of lists replace, so they stay complete."""
    if not isinstance(node, dict):
        return [_refer_to_changes(value, mappings) for value in node] if isinstance(node, list) else node
    result = {key: value if key == "items" else _refer_to_changes(value, mappings) for key, value in node.items()}
    if str(result.get("$ref", "")).rpartition("/")[2] in mappings:
        result["$ref"] += _CHANGES
    return result


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    alternatives = schema.get("anyOf", [schema])
    return schema if {"type": "null"} in alternatives else {"anyOf": [schema, {"type": "null"}]}
