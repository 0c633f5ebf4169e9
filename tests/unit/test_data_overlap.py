"""Images that two sets have in common."""

from __future__ import annotations

import numpy as np

from eqdeploy.data.overlap import count_common

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 3, 9, 9), np.uint8)


def test_images_are_found_wherever_they_stand() -> None:
    assert count_common(PIXELS[:10], PIXELS[::-1]) == 10
    assert count_common(PIXELS[:10], PIXELS[10:]) == 0
    assert count_common(PIXELS[:10], PIXELS[5:]) == 5
    assert count_common(np.concatenate([PIXELS[:2], PIXELS[:2]]), PIXELS[1:]) == 2


def test_every_byte_counts() -> None:
    changed = PIXELS.copy()
    changed[:, 1, 4, 4] ^= 1
    assert count_common(PIXELS, changed) == 0


def test_other_shapes_and_types_have_nothing_in_common() -> None:
    assert count_common(PIXELS, PIXELS.astype(np.float32)) == 0
    assert count_common(PIXELS, PIXELS[:, :, :8]) == 0


def test_records_of_several_inputs_are_compared_whole() -> None:
    kind = np.dtype([("a", np.float32, (2,)), ("b", np.int64)])
    records = np.zeros(4, kind)
    records["b"] = range(4)
    others = records.copy()
    others["a"][0, 1] = 1.0
    assert count_common(records, others) == 3
