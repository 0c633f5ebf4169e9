"""Images and labels from the embedded set or from disk, with numpy alone (Pillow where image files are read).

Augmentation for training works on torch tensors and is in :mod:`eqdeploy.data.augmentation`.
"""

from eqdeploy.data.digits import DIGITS_PREPROCESSING
from eqdeploy.data.inputs import (
    InputPreprocessing,
    NamedPreprocessing,
    TokenPreprocessing,
    ValuePreprocessing,
    read_preprocessing,
)
from eqdeploy.data.labelled import LabelledImages, batches
from eqdeploy.data.options import LoadOptions
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.data.references import load_data, load_images

__all__ = [
    "DIGITS_PREPROCESSING",
    "InputPreprocessing",
    "LabelledImages",
    "LoadOptions",
    "NamedPreprocessing",
    "Preprocessing",
    "TokenPreprocessing",
    "ValuePreprocessing",
    "batches",
    "load_data",
    "load_images",
    "read_preprocessing",
]
