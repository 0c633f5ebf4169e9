"""Load device profiles: find the file, apply ``inherits``, validate, and say in one line what is wrong where."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eqdeploy.errors import ProfileError
from eqdeploy.profile_document import read_document
from eqdeploy.profile_fields import KeyPath
from eqdeploy.profile_problems import Content, Origin, explain, suggest
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
        raise explain(error, content) from error


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
        hint=suggest(reference, names, f"shipped profiles are {', '.join(names)}; a path of a YAML file works too"),
    )


def _exists(path: Path) -> bool:
    """Whether a file is there; a name that no file can have is not."""
    try:
        return path.exists()
    except OSError:
        return False


def _load_merged(path: Path, *, chain: tuple[Path, ...]) -> Content:
    """Read a file and everything that it inherits from."""
    if path.resolve() in (earlier.resolve() for earlier in chain):
        names = " -> ".join(str(file) for file in (*chain, path))
        raise ProfileError(f"inherits from itself: {names}", where=str(chain[-1]))
    if len(chain) >= MAXIMUM_ANCESTORS:
        raise ProfileError(f"inherits over more than {MAXIMUM_ANCESTORS} files", where=str(chain[0]))
    document = read_document(path)
    origins = {key: Origin(str(path), line, len(chain)) for key, line in document.lines.items()}
    own = Content(str(path), document.data, origins)
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


def _merge(merged: Content, own: Content, base: dict[str, Any], changes: dict[str, Any], path: KeyPath) -> None:
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


def _replace_origin(merged: Content, own: Content, path: KeyPath) -> None:
    """Let everything at and below ``path`` come from ``own``."""

    def below(known: KeyPath) -> bool:
        return known[: len(path)] == path

    merged.origin = {known: place for known, place in merged.origin.items() if not below(known)}
    merged.origin |= {known: place for known, place in own.origin.items() if below(known)}


def _append_sources(merged: Content, own: Content, base: list[Any], added: list[Any]) -> None:
    """Evidence accumulates: what an ancestor claims still holds."""
    offset = len(base)
    base.extend(added)
    for known, place in own.origin.items():
        if known[0] == "sources" and len(known) > 1 and isinstance(known[1], int):
            merged.origin["sources", known[1] + offset, *known[2:]] = place
