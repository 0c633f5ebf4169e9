"""Which folders are artifacts: whatever lies in one may come from anywhere."""

from __future__ import annotations

from pathlib import Path

MANIFEST_FILE = "manifest.json"

#: A manifest lists a handful of files; anything larger is not one.
MAXIMUM_BYTES = 16 << 20


def enclosing_artifact(directory: Path) -> Path | None:
    """The artifact that a folder is, or lies in; None if it lies in none.

    An artifact may come from anywhere, so nothing in it is obeyed or executed: no project file, no module. Its manifest
    is not checked here: a damaged one makes a folder no more trustworthy.

    Args:
        directory: Any folder.
    """
    absolute = directory.absolute()
    return next((folder for folder in (absolute, *absolute.parents) if _looks_like_artifact(folder)), None)


def _looks_like_artifact(folder: Path) -> bool:
    """Whether a folder holds a manifest of ours; other programs have files of that name."""
    try:
        with (folder / MANIFEST_FILE).open("rb") as stream:
            content = stream.read(MAXIMUM_BYTES)
    except OSError:
        return False
    return b'"artifact"' in content and b'"eqdeploy"' in content
