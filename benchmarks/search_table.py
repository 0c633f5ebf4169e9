"""A part of the digits supernet's space that is small enough to measure every subnet in it."""

from __future__ import annotations

import csv
import gzip
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from common import RESULTS
from numpy.typing import NDArray

from eqdeploy.data.labelled import LabelledImages
from eqdeploy.data.references import load_data
from eqdeploy.pipeline.sources import LoadedSupernet, load_supernet
from eqdeploy.profile import DeviceProfile, load_profile
from eqdeploy.progress import Progress
from eqdeploy.search.encoding import SubnetEncoding
from eqdeploy.search.measure import Measurer, calibration_tensor, split_training_images
from eqdeploy.search.measurement import Score, SubnetMeasurement
from eqdeploy.search.space import SearchSpace, search_space

SUPERNET = DATA = "digits"
#: Widths of each gene; the first is that of everything else.
BITS = (4, 8, 2)
#: The four 3×3 convolutions, nine tenths of all weights, and what three of them read.
SEARCHED = (
    *("block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2"),
    *("block1_relu", "pointwise_2", "block2_relu"),
)
SEED = 0
CALIBRATION, IMAGES = 200, 1000
TABLE = RESULTS / "search-digits-table.csv.gz"
#: What subnets are judged on: training images that calibration leaves, and the test images.
PARTS = ("held_back", "test")
_FIELDS = ("correct_0", "correct_1", "cross_entropy_0", "cross_entropy_1")
_COLUMNS = ("choices", *(f"{part}_{field}" for part in PARTS for field in _FIELDS))


