"""Measurements of subnets in a folder: lines that are only ever appended, safe against a kill at any moment.

``header.json`` says what was measured how; ``measurements-<process>.jsonl`` has one line for each subnet. Subnets are
written as indices into the header's table of forms: 200 bytes a line, and readable without the network.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from eqdeploy.errors import DataError, OutputError, UsageError
from eqdeploy.files import read_bounded, write_atomically
from eqdeploy.json_file import parse_json_model
from eqdeploy.network import NetworkDescription
from eqdeploy.quant.form import Form
from eqdeploy.search.encoding import Column, SubnetEncoding
from eqdeploy.search.measurement import Score, SubnetMeasurement
from eqdeploy.subnet import SubnetConfig

HEADER_FILE = "header.json"
_PATTERN = "measurements-*.jsonl"
_MAXIMUM_HEADER_BYTES = 16 << 20
_MAXIMUM_FILE_BYTES = 1 << 30

Index = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    """Strict, immutable part of a store."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Source(_Part):
    """Something that was used, by name and content.

    Attributes:
        name: For people.
        digest: SHA-256.
    """

    name: str
    digest: Digest


class StoreHeader(_Part):
    """What was measured how.

    Attributes:
        format: Kind of folder.
        version: Version of this layout.
        supernet: The checkpoint.
        data: The training images.
        calibration_images: Number of images that BatchNorm was calibrated on.
        images: Number of images that subnets were judged on.
        seed: Seed of the images and of the subnets.
        compiled: Whether a compiled graph judged.
        layers: Names of the layers.
        tensors: Names of the trained tensors.
        forms: Keys of the forms that occur.
        columns: Columns of the encoding of subnets, see :class:`~eqdeploy.search.encoding.SubnetEncoding`.
        versions: Versions of the programs that began the store.
    """

    format: Literal["eqdeploy-measurements"] = "eqdeploy-measurements"
    version: Literal[1] = 1
    supernet: Source
    data: Source
    calibration_images: Annotated[int, Field(ge=2)]
    images: Annotated[int, Field(ge=2)]
    seed: Annotated[int, Field(ge=0)]
    compiled: bool
    layers: tuple[str, ...]
    tensors: tuple[str, ...]
    forms: tuple[str, ...]
    columns: tuple[tuple[str, str, str, str], ...]
    versions: dict[str, str]

    @property
    def encoding(self) -> SubnetEncoding:
        """The encoding of the subnets."""
        return SubnetEncoding(self.layers, self.tensors, tuple(Column(*column) for column in self.columns))


class _Line(_Part):
    """One measurement as it is written."""

    digest: Digest
    weights: tuple[Index, ...]
    activations: tuple[Index, ...]
    correct: tuple[Index, Index]
    images: tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
    cross_entropy: tuple[
        Annotated[float, Field(ge=0, allow_inf_nan=False)], Annotated[float, Field(ge=0, allow_inf_nan=False)]
    ]


class SpaceTables(TypedDict):
    """The part of a header that follows from the network."""

    layers: tuple[str, ...]
    tensors: tuple[str, ...]
    forms: tuple[str, ...]
    columns: tuple[tuple[str, str, str, str], ...]


def space_tables(network: NetworkDescription) -> SpaceTables:
    """The part of a header that follows from the network."""
    encoding = SubnetEncoding.of(network)
    forms = [
        *network.space.weight_forms(),
        *(form for sign in (False, True) for form in network.space.activation_forms(non_negative=sign)),
    ]
    return {
        "layers": encoding.layers,
        "tensors": encoding.tensors,
        "forms": tuple(dict.fromkeys(form.key for form in forms)),
        "columns": tuple((c.role, c.name, c.aspect, c.value) for c in encoding.columns),
    }


