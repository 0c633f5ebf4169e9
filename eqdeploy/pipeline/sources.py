"""Find what a request refers to: supernets by name or file, images for calibration and for judging."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from torch import nn

from eqdeploy.data import InputPreprocessing, LabelledImages, LoadOptions, Preprocessing, load_images
from eqdeploy.data.references import DIGITS
from eqdeploy.errors import CheckpointError, DataError, ProfileError
from eqdeploy.json_file import read_json
from eqdeploy.progress import Progress
from eqdeploy.requests import ModelFactory
from eqdeploy.subnet import SubnetConfig
from eqdeploy.supernet.checkpoint import Checkpoint, checkpoint_digest, load_checkpoint
from eqdeploy.yaml_file import suggest
from eqdeploy.zoo import build, load_factory

_SUFFIX = ".safetensors"
_PREDICTOR_SUFFIX = ".predictor.safetensors"
_MAXIMUM_SUBNET_BYTES = 16 << 20

#: What is said of a checkpoint that cannot be checked.
NO_PROBES = "the checkpoint holds no probes: skipped the check that preprocessing is what training saw"


@dataclass(frozen=True)
class LoadedSupernet:
    """A checkpoint and where it came from.

    Attributes:
        name: Name of a shipped supernet, or of the file without its folder.
        digest: SHA-256 of the file without probes and statistics of the training images.
        checkpoint: What it holds.
        probes: What the probes in it proved, or that there are none.
    """

    name: str
    digest: str
    checkpoint: Checkpoint
    probes: str


@dataclass(frozen=True)
class ImageSets:
    """Images of one data set.

    Attributes:
        name: Name of a shipped data set, or of the file or folder without the folders before it.
        calibration: Images that BatchNorm statistics and ranges are estimated on.
        held_out: Images that parity and accuracy are measured on.
    """

    name: str
    calibration: LabelledImages
    held_out: LabelledImages

    @property
    def digest(self) -> str:
        """SHA-256 over both parts."""
        return hashlib.sha256(f"{self.calibration.digest}{self.held_out.digest}".encode()).hexdigest()


def shipped_supernets() -> tuple[str, ...]:
    """Names of the supernets that come with eqdeploy."""
    names = (entry.name for entry in resources.files("eqdeploy.embedded").iterdir())
    files = (name for name in names if name.endswith(_SUFFIX) and not name.endswith(_PREDICTOR_SUFFIX))
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in files))


def shipped_predictor(digest: str) -> Path | None:
    """File of the predictor that comes with a shipped supernet, None if none does.

    Args:
        digest: Of the supernet, :attr:`LoadedSupernet.digest`.
    """
    for name in shipped_supernets():
        path = Path(str(resources.files("eqdeploy.embedded") / f"{name}{_PREDICTOR_SUFFIX}"))
        if path.is_file() and checkpoint_digest(supernet_path(name)) == digest:
            return path
    return None


def supernet_path(reference: str) -> Path:
    """File of a supernet, given by the name of a shipped one or by its path.

    Raises:
        CheckpointError: If there is neither.
    """
    path = Path(reference)
    if reference in shipped_supernets():
        return Path(str(resources.files("eqdeploy.embedded") / f"{reference}{_SUFFIX}"))
    if not path.exists():
        names = shipped_supernets()
        raise CheckpointError(
            "no such supernet",
            where=reference,
            hint=suggest(reference, names) or f"give a .safetensors file or one of: {', '.join(names)}",
        )
    return path


def load_supernet(reference: str, model: ModelFactory | None, progress: Progress | None = None) -> LoadedSupernet:
    """Load a supernet, and check that preprocessing and network give what they gave in training.

    Args:
        reference: Name of a shipped supernet or path of a checkpoint.
        model: Makes the float model, where the user gives one.
        progress: Who is told if the check is skipped because the checkpoint holds no probes.

    Raises:
        CheckpointError: If there is no such supernet, its file is damaged, or its probes give other outputs.
        UsageError: If the factory cannot be used.
    """
    path = supernet_path(reference)
    float_model = None if model is None else load_factory(model)
    checkpoint = load_checkpoint(path, build, float_model)
    probes = check_probes(checkpoint, where=str(path))
    if checkpoint.probes is None and progress is not None:
        progress.note(f"{reference}: {probes}")
    name = path.stem if reference in shipped_supernets() else path.name
    return LoadedSupernet(name, checkpoint_digest(path), checkpoint, probes)


def check_probes(checkpoint: Checkpoint, *, where: str) -> str:
    """Compute the probes of a checkpoint again with the preprocessing and the network as they are now.

    Args:
        checkpoint: As loaded: deactivated, with its own BatchNorm statistics.
        where: Its file, for messages.

    Returns:
        What they proved, in words.

    Raises:
        CheckpointError: If outputs differ by more than rounding.
    """
    if checkpoint.probes is None or not isinstance(checkpoint.preprocessing, Preprocessing):
        return NO_PROBES
    checkpoint.probes.check(checkpoint.supernet, checkpoint.preprocessing, where=where)
    return f"{len(checkpoint.probes.inputs)} probes give the outputs that training saw"


def load_float_model(loaded: LoadedSupernet, model: ModelFactory | None) -> nn.Module:
    """The float model that a supernet was made of, with fresh weights.

    Args:
        loaded: The supernet.
        model: Makes the float model, where the user gives one.

    Raises:
        UsageError: If the factory cannot be used.
    """
    if model is not None:
        return load_factory(model)
    architecture = loaded.checkpoint.metadata.architecture
    assert architecture.name is not None  # else loading it has asked for a model
    return build(architecture.name, architecture.arguments)


def load_image_sets(
    reference: str,
    preprocessing: InputPreprocessing,
    classes: tuple[str, ...],
    *,
    calibration: int,
    run_code: bool = False,
) -> ImageSets:
    """Load calibration images from the training part of a data set and held-out ones from its test part.

    Args:
        reference: Name of a shipped data set, path, or ``package.module:function``.
        preprocessing: What the network reads.
        classes: Class names of the supernet; empty to accept any.
        calibration: Largest number of calibration images.
        run_code: Whether such a function may be imported and called.

    Raises:
        DataError: If images are missing, do not fit the network, or their classes are not the supernet's.
        UsageError: If a function may not be called, does not exist or fails.
    """
    options = LoadOptions(run_code=run_code)
    name = reference if reference == DIGITS else Path(reference).resolve().name
    sets = ImageSets(
        name=name.encode(errors="backslashreplace").decode(),  # a name that is no UTF-8 cannot stand in a JSON file
        calibration=load_images(
            reference, split="train", preprocessing=preprocessing, limit=calibration, options=options
        ),
        held_out=load_images(reference, split="test", preprocessing=preprocessing, options=options),
    )
    check_classes(sets.held_out, classes, reference)
    return sets


def check_classes(images: LabelledImages, classes: tuple[str, ...], reference: str) -> None:
    """Refuse labelled images whose classes are not those of the network.

    Args:
        images: Images, labelled or not.
        classes: Class names of the network; empty to accept any.
        reference: The data, for messages.

    Raises:
        DataError: If names or their order differ.
    """
    found = images.classes
    if classes and found and found != classes:
        raise DataError(
            f"has the classes {_few(found)}, the supernet was trained for {_few(classes)}",
            where=reference,
            hint="class names and their order must agree",
        )


def load_subnet(path: Path | None) -> SubnetConfig | None:
    """Read a subnet file, if one is given.

    Raises:
        ProfileError: If the file is missing, no JSON, or not a subnet.
    """
    if path is None:
        return None
    return SubnetConfig.from_json(read_json(path, _MAXIMUM_SUBNET_BYTES, ProfileError), where=str(path))


def _few(names: tuple[str, ...]) -> str:
    """The first names of a long list."""
    return ", ".join(names[:4]) + (f", … ({len(names)})" if len(names) > 4 else "")
