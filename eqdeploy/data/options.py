"""How data are loaded, as far as it does not change what is in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from eqdeploy.errors import UsageError
from eqdeploy.progress import Progress, SilentProgress

#: What to do about an image that cannot be read: stop, or leave it out and say so.
DataErrors = Literal["fatal", "skip"]


@dataclass(frozen=True)
class LoadOptions:
    """How data are loaded.

    Attributes:
        errors: What happens when an image file cannot be read: ``"fatal"`` raises an error that names it,
            ``"skip"`` leaves it out and reports the number and the first names.
        cache: Where decoded images are kept: ``"auto"`` for the user's cache folder from a size on where it pays,
            ``"off"``, or a folder. See :mod:`eqdeploy.data.cache`.
        threads: Threads that decode, None for one for each processor that this process may use.
        run_code: Whether a reference ``module:function`` may be imported and called. Only for references that
            the user gives on the command line, never for those in a file.
        progress: Who listens.

    Raises:
        UsageError: If a value is none of these.
    """

    errors: DataErrors = "fatal"
    cache: str = "auto"
    threads: int | None = None
    run_code: bool = False
    progress: Progress = field(default_factory=SilentProgress)

    def __post_init__(self) -> None:
        if self.errors not in get_args(DataErrors):
            raise UsageError(f"no such way to treat unreadable images: {self.errors!r}", hint="'fatal' or 'skip'")
        if not self.cache:
            raise UsageError("the name of the cache folder is empty", hint="'auto', 'off' or a folder")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"{self.threads} threads cannot decode", hint="at least one")