class MeasurementStore:
    """A folder of measurements that belong to one header.

    Attributes:
        folder: The folder.
        header: What was measured how.
    """

    def __init__(self, folder: Path, header: StoreHeader) -> None:
        self.folder = folder
        self.header = header
        self._forms = tuple(Form.from_key(key) for key in header.forms)
        self._index = {form: index for index, form in enumerate(self._forms)}

    @staticmethod
    def open(folder: Path) -> MeasurementStore:
        """Open an existing store.

        Raises:
            DataError: If there is none, or its header is damaged.
        """
        path = folder / HEADER_FILE
        if not path.is_file():
            raise DataError("no measurements", where=str(folder), hint="eqdeploy sample makes them")
        content = read_bounded(path, _MAXIMUM_HEADER_BYTES, DataError)
        header = parse_json_model(content, StoreHeader, "a header of measurements", str(path), DataError)
        try:
            return MeasurementStore(folder, header)
        except ValueError as error:
            raise DataError(str(error), where=f"{path}: forms") from error

    @staticmethod
    def create(folder: Path, header: StoreHeader) -> MeasurementStore:
        """Open a store, or make it if there is none.

        Raises:
            UsageError: If there is one of something else: another supernet, other images, another space.
            DataError: If its header is damaged.
            OutputError: If the folder cannot be written to or holds something else.
        """
        if (folder / HEADER_FILE).exists():
            store = MeasurementStore.open(folder)
            store.require(header)
            return store
        if folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
            raise OutputError("exists and holds no measurements", where=str(folder), hint="name another folder")
        text = json.dumps(header.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / HEADER_FILE, text.encode())
        return MeasurementStore(folder, header)

    def require(self, header: StoreHeader) -> None:
        """Make sure that measurements as another header describes them belong here.

        Raises:
            UsageError: If not; names what differs, as it is in the store and as it was asked for.
        """
        self.require_sources(header.supernet, header.data)
        for name in ("calibration_images", "images", "seed"):
            own, other = getattr(self.header, name), getattr(header, name)
            if own != other:
                raise UsageError(
                    f"was measured with {name} {own}, not {other}",
                    where=str(self.folder),
                    hint=f"ask for --{name.replace('_', '-')} {own}, or name another folder",
                )
        if any(
            getattr(self.header, name) != getattr(header, name) for name in ("layers", "tensors", "forms", "columns")
        ):
            raise UsageError("holds measurements of another network", where=str(self.folder))

    def require_sources(self, supernet: Source, data: Source) -> None:
        """Make sure that the measurements are of a supernet on a data set.

        Raises:
            UsageError: If not; names both digests.
        """
        for noun, own, other in (
            ("supernet", self.header.supernet, supernet),
            ("data set", self.header.data, data),
        ):
            if own.digest != other.digest:
                raise UsageError(
                    f"holds measurements of another {noun}: {own.name} ({own.digest}), not {other.name} "
                    f"({other.digest})",
                    where=str(self.folder),
                    hint="name another folder",
                )

    def read(self) -> dict[SubnetConfig, SubnetMeasurement]:
        """All measurements, each subnet once, in an order that does not depend on who measured what.

        A last line that was not written to its end is no measurement.

        Raises:
            DataError: If a line is damaged; names file and line.
        """
        found: dict[str, tuple[SubnetConfig, SubnetMeasurement]] = {}
        for path in sorted(self.folder.glob(_PATTERN)):
            content = read_bounded(path, _MAXIMUM_FILE_BYTES, DataError)
            for number, line in enumerate(content.split(b"\n")[:-1], start=1):
                digest, subnet, measurement = self._parse(line, where=f"{path}:{number}")
                found.setdefault(digest, (subnet, measurement))
        return {found[digest][0]: found[digest][1] for digest in sorted(found)}

    @contextmanager
    def appending(self, process: int | None = 0) -> Iterator[Appender]:
        """Open the file of a process for new measurements, and drop a last line that was not written to its end.

        Args:
            process: Number of the process; None for the first number that no other run writes under.

        Raises:
            OutputError: If another run writes to it, or it cannot be written to.
        """
        for number in itertools.count() if process is None else (process,):
            path = self.folder / f"measurements-{number}.jsonl"
            stream = _locked(path)
            if stream is None:
                if process is None:
                    continue
                raise OutputError("another run writes to it", where=str(path), hint="wait for its end")
            with stream:
                yield Appender(self, stream, path)
            return

    def line(self, subnet: SubnetConfig, measurement: SubnetMeasurement) -> bytes:
        """One measurement as it is written.

        Raises:
            UsageError: If the subnet is of another network.
        """
        names = tuple(name for name, _ in subnet.weights), tuple(name for name, _ in subnet.activations)
        forms = [form for _, form in (*subnet.weights, *subnet.activations)]
        if names != (self.header.layers, self.header.tensors) or any(form not in self._index for form in forms):
            raise UsageError("the subnet is of another network", where=str(self.folder))
        line = _Line(
            digest=subnet.digest,
            weights=tuple(self._index[form] for _, form in subnet.weights),
            activations=tuple(self._index[form] for _, form in subnet.activations),
            correct=(measurement.halves[0].correct, measurement.halves[1].correct),
            images=(measurement.halves[0].images, measurement.halves[1].images),
            cross_entropy=(measurement.halves[0].cross_entropy, measurement.halves[1].cross_entropy),
        )
        return line.model_dump_json().encode() + b"\n"

    def _parse(self, content: bytes, *, where: str) -> tuple[str, SubnetConfig, SubnetMeasurement]:
        """Read one line back."""
        line = parse_json_model(content, _Line, "a measurement", where, DataError)
        header = self.header
        sizes = len(line.weights), len(line.activations)
        if sizes != (len(header.layers), len(header.tensors)) or max(*line.weights, *line.activations, 0) >= len(
            self._forms
        ):
            raise DataError("the subnet is of another network", where=where)
        subnet = SubnetConfig(
            tuple((name, self._forms[index]) for name, index in zip(header.layers, line.weights, strict=True)),
            tuple((name, self._forms[index]) for name, index in zip(header.tensors, line.activations, strict=True)),
        )
        if subnet.digest != line.digest:
            raise DataError("the subnet is not the one that the digest names", where=where)
        if any(correct > images for correct, images in zip(line.correct, line.images, strict=True)):
            raise DataError("more images are correct than there are", where=where)
        first, second = (Score(*numbers) for numbers in zip(line.correct, line.images, line.cross_entropy, strict=True))
        return line.digest, subnet, SubnetMeasurement((first, second))


def _locked(path: Path) -> BinaryIO | None:
    """Open a file to append whole lines to, or None if another run has it open.

    Raises:
        OutputError: If it cannot be written to.
    """
    try:
        with ExitStack() as opened:
            stream = opened.enter_context(path.open("a+b"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
            opened.pop_all()
            return stream
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror or error}", where=str(path)) from error


class Appender:
    """Writes measurements to the end of a file; made by :meth:`MeasurementStore.appending`.

    Attributes:
        store: The store that the file belongs to.
    """

    def __init__(self, store: MeasurementStore, stream: BinaryIO, path: Path) -> None:
        self.store = store
        self._stream = stream
        self._path = path

    def append(self, subnet: SubnetConfig, measurement: SubnetMeasurement) -> None:
        """Write a measurement, and return when the disk has it.

        Raises:
            UsageError: If the subnet is of another network.
            OutputError: If the disk is full.
        """
        content = self.store.line(subnet, measurement)
        try:
            self._stream.write(content)
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise OutputError(f"cannot write: {error.strerror or error}", where=str(self._path)) from error
