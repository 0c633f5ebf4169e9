"""The reader of plain pickles: what torchvision downloads is read, anything that could do something is refused."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eqdeploy.data.plain_pickle import read_plain_pickle
from eqdeploy.errors import DataError


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], dict[str, Any]]:
    def from_bytes(content: bytes) -> dict[str, Any]:
        (tmp_path / "x").write_bytes(content)
        return read_plain_pickle(tmp_path / "x")

    return from_bytes


def short(text: bytes) -> bytes:
    """A string as Python 2 writes it."""
    return b"U" + bytes([len(text)]) + text


def as_python_2_wrote(images: NDArray[np.uint8], labels: list[int]) -> bytes:
    """A batch of CIFAR-10, instruction by instruction, as Python 2 and the NumPy of 2009 wrote it."""
    rows, columns = images.shape
    content = images.tobytes()
    return b"".join(
        [
            b"\x80\x02}q\x01(" + short(b"batch_label") + b"q\x02" + short(b"training batch 1 of 5") + b"q\x03",
            short(b"labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
            short(b"data") + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08",
            b"K\x00\x85"
            + short(b"b")
            + b"\x87Rq\x09(K\x01M"
            + struct.pack("<H", rows)
            + b"M"
            + struct.pack("<H", columns),
            b"\x86cnumpy\ndtype\nq\x0a" + short(b"u1") + b"K\x00K\x01\x87Rq\x0b(K\x03" + short(b"|") + b"NNN",
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(content)) + content + b"tb",
            short(b"filenames") + b"]q\x0c(" + short(b"a.png") + short(b"b.png") + b"eu.",
        ]
    )


def test_a_batch_as_python_2_wrote_it(read: Callable[[bytes], dict[str, Any]]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    written = as_python_2_wrote(images, [6, 9, 0])
    trusted = pickle.loads(written, encoding="bytes")  # our own bytes
    assert np.array_equal(trusted[b"data"], images)
    found = read(written)
    assert np.array_equal(found.pop("data"), images)
    assert found == {
        "batch_label": b"training batch 1 of 5",
        "labels": [6, 9, 0],
        "filenames": [b"a.png", b"b.png"],
    }


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.dictionaries(st.text(alphabet="abcxyz"), PLAIN), st.integers(0, 4))
def test_plain_data_are_read_as_pickle_reads_them(
    read: Callable[[bytes], dict[str, Any]], data: dict[str, Any], protocol: int
) -> None:
    content = pickle.dumps(data, protocol=protocol)
    if {instruction.name for instruction, _, _ in pickletools.genops(content)} & {"FLOAT", "GLOBAL", "REDUCE"}:
        return  # only how the first protocols write bytes and floating point
    assert read(content) == data


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_bytes(read: Callable[[bytes], dict[str, Any]], protocol: int, order: str) -> None:
    array = np.asarray(np.arange(60, dtype=np.uint8).reshape(5, 12), order=order)  # type: ignore[call-overload]
    found = read(pickle.dumps({"data": array, "again": array}, protocol=protocol))
    assert np.array_equal(found["data"], array)
    assert np.array_equal(found["again"], array)


class _Trap:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (_touch, (str(self.path),))


def _touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("protocol", range(6))
def test_code_is_refused_and_not_run(tmp_path: Path, read: Callable[[bytes], dict[str, Any]], protocol: int) -> None:
    content = pickle.dumps({"data": _Trap(tmp_path / "sprung")}, protocol=protocol)
    with pytest.raises(DataError, match=r"a pickle with the name .*_touch.* never loaded \(.*binary version"):
        read(content)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(content)  # our own trap
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x80\x02cnumpy\nndarray\n(K\x01tR.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"\x80\x02cnumpy\ndtype\nU\x01OK\x00K\x01\x87R.",
        b"\x80\x02}cnumpy\ndtype\nb.",
        b"\x80\x02}(K\x01K\x02u.",
        b"\x80\x02}U\x01acnumpy\nndarray\ns.",
        b"\x80\x02]K\x01a.",
        b"\x80\x02K\x01.",
        b"\x80\x02.",
        b"\x80\x02}}.",
        b"\x80\x02}(u}.",
        b"\x80\x02}U\x01as.",
        b"\x80\x02e.",
        b"\x80\x02u.",
        b"\x80\x020.",
        b"\x80\x02}q\x00h\x01.",
        b"\x80\x02}2.",
        b"\x82\x01.",
        b"P1\n.",
        b"S'\\777\\q'\n.",
        b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a\x97.",
        b"",
        b"}",
        b"\x80\x02}U\xffabc",
        b"\x80\x02}T\xff\xff\xff\x7fabc.",
        b"\x80\x04}\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"I" + b"9" * 100_000 + b"\n.",
    ],
)
def test_everything_else_is_refused(read: Callable[[bytes], dict[str, Any]], content: bytes) -> None:
    with pytest.raises(DataError):
        read(content)


VALID = as_python_2_wrote(np.zeros((2, 4), np.uint8), [1, 2])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=300)
@given(st.data())
def test_damage_is_an_error_or_harmless(read: Callable[[bytes], dict[str, Any]], data: st.DataObject) -> None:
    content = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(content))
    except DataError:
        return
    assert all(isinstance(key, str) for key in found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=300)
@example(b"(((((((((")
@given(st.binary(max_size=60))
def test_noise_is_an_error_or_harmless(read: Callable[[bytes], dict[str, Any]], noise: bytes) -> None:
    for content in (noise, b"\x80\x02}(" + noise + b"u."):
        try:
            read(content)
        except DataError:
            continue


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_plain_pickle(tmp_path / "nowhere")
    with (tmp_path / "huge").open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    with pytest.raises(DataError, match="larger than"):
        read_plain_pickle(tmp_path / "huge")
