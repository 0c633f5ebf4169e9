"""What an exporter is, how one is found by name, and the check that every export must pass.

An exporter is a pure transformation from a :class:`~eqdeploy.quantized_model.QuantizedModel` to files, together
with a reader that recovers every encoding from those files alone. Exporters of other packages are found through
the entry point group ``eqdeploy.exporters``; ``eqdeploy.testing.ExporterContract`` holds the tests they must pass.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import MissingDependencyError, ProfileError, ValidationError
from eqdeploy.plan import DevicePlan
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quantized_model import QuantizedModel

ENTRY_POINT_GROUP = "eqdeploy.exporters"

_BUILT_IN = {
    "onnx_qdq": EntryPoint("onnx_qdq", "eqdeploy.exporters.onnx_qdq:OnnxQdqExporter", ENTRY_POINT_GROUP),
    "snpe": EntryPoint("snpe", "eqdeploy.exporters.snpe:SnpeExporter", ENTRY_POINT_GROUP),
    "tensorrt": EntryPoint("tensorrt", "eqdeploy.exporters.tensorrt:TensorRtExporter", ENTRY_POINT_GROUP),
}


@dataclass(frozen=True, eq=False)
class RecoveredEncodings:
    """Every encoding that a reader found in the files of one export.

    Attributes:
        activations: Encodings by tensor name.
        parameters: Codes and encoding by initializer name. The codes are int32 in the shape of the initializer,
            or None where the format holds no integers from which they could be recovered exactly.
    """

    activations: dict[str, Encoding] = field(default_factory=dict)
    parameters: dict[str, tuple[NDArray[np.int32] | None, Encoding]] = field(default_factory=dict)

    @staticmethod
    def of(model: QuantizedModel) -> RecoveredEncodings:
        """The encodings of a model itself, as a reader that loses nothing would recover them."""
        return RecoveredEncodings(
            activations={name: tensor.encoding for name, tensor in model.activations.items()},
            parameters={name: (parameter.codes, parameter.encoding) for name, parameter in model.parameters.items()},
        )


@runtime_checkable
class Exporter(Protocol):
    """Writes one format and reads its own files back.

    A protocol and not a base class, so that another package can provide one without inheriting from this one.
    """

    @property
    def name(self) -> str:
        """Name by which profiles choose the exporter."""
        ...

    def describe(self) -> str:
        """What the exporter writes and what its format cannot hold, in one paragraph."""
        ...

    def export(self, model: QuantizedModel, directory: Path, options: Mapping[str, object]) -> tuple[str, ...]:
        """Write the files of one model.

        Args:
            model: The frozen network; it is left unchanged.
            directory: Folder that exists, is empty and belongs to the caller.
            options: Options of the exporter by name, as a profile gives them under ``export.options``, and ``opset``
                from the profile's ``runtime.opset``.

        Returns:
            Paths of every file written, relative to ``directory``, with forward slashes.

        Raises:
            ProfileError: If an option is unknown or wrong, or the format cannot hold what the profile asks for.
            ValidationError: If the model contradicts itself.
            OutputError: If a file cannot be written.
        """
        ...

    def read(self, directory: Path) -> RecoveredEncodings:
        """Recover every encoding from what :meth:`export` wrote, and from nothing else.

        Raises:
            ValidationError: If a file is missing, damaged or inconsistent.
        """
        ...


@runtime_checkable
class EarlyChecks(Protocol):
    """What an exporter may have besides: it refuses at once what :meth:`Exporter.export` would refuse after all work.

    Neither replaces a check of the model: what only its numbers or its graph can show is refused by ``export``.
    """

    def check_options(self, options: Mapping[str, object]) -> None:
        """Check options before anything is loaded.

        Args:
            options: As :meth:`Exporter.export` gets them.

        Raises:
            ProfileError: If an option is unknown or wrong.
        """
        ...

    def check_plan(self, plan: DevicePlan, options: Mapping[str, object]) -> None:
        """Check a plan, in which forms are decided and no number is, before images are read.

        Args:
            plan: What the device gets for every layer and tensor of the network.
            options: As :meth:`Exporter.export` gets them.

        Raises:
            ProfileError: If the format cannot hold it, whatever the numbers; names layer or tensor, and the profile's
                key.
        """
        ...


def get_exporter(name: str) -> Exporter:
    """Make the exporter of that name.

    Args:
        name: A built-in exporter or one that an installed package registers under ``eqdeploy.exporters``.

    Raises:
        ProfileError: If there is no such exporter, two packages claim the name, or what is registered under it
            is no exporter.
        MissingDependencyError: If the package that registers it cannot be imported.
    """
    entries = _entries()
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(entries))}"
        raise ProfileError(f"there is no exporter {name!r}", hint=hint)
    exporter: object = _load(entries[name])
    if not isinstance(exporter, Exporter):
        raise ProfileError(
            f"what {entries[name].value} makes is no exporter",
            where=f"entry point {ENTRY_POINT_GROUP}: {name}",
            hint="it needs name, describe(), export() and read(); see docs/adding-an-exporter.md",
        )
    if exporter.name != name:
        raise ProfileError(
            f"the exporter calls itself {exporter.name!r}", where=f"entry point {ENTRY_POINT_GROUP}: {name}"
        )
    return exporter


def exporter_names() -> tuple[str, ...]:
    """Names of all exporters, built-in and installed, in alphabetical order.

    Raises:
        ProfileError: If two packages claim one name.
    """
    return tuple(sorted(_entries()))


def export_checked(
    exporter: Exporter, model: QuantizedModel, directory: Path, options: Mapping[str, object]
) -> tuple[str, ...]:
    """Export a model and prove that the files hold what the model holds.

    Args:
        exporter: Any exporter.
        model: The frozen network.
        directory: Folder that exists, is empty and belongs to the caller.
        options: Options of the exporter by name.

    Returns:
        Paths of every file written, relative to ``directory``.

    Raises:
        ValidationError: If the exporter wrote other files than it says, or its reader recovers other encodings.
    """
    files = exporter.export(model, directory, options)
    present = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    if sorted(files) != present:
        raise ValidationError(f"wrote {present} but reports {sorted(files)}", where=f"exporter {exporter.name}")
    check_round_trip(model, exporter.read(directory))
    return files


def check_round_trip(model: QuantizedModel, recovered: RecoveredEncodings) -> None:
    """Check that a reader recovered exactly what the model holds.

    Scales must agree in every bit, zero-points, ranges, widths, axes and integer codes exactly.

    Raises:
        ValidationError: If something differs; names the first tensor in the model's order and what differs.
    """
    expected = RecoveredEncodings.of(model)
    _check_names("activation", list(expected.activations), list(recovered.activations))
    _check_names("parameter", list(expected.parameters), list(recovered.parameters))
    for name, encoding in expected.activations.items():
        _check_encoding(name, encoding, recovered.activations[name])
    for name, (codes, encoding) in expected.parameters.items():
        read_codes, read_encoding = recovered.parameters[name]
        _check_encoding(name, encoding, read_encoding)
        if codes is not None and read_codes is not None and not np.array_equal(codes, read_codes):
            differing = int(np.sum(codes != read_codes)) if codes.shape == read_codes.shape else codes.size
            raise ValidationError(f"{differing} of {codes.size} integer codes differ in the files", where=name)


def _check_names(kind: str, expected: list[str], found: list[str]) -> None:
    """Compare the sets of names, keeping the model's order for the message."""
    missing = [name for name in expected if name not in set(found)]
    if missing:
        raise ValidationError(f"the files hold no encoding for this {kind}", where=missing[0])
    surplus = [name for name in found if name not in set(expected)]
    if surplus:
        raise ValidationError(f"the files hold an encoding for a {kind} that has none in the model", where=surplus[0])


