"""Part of a data set as a data set of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.data.references import load_data


def write_subset(data: str, preprocessing: Preprocessing, folder: Path, *, train: int, test: int) -> Path:
    """Write evenly spread images of each split to a folder.

    Args:
        data: Labelled images.
        preprocessing: What the network reads.
        folder: Receives one archive for each split.
        train: Training images.
        test: Held-out images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, limit in (("train", train), ("test", test)):
        images = load_data(data, split=split, preprocessing=preprocessing, limit=limit)
        np.savez(folder / f"{split}.npz", images=images.images, labels=images.labels)
    return folder
