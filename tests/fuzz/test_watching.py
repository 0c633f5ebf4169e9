"""What a parser must not do is seen, and what it may do is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eqdeploy.errors import DataError
from tests.fuzz import watching
from tests.fuzz.mutations import mutate_bytes, mutate_json, mutate_npz, mutate_onnx, mutate_safetensors, mutate_yaml
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.watching import Finding, bounded, judge


def refuse(path: Path) -> None:
    raise DataError("damaged", where=str(path))


def refuse_at_length(path: Path) -> None:
    raise DataError("x" * 100_000, where=str(path))


def look_up(path: Path) -> None:
    raise KeyError("schema")


def hang(path: Path) -> None:
    while True:
        try:
            continue
        except Exception:  # as parsers do
            break


def fill_memory(path: Path) -> int:
    return np.empty(2 * watching.MEMORY_BYTES, np.uint8).size  # of address space: it is not touched


@pytest.mark.parametrize(
    ("parse", "expected"),
    [
        (Path.read_bytes, True),
        (refuse, False),
        (refuse_at_length, False),  # cut where it is shown
        (look_up, "KeyError at test_watching.py"),
        (hang, "EndlessError at test_watching.py"),
        (fill_memory, "MemoryError at test_watching.py"),
    ],
)
def test_how_an_input_ends(
    parse: Callable[[Path], object], expected: bool | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SECONDS", 0.5)
    target = Target("a", parse, mutate_bytes)
    with bounded():
        outcome = judge(target, target.placed(tmp_path), b"content")
    if isinstance(expected, bool):
        assert outcome is expected
    else:
        assert isinstance(outcome, Finding)
        assert outcome.signature.startswith(expected)
    fill_memory(tmp_path)  # the bounds end with the context


@pytest.mark.parametrize(
    ("mutate", "name"),
    [
        (mutate_json, "report"),
        (mutate_yaml, "profile"),
        (mutate_safetensors, "checkpoint"),
        (mutate_npz, "npz-images"),
        (mutate_onnx, "onnx"),
    ],
)
def test_mutations_repeat_and_differ(mutate: Callable[[bytes, random.Random], bytes], name: str) -> None:
    assert TARGETS[name].mutate is mutate
    seed = next(iter(TARGETS[name].seeds(name).values()))
    first, again = ([mutate(seed, random.Random(index)) for index in range(30)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 20
    assert isinstance(mutate(b"no such format", random.Random(0)), bytes)