@dataclass(frozen=True, eq=False)
class TrueTable:
    """Every subnet of the space with its measurements.

    Attributes:
        space: The space.
        choices: All of its choices, shape (N, G).
        correct: For each part of the images, shape (N, 2): correct images of each half.
        cross_entropy: For each part of the images, shape (N, 2): mean cross-entropy of each half.
        images: For each part the number of images of each half.
    """

    space: SearchSpace
    choices: NDArray[np.int64]
    correct: dict[str, NDArray[np.int64]]
    cross_entropy: dict[str, NDArray[np.float64]]
    images: dict[str, tuple[int, int]]

    def accuracy(self, part: str) -> NDArray[np.float64]:
        """Top-1 accuracy of every subnet, shape (N,)."""
        return self.correct[part].sum(axis=1) / sum(self.images[part])

    def loss(self, part: str) -> NDArray[np.float64]:
        """Mean cross-entropy of every subnet, shape (N,)."""
        return self.cross_entropy[part] @ np.array(self.images[part], np.float64) / sum(self.images[part])

    def rows(self, choices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each vector of choices, shape (P,) for (P, G)."""
        return np.ravel_multi_index(tuple(choices.T), tuple(self.space.sizes.tolist())).astype(np.int64)

    def measurement(self, row: int, part: str) -> SubnetMeasurement:
        """The measurement of one subnet."""
        first, second = (
            Score(
                int(self.correct[part][row, half]), self.images[part][half], float(self.cross_entropy[part][row, half])
            )
            for half in (0, 1)
        )
        return SubnetMeasurement((first, second))


def small_space(loaded: LoadedSupernet) -> SearchSpace:
    """The search space of which all subnets are measured."""
    space = search_space(benchmark_profile(), loaded.checkpoint.supernet.network)
    genes = tuple(gene for gene in space.genes if gene.names[0] in SEARCHED)
    if len(genes) != len(SEARCHED):
        raise RuntimeError("the profile gives the genes other names")
    return replace(space, genes=genes)


def benchmark_profile() -> DeviceProfile:
    """The shipped profile for x86 with three widths."""
    profile = load_profile("onnxruntime-x86")
    activations = profile.activations
    rules = {name: getattr(activations, name).model_copy(update={"bits": BITS}) for name in ("non_negative", "signed")}
    return profile.model_copy(
        update={
            "name": "benchmark",
            "weights": profile.weights.model_copy(update={"bits": BITS, "boundary_bits": 8}),
            "activations": activations.model_copy(update={**rules, "boundary_bits": 8}),
        }
    )


def all_choices(space: SearchSpace) -> NDArray[np.int64]:
    """All choices in the order of their digits."""
    return np.array(list(itertools.product(*(range(size) for size in space.sizes.tolist()))), np.int64)


def image_parts(loaded: LoadedSupernet) -> tuple[LabelledImages, dict[str, LabelledImages]]:
    """Images for calibration, and those that subnets are judged on."""
    preprocessing = loaded.checkpoint.preprocessing
    train = load_data(DATA, split="train", preprocessing=preprocessing)
    split = split_training_images(train, calibration=CALIBRATION, images=IMAGES, seed=SEED)
    return split.calibration, {
        "held_back": split.held_back,
        "test": load_data(DATA, split="test", preprocessing=preprocessing),
    }


def measure_all(work: Path, progress: Progress) -> None:
    """Measure every subnet that ``work`` does not hold yet, then write the table.

    Args:
        work: File that receives a line for each subnet; a run that was stopped goes on with it.
        progress: Who listens.
    """
    loaded = load_supernet(SUPERNET, None)
    checkpoint, space = loaded.checkpoint, small_space(loaded)
    calibration, parts = image_parts(loaded)
    images = calibration_tensor(calibration, checkpoint.preprocessing, checkpoint.augmentation, SEED)
    measurers = [
        Measurer(checkpoint.supernet, images, parts[part], checkpoint.preprocessing, compiled=True) for part in PARTS
    ]
    work.parent.mkdir(parents=True, exist_ok=True)
    work.touch()
    whole = [line for line in work.read_text("utf-8").splitlines(keepends=True) if line.endswith("\n")]
    work.write_text("".join(whole), "utf-8")  # without the line that a stopped run had begun
    rows = all_choices(space)
    known = {line.partition(",")[0] for line in whole}
    missing = [row for row in rows if _name(row) not in known]
    with work.open("a", encoding="utf-8") as stream, progress.stage("measuring", total=len(missing)) as advance:
        for row in missing:
            subnet = space.subnet(row)
            values = [_name(row)]
            for measurer in measurers:
                halves = measurer.measure(subnet).halves
                values += [str(half.correct) for half in halves] + [f"{half.cross_entropy:.6g}" for half in halves]
            stream.write(",".join(values) + "\n")
            stream.flush()
            advance(1)
    lines = sorted(work.read_text("utf-8").splitlines())
    TABLE.parent.mkdir(exist_ok=True)
    text = "\n".join([",".join(_COLUMNS), *lines]) + "\n"
    TABLE.write_bytes(gzip.compress(text.encode(), mtime=0))


def load_table() -> TrueTable:
    """Read the table that is kept with the results."""
    loaded = load_supernet(SUPERNET, None)
    space = small_space(loaded)
    _, parts = image_parts(loaded)
    rows = list(csv.reader(gzip.decompress(TABLE.read_bytes()).decode().splitlines()))
    choices = all_choices(space)
    if tuple(rows[0]) != _COLUMNS or [row[0] for row in rows[1:]] != [_name(row) for row in choices]:
        raise RuntimeError(f"{TABLE} is not the table of this space")
    values = np.array([[float(value) for value in row[1:]] for row in rows[1:]])
    width = len(_FIELDS)
    return TrueTable(
        space,
        choices,
        {part: values[:, index * width : index * width + 2].astype(np.int64) for index, part in enumerate(PARTS)},
        {part: values[:, index * width + 2 : index * width + 4] for index, part in enumerate(PARTS)},
        {part: ((len(images) + 1) // 2, len(images) // 2) for part, images in parts.items()},
    )


def encoding(table: TrueTable) -> SubnetEncoding:
    """Turns subnets of the table into inputs of a predictor."""
    return SubnetEncoding.of(table.space.network)


def _name(row: NDArray[np.int64]) -> str:
    """Choices as digits."""
    return "".join(map(str, row.tolist()))
