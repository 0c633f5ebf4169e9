"""A supernet of a float network that is trained already: calibrated, not trained."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from eqdeploy.data import InputPreprocessing, LabelledImages, LoadOptions, load_images
from eqdeploy.data.augmentation import Augmentation
from eqdeploy.errors import OutputError, UsageError
from eqdeploy.network import ElasticSpace
from eqdeploy.progress import Progress
from eqdeploy.requests import ConvertRequest, ModelFactory
from eqdeploy.supernet.checkpoint import ArchitectureReference, metadata_of, save_checkpoint
from eqdeploy.supernet.inputs import to_inputs
from eqdeploy.supernet.modes import evaluation_mode
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.zoo import load_factory
from eqdeploy.zoo.wrappers import unwrapped


def convert_float(
    model: nn.Module | ModelFactory, preprocessing: InputPreprocessing, request: ConvertRequest, progress: Progress
) -> Path:
    """Convert a float network, give every scale the number with the smallest error, and write the checkpoint.

    Args:
        model: The trained network, which is copied and not changed, or what makes it.
        preprocessing: How what is stored becomes the inputs that the network was trained on.
        request: What to write, and from which images.
        progress: Who listens.

    Returns:
        The file of the checkpoint.

    Raises:
        UsageError: If the widths are none, or the factory cannot be used.
        UnsupportedOperationError: If the network cannot be traced or converted.
        DataError: If the images cannot be loaded or do not fit.
        TrainingError: If a weight or an activation is not finite.
        OutputError: If the file exists or cannot be written.
    """
    if request.output.exists() and not request.force:
        raise OutputError("exists already", where=str(request.output), hint="replace it with force=True")
    space = _space(request.bits)
    images = load_images(
        request.data,
        split="train",
        preprocessing=preprocessing,
        limit=request.calibration_images,
        options=LoadOptions(run_code=request.run_code),
    )
    network = unwrapped(model) if isinstance(model, nn.Module) else load_factory(model)
    with progress.stage("converting the network"), evaluation_mode(network):
        supernet = Supernet.from_float(network, to_inputs(preprocessing.example(2)), space)
    with progress.stage("finding scales"):
        supernet.initialize(to_inputs(preprocessing.apply(images.images)))
    _save(supernet, preprocessing, images, request.output)
    return request.output


def _space(bits: tuple[int, ...]) -> ElasticSpace:
    """All forms of some widths.

    Raises:
        UsageError: If they are none.
    """
    try:
        return ElasticSpace(bits=bits, boundary_bits=max(bits, default=0))
    except ValueError as error:
        raise UsageError(str(error), where="bits") from error


def _save(supernet: Supernet, preprocessing: InputPreprocessing, images: LabelledImages, path: Path) -> None:
    """Write the checkpoint; whoever loads it passes the model."""
    metadata = metadata_of(
        supernet,
        architecture=ArchitectureReference(name=None),
        preprocessing=preprocessing,
        augmentation=Augmentation(),
        classes=images.classes,
        provenance={"calibrated_on": images.source},
    )
    save_checkpoint(supernet, metadata, path)