def _check_encoding(name: str, expected: Encoding, found: Encoding) -> None:
    """Name the first property in which two encodings differ."""
    if expected.equals(found):
        return
    for key in ("scale", "zero_point", "q_min", "q_max", "bits", "signed", "axis"):
        left, right = getattr(expected, key), getattr(found, key)
        if not np.array_equal(left, right):
            raise ValidationError(f"{key} is {_short(left)} in the model and {_short(right)} in the files", where=name)


def _short(value: object) -> str:
    """Write a value on one line, long arrays by their first elements."""
    if not isinstance(value, np.ndarray):
        return str(value)
    text = ", ".join(repr(element) for element in value.reshape(-1)[:4].tolist())
    return text if value.size <= 4 else f"{text}, … ({value.size} values)"


def _entries() -> dict[str, EntryPoint]:
    """Collect built-in and installed exporters; a name that is claimed twice is an error, not a choice."""
    installed = tuple(entry_points(group=ENTRY_POINT_GROUP))
    entries = dict(_BUILT_IN)
    claims = Counter([*entries, *(entry.name for entry in installed)])
    for name, count in claims.items():
        if count > 1:
            owners = ", ".join([entry.value for entry in (*_BUILT_IN.values(), *installed) if entry.name == name])
            raise ProfileError(
                f"the exporter name {name!r} is claimed {count} times: {owners}",
                where=f"entry point group {ENTRY_POINT_GROUP}",
                hint="uninstall one of the packages",
            )
    entries.update((entry.name, entry) for entry in installed)
    return entries


def _load(entry: EntryPoint) -> object:
    """Import an entry point and call it without arguments."""
    where = f"entry point {ENTRY_POINT_GROUP}: {entry.name}"
    try:
        factory = entry.load()
    except ImportError as error:
        raise MissingDependencyError(f"cannot import {entry.module}: {error}", where=where) from error
    except AttributeError as error:
        raise ProfileError(f"{entry.module} has no {entry.attr}", where=where) from error
    if not callable(factory):
        raise ProfileError(f"{entry.value} is not a class or function that makes an exporter", where=where)
    return factory()
