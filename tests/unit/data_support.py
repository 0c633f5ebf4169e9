"""Image files and a listener for the tests of data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eqdeploy.data import Preprocessing
from eqdeploy.progress import Advance

SMALL = Preprocessing((4, 5), 3, (0.0,) * 3, (1.0,) * 3)


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (4, 5)) -> NDArray[np.uint8]:
    """Write a random RGB image and return its pixels as (C, H, W)."""
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return image.transpose(2, 0, 1)


class Listener:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.stages: dict[str, int] = {}
        self.notes: list[str] = []
        self.details: list[str] = []

    @contextmanager
    def stage(self, description: str, *, total: int | None = None) -> Iterator[Advance]:
        self.stages[description] = 0

        def advance(amount: int) -> None:
            self.stages[description] += amount

        yield advance
        assert total is None or self.stages[description] == total

    def note(self, message: str) -> None:
        self.notes.append(message)

    def detail(self, message: str) -> None:
        self.details.append(message)
