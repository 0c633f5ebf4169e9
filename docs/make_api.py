"""Write ``docs/api.md``, the reference of the public surface, from signatures and docstrings.

``python docs/make_api.py`` writes the page; a test compares it with what this would write.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import eqdeploy
from eqdeploy import api, errors
from eqdeploy.api.arguments import GIVEN_BY_PROFILE, SILENT
from eqdeploy.encoding_table import Encodings
from eqdeploy.pipeline import Artifact
from eqdeploy.quant.encoding import Encoding
from eqdeploy.report import ArtifactReport
from eqdeploy.results import EvaluationResult, ExportResult, ResolvedPlan, TrainingResult
from eqdeploy.search.outcome import SearchResult
from eqdeploy.supernet.checkpoint import Checkpoint
from eqdeploy.validation.accuracy import Accuracy

PAGE = Path(__file__).with_name("api.md")

#: What the functions answer, and what is in it.
ANSWERS: tuple[type, ...] = (
    ResolvedPlan,
    ExportResult,
    ArtifactReport,
    Artifact,
    Encodings,
    Encoding,
    EvaluationResult,
    Accuracy,
    TrainingResult,
    SearchResult,
    Checkpoint,
)

_DEFAULTS = {id(GIVEN_BY_PROFILE): "Gates()", id(SILENT): "SilentProgress()"}
_ORDER = ("supernets", "devices", "artifacts")
_LISTS = ("Args", "Attributes", "Raises")
_SECTION = re.compile(r"^(Args|Attributes|Example|Raises|Returns):$", re.MULTILINE)


def render() -> str:
    """The page as Markdown."""
    public = [getattr(eqdeploy, name) for name in eqdeploy.__all__ if name != "__version__"]
    functions = [value for value in public if inspect.isfunction(value)]
    functions.sort(key=_place)
    classes = [value for value in public if inspect.isclass(value) and value is not eqdeploy.EqDeployError]
    parts = ["# The public surface", "<!-- Written by docs/make_api.py: change the docstrings instead. -->"]
    parts += [*_docstring(api), "## Functions"]
    parts += [part for function in functions for part in _function(function)]
    parts += ["## What they take", *(part for value in classes for part in _class(value, _made_of(value)))]
    parts += ["## What they answer", *(part for value in ANSWERS for part in _class(value))]
    parts += ["## Errors", *_class(eqdeploy.EqDeployError), _errors()]
    return "\n\n".join(parts) + "\n"


def _place(function: Callable[..., Any]) -> tuple[int, int]:
    """Where a function stands: as one works, from the supernet to the artifact."""
    return _ORDER.index(function.__module__.rpartition(".")[2]), inspect.getsourcelines(function)[1]


def _function(function: Callable[..., Any]) -> Iterator[str]:
    """A heading, the signature and the docstring."""
    yield f"### `{function.__name__}`"
    yield f"```python\neqdeploy.{function.__name__}{_signature(function)}\n```"
    yield from _docstring(function)


def _made_of(value: type) -> str:
    """How an object of a class is made."""
    return f"```python\neqdeploy.{value.__name__}{_signature(value).removesuffix(' -> None')}\n```"


def _class(value: type, *signature: str) -> Iterator[str]:
    """A heading, the signature where there is one, the docstring, and what the class can do."""
    yield f"### `{value.__name__}`"
    yield from signature
    yield from _docstring(value)
    methods = [
        f"- `{name}{_call(member)}`: {_inline(_summary(member))}"
        for name, member in vars(value).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property | staticmethod))
    ]
    if methods:
        yield "Methods and properties:"
        yield "\n".join(methods)


def _call(member: Any) -> str:
    """Parentheses and answer of a method; the type of a property."""
    if isinstance(member, property):
        return f" -> {inspect.signature(member.fget).return_annotation}" if member.fget else ""
    function = member.__func__ if isinstance(member, staticmethod) else member
    signature = inspect.signature(function)
    listed = [name for name in signature.parameters if name != "self"]
    return f"({', '.join(listed)}) -> {signature.return_annotation}"


def _signature(function: Callable[..., Any]) -> str:
    """The signature with one parameter on a line."""
    signature = inspect.signature(function)
    lines: list[str] = []
    keywords = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords:
            lines, keywords = [*lines, "    *,"], True
        default = "" if parameter.default is parameter.empty else f" = {_default(parameter.default)}"
        lines.append(f"    {parameter.name}: {parameter.annotation}{default},")
    return "\n".join(["(", *lines, f") -> {signature.return_annotation}"])


def _default(value: object) -> str:
    """A default as it is written."""
    if isinstance(value, Path):
        return f'Path("{value.as_posix()}")'
    return _DEFAULTS.get(id(value)) or (f'"{value}"' if isinstance(value, str) else repr(value))


def _summary(value: object) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())


def _docstring(value: object) -> Iterator[str]:
    """The sections of a docstring in Google's style."""
    text, *sections = _SECTION.split(inspect.getdoc(value) or "")
    yield _inline(text.strip())
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        body = inspect.cleandoc(body)
        if title == "Example":
            yield f"```pycon\n{re.sub(r'  # doctest: .*', '', body)}\n```"
        elif title in _LISTS:
            yield f"{'Arguments' if title == 'Args' else title}:"
            yield "\n".join(_entries(body))
        else:
            yield f"{title}: {_inline(' '.join(body.split()))}"


def _entries(body: str) -> Iterator[str]:
    """Entries such as ``name: text``, whose further lines are indented."""
    for entry in re.split(r"\n(?=\S)", body):
        name, _, text = " ".join(entry.split()).partition(": ")
        yield f"- `{name}`: {_inline(text)}"


def _errors() -> str:
    """A table of all errors."""
    rows = [
        f"| `{error.__name__}` | {error.exit_code} | {_inline(_summary(error))} |"
        for error in errors.EqDeployError.__subclasses__()
        if error.__module__ == errors.__name__
    ]
    return "\n".join(["| in `eqdeploy.errors` | exit code of the command line | |", "|---|---|---|", *rows])


def _inline(text: str) -> str:
    """Markdown of a docstring's roles and literals."""
    text = re.sub(r":\w+:`~?(?:eqdeploy\.)?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
