"""The embedded handwritten digits: 1797 grey images of 8x8 pixels with values 0 to 16."""

from __future__ import annotations

import importlib.resources

import numpy as np
from numpy.typing import NDArray

from eqdeploy.data.images import fit_images
from eqdeploy.data.labelled import LabelledImages, spread_indices
from eqdeploy.data.npz import read_arrays
from eqdeploy.data.preprocessing import Preprocessing

#: What the embedded supernet reads: pixels scaled to 0..1, centred and scaled by the training images' moments.
DIGITS_PREPROCESSING = Preprocessing(image_size=(8, 8), channels=1, mean=(0.305,), std=(0.376,), scale=1 / 16)


def load_digits(
    split: str, *, preprocessing: Preprocessing = DIGITS_PREPROCESSING, limit: int | None = None
) -> LabelledImages:
    """Load the 1200 training or the 597 held-out digits; which is which is stored with them.

    Args:
        split: ``train`` or ``test``.
        preprocessing: Size and channels that the network reads.
        limit: Use this many images evenly spread over the split, None for all.

    Raises:
        DataError: If the network does not read one channel of 8x8 pixels and ``preprocessing`` does not resize.
    """
    resource = importlib.resources.files("eqdeploy.embedded") / "digits.npz"
    with resource.open("rb") as stream:
        arrays = read_arrays(stream, ("images", "labels", "held_out"), where="digits.npz")
    held_out: NDArray[np.bool_] = arrays["held_out"]
    rows = np.flatnonzero(held_out if split == "test" else ~held_out)
    rows = rows[spread_indices(len(rows), limit)]
    source = f"digits ({split})"
    images = fit_images(arrays["images"][rows][:, None], preprocessing, where=source)
    return LabelledImages(images, arrays["labels"][rows].astype(np.int64), tuple("0123456789"), source)
