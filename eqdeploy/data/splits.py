"""The names that splits of data sets go by."""

from __future__ import annotations

import re
from collections.abc import Iterable

from eqdeploy.errors import DataError

#: The splits, and the names of folders, archives and arrays that each goes by, in order of preference.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation", "eval", "evaluation"),
}

#: What stands around such a name: ``train_images``, ``images-train``, ``training_set``.
_DECORATED = re.compile(r"(?:images?[ _-])?([a-z]+?)(?:[ _-]?(?:images?|imgs?|set|data|dataset|split))?")


def split_word(name: str) -> str | None:
    """The name of a split that a folder or an archive bears, in any case, decorated or not; None if it bears none.

    ``"Train"`` gives ``"train"``, ``"val_images"`` gives ``"val"``, ``"trainer"`` gives None.
    """
    found = _DECORATED.fullmatch(name.lower())
    words = [] if found is None else [found[1], name.lower()]
    return next((word for word in words for known in SPLITS.values() if word in known), None)


def pick_split(names: Iterable[str], split: str, *, where: str) -> str | None:
    """The one of several names that stands for a split, None if none does.

    Args:
        names: Names of folders, archives or arrays.
        split: ``train`` or ``test``.
        where: What holds them, for messages.

    Raises:
        DataError: If two names stand for it equally well, such as ``Train`` and ``train``.
    """
    words = {name: split_word(name) for name in names}
    for wanted in SPLITS[split]:
        found = sorted(name for name, word in words.items() if word == wanted)
        exact = [name for name in found if name == wanted]
        if len(found) > 1 and not exact:
            raise DataError(
                f"{found[0]!r} and {found[1]!r} can both be the split {split!r}", where=where, hint="keep one of them"
            )
        if found:
            return (exact or found)[0]
    return None
