"""Checkpoints: one safetensors file with everything that a supernet is, read without running anything from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, ValidationError, model_serializer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from eqdeploy.data.augmentation import Augmentation
from eqdeploy.data.inputs import InputPreprocessing, read_preprocessing
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.data.statistics import DataStatistics
from eqdeploy.errors import CheckpointError, EqDeployError, MissingDependencyError
from eqdeploy.files import write_atomically
from eqdeploy.json_file import refuse_repeated_keys, refuse_repeated_tensors
from eqdeploy.network import BatchNormTraining, ElasticSpace, Residual, ScaleTraining
from eqdeploy.quant.form import Granularity, Symmetry
from eqdeploy.supernet.declared_size import check_declared_size
from eqdeploy.supernet.fold_batch_norms import fold_batch_norms
from eqdeploy.supernet.given_model import not_finite
from eqdeploy.supernet.inputs import Inputs, to_inputs
from eqdeploy.supernet.probes import Probes
from eqdeploy.supernet.shared_layers import own_tensors
from eqdeploy.supernet.statistics import read_statistics
from eqdeploy.supernet.supernet import Supernet

#: All metadata is one JSON document under this key: safetensors does not keep the order of several keys.
METADATA_KEY = "eqdeploy"
#: Key of the provenance under which stands the accuracy of the float network that the supernet holds, 0 to 1.
SUPERNET_FLOAT_ACCURACY = "supernet_float_accuracy"
_MAXIMUM_METADATA = 1 << 20
_MAXIMUM_LISTED = 5
#: Values of one input, far more than any image has: what a file asks for is allocated before it is understood.
_MAXIMUM_INPUT_VALUES = 1 << 24

Scalar = bool | int | float | str


class _Part(BaseModel):
    """Strict, immutable part of the metadata."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class ArchitectureReference(_Part):
    """A float model by name; ``None`` as name stands for a model that the user must pass."""

    name: str | None
    arguments: dict[str, Scalar] = {}


class SpaceMetadata(_Part):
    """An :class:`~eqdeploy.network.ElasticSpace` as plain data."""

    bits: list[int]
    granularities: list[str]
    symmetries: list[str]
    narrow: bool
    boundary_bits: int
    batch_norm: str = str(ElasticSpace.batch_norm)
    scales: str = str(ElasticSpace.scales)
    residual: str = str(ElasticSpace.residual)

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options that are not used: checkpoints without them stay what they were, byte for byte."""
        data: dict[str, Any] = handler(self)
        defaults = {name: field.default for name, field in type(self).model_fields.items() if not field.is_required()}
        return {key: value for key, value in data.items() if key not in defaults or value != defaults[key]}


class AugmentationMetadata(_Part):
    """An :class:`~eqdeploy.data.augmentation.Augmentation` as plain data."""

    shift: int
    flip: bool
    crop_scale: tuple[float, float] | None = Augmentation.crop_scale
    crop_ratio: tuple[float, float] = Augmentation.crop_ratio
    brightness: float = Augmentation.brightness
    contrast: float = Augmentation.contrast
    saturation: float = Augmentation.saturation

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options that are not used: checkpoints without them stay what they were, byte for byte."""
        data: dict[str, Any] = handler(self)
        defaults = {name: field.default for name, field in type(self).model_fields.items() if not field.is_required()}
        return {key: value for key, value in data.items() if key not in defaults or value != defaults[key]}


class CheckpointMetadata(_Part):
    """What a checkpoint says about itself.

    Attributes:
        format: Kind of file.
        version: Version of this layout.
        architecture: How to make the float model.
        input_shape: Shape of one input without the batch axis; empty where there are several inputs.
        classes: Class names, in the order of the outputs.
        space: Forms that the supernet is trained for.
        preprocessing: How what is stored becomes inputs.
        augmentation: How training images were varied; BatchNorm is calibrated on images varied likewise.
        provenance: How the supernet was made, for people.
        training_data: What calibration images are compared with, None if nothing was stored.
    """

    format: Literal["eqdeploy-supernet"] = "eqdeploy-supernet"
    version: Literal[1] = 1
    architecture: ArchitectureReference
    input_shape: Annotated[list[Annotated[int, Field(gt=0, le=1 << 20)]], Field(max_length=5)]
    classes: list[str]
    space: SpaceMetadata
    preprocessing: dict[str, Any]
    augmentation: AugmentationMetadata
    provenance: dict[str, Scalar]
    training_data: DataStatistics | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out statistics that are not there: checkpoints without them stay what they were, byte for byte."""
        data: dict[str, Any] = handler(self)
        return {key: value for key, value in data.items() if key != "training_data" or value is not None}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded supernet and what it needs besides its weights.

    Attributes:
        supernet: The supernet, deactivated, in evaluation mode.
        metadata: What the file says about itself.
        preprocessing: How images become inputs.
        augmentation: How training images were varied.
        statistics: The BatchNorm statistics that the file has, by path: calibration replaces those of the supernet.
        probes: Inputs with the outputs that training saw, None if the file has none.
    """

    supernet: Supernet
    metadata: CheckpointMetadata
    preprocessing: InputPreprocessing
    augmentation: Augmentation
    statistics: dict[str, Tensor]
    probes: Probes | None = None


def metadata_of(
    supernet: Supernet,
    *,
    architecture: ArchitectureReference,
    preprocessing: InputPreprocessing,
    augmentation: Augmentation,
    classes: tuple[str, ...],
    provenance: Mapping[str, Scalar],
    training_data: DataStatistics | None = None,
) -> CheckpointMetadata:
    """Describe a supernet for its checkpoint."""
    space = supernet.network.space
    return CheckpointMetadata(
        architecture=architecture,
        input_shape=list(supernet.input_shape),
        classes=list(classes),
        space=SpaceMetadata(
            bits=list(space.bits),
            granularities=[str(value) for value in space.granularities],
            symmetries=[str(value) for value in space.symmetries],
            narrow=space.narrow,
            boundary_bits=space.boundary_bits,
            batch_norm=str(space.batch_norm),
            scales=str(space.scales),
            residual=str(space.residual),
        ),
        preprocessing=preprocessing.to_json(),
        augmentation=AugmentationMetadata(**asdict(augmentation)),
        provenance=dict(provenance),
        training_data=training_data,
    )


def save_checkpoint(supernet: Supernet, metadata: CheckpointMetadata, path: Path, probes: Probes | None = None) -> None:
    """Write a checkpoint; the same supernet, metadata and probes give the same bytes.

    The file appears whole or not at all.

    Args:
        supernet: Its weights, scales and BatchNorm statistics are written as they are.
        metadata: From :func:`metadata_of`.
        path: File to write or replace.
        probes: From :meth:`eqdeploy.supernet.probes.Probes.of`: whoever loads the file then knows that preprocessing
            and network still give what they gave here. None for none.

    Raises:
        OutputError: If the file cannot be written.
    """
    tensors = _apart(own_tensors(supernet.graph_module)[0])
    tensors |= {} if probes is None else probes.tensors()
    write_atomically(path, _serialize(tensors, metadata))


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state by name in order; copies of those that share memory, which safetensors refuses."""
    apart: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in sorted(state.items()):
        kept = tensor.detach().cpu().contiguous()
        storage = kept.untyped_storage()
        if storage.data_ptr() in memory or storage.nbytes() != kept.nbytes:
            kept = kept.clone()
        memory.add(storage.data_ptr())
        apart[name] = kept
    return apart


def checkpoint_digest(path: Path) -> str:
    """SHA-256 of the file of a supernet, as it is without probes and statistics of the training images.

    Neither changes what the supernet computes: a supernet that is given some later keeps its identity in artifacts,
    measurements and predictors.

    Raises:
        CheckpointError: If the file is missing, damaged, or no supernet.
    """
    metadata = read_metadata(path)
    tensors = _read(path, lambda stream: {name: stream.get_tensor(name) for name in stream.keys()})  # noqa: SIM118
    probes = Probes.taken_from(tensors, where=str(path))
    if probes is None and metadata.training_data is None:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    bare = metadata.model_copy(update={"training_data": None})
    return hashlib.sha256(_serialize(tensors, bare)).hexdigest()


def _serialize(tensors: dict[str, Tensor], metadata: CheckpointMetadata) -> bytes:
    """Content of a checkpoint."""
    return save(tensors, metadata={METADATA_KEY: json.dumps(metadata.model_dump(), sort_keys=True)})


def read_metadata(path: Path) -> CheckpointMetadata:
    """Read only what a checkpoint says about itself.

    Raises:
        CheckpointError: If the file is missing, damaged, or no supernet checkpoint of this version.
    """
    return _parse_metadata(_read(path, lambda stream: stream.metadata()), path)


def load_checkpoint(
    path: Path, build: Callable[[str, Mapping[str, object]], nn.Module], model: nn.Module | None = None
) -> Checkpoint:
    """Load a supernet.

    Args:
        path: The safetensors file.
        build: Makes a known float model from a name and plain arguments, e.g. :func:`eqdeploy.zoo.build`.
        model: The float model, where the user passes it; takes the place of the one that the file names.

    Raises:
        CheckpointError: If the file is missing or damaged, names no known model, or its tensors do not fit the
            model: everything missing, unexpected, mis-shaped or not finite is reported together.
    """
    metadata = read_metadata(path)
    tensors = _read(path, lambda stream: {name: stream.get_tensor(name) for name in stream.keys()})  # noqa: SIM118
    probes = Probes.taken_from(tensors, where=str(path))
    try:
        space = _space(metadata.space)
        preprocessing = read_preprocessing(metadata.preprocessing, where=f"{path}: preprocessing")
        example = _example(metadata, preprocessing, path)
        augmentation = Augmentation(**dict(metadata.augmentation))
        if isinstance(preprocessing, Preprocessing) and augmentation.shift > max(preprocessing.image_size):
            raise CheckpointError("larger than the image", where=f"{path}: augmentation.shift")
        if model is None:
            make = partial(_float_model, metadata.architecture, build, path)
            stored_bytes = sum(tensor.nbytes for tensor in tensors.values())
            check_declared_size(make, example, stored_bytes, where=str(path))
            model = make()
        supernet = Supernet.from_float(model, example, space)
        fold_batch_norms(supernet)
    except (CheckpointError, MissingDependencyError):
        raise
    except (ValueError, EqDeployError) as error:
        raise CheckpointError(str(error), where=str(path)) from error
    _fill(supernet.graph_module, tensors, path)
    supernet.eval()
    statistics = read_statistics(supernet.graph_module)
    return Checkpoint(supernet, metadata, preprocessing, augmentation, statistics, probes)


def _example(metadata: CheckpointMetadata, preprocessing: InputPreprocessing, path: Path) -> Inputs:
    """A batch of two for converting the model.

    Raises:
        CheckpointError: If the shape is not what the preprocessing makes, or far too large.
    """
    shape, made = tuple(metadata.input_shape), preprocessing.shape
    is_image = isinstance(preprocessing, Preprocessing)
    # A preprocessing of images may accompany inputs of another rank, which say nothing about how they are made.
    if shape != made and (not is_image or len(shape) in (0, 3)):
        raise CheckpointError(
            f"input_shape {list(shape)} is not what preprocessing makes, {list(made)}", where=f"{path}: input_shape"
        )
    parts = [part.shape for _, part in getattr(preprocessing, "inputs", ())] or [shape]
    if sum(math.prod(part) for part in parts) > _MAXIMUM_INPUT_VALUES:
        raise CheckpointError(f"more than {_MAXIMUM_INPUT_VALUES} values", where=f"{path}: input_shape")
    return torch.zeros((2, *shape)) if is_image else to_inputs(preprocessing.example(2))


def _read(path: Path, action: Callable[[Any], Any]) -> Any:
    """Open a safetensors file and do something with it."""
    if not path.is_file():
        problem = "is not a plain file" if path.exists() else "no such file"
        problem = "is a folder, not a file" if path.is_dir() else problem
        raise CheckpointError(problem, where=str(path))
    try:
        with safe_open(str(path), framework="pt") as stream:
            refuse_repeated_tensors(path, CheckpointError)
            return action(stream)
    except PermissionError as error:
        raise CheckpointError("permission denied", where=str(path)) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"not a valid safetensors file: {error}", where=str(path)) from error


def _parse_metadata(entries: Mapping[str, str] | None, path: Path) -> CheckpointMetadata:
    """Parse and check the metadata."""
    text = (entries or {}).get(METADATA_KEY)
    if text is None or len(text) > _MAXIMUM_METADATA:
        raise CheckpointError(
            "a safetensors file, but not a supernet", where=str(path), hint="eqdeploy train makes one"
        )
    try:
        metadata = CheckpointMetadata.model_validate_json(text)
        refuse_repeated_keys(text, f"{path}: metadata", CheckpointError)
        return metadata
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise CheckpointError(f"{first['msg']}", where=f"{path}: {key}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError("the metadata is not valid JSON", where=str(path)) from error


def _space(data: SpaceMetadata) -> ElasticSpace:
    """Turn plain data into a space."""
    return ElasticSpace(
        bits=tuple(data.bits),
        granularities=tuple(Granularity(value) for value in data.granularities),
        symmetries=tuple(Symmetry(value) for value in data.symmetries),
        narrow=data.narrow,
        boundary_bits=data.boundary_bits,
        batch_norm=BatchNormTraining(data.batch_norm),
        scales=ScaleTraining(data.scales),
        residual=Residual(data.residual),
    )


def _float_model(
    reference: ArchitectureReference, build: Callable[[str, Mapping[str, object]], nn.Module], path: Path
) -> nn.Module:
    """Make the model that a checkpoint names, without disturbing the global random state."""
    if reference.name is None:
        raise CheckpointError(
            "the checkpoint is of a model of your own",
            where=str(path),
            hint="pass it with --model package.module:factory",
        )
    with torch.random.fork_rng(devices=[]):
        return build(reference.name, reference.arguments)


@torch.no_grad()
def _fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors of a file into those of a network.

    Not with ``load_state_dict``: it goes through all names again for every module.
    """
    own, others = own_tensors(module)
    differing = [name for name, first in others.items() if name in tensors and not _equal(tensors, name, first)]
    if differing:
        raise CheckpointError(
            f"one tensor of the model has several values: {', '.join(differing[:_MAXIMUM_LISTED])}",
            where=str(path),
            hint="the file belongs to a model that does not share these weights",
        )
    found = {name: tensor for name, tensor in tensors.items() if name not in others}
    _check_tensors(own, dict(module.named_buffers()), found, path)
    for name, tensor in own.items():
        tensor.copy_(found[name])


def _equal(tensors: Mapping[str, Tensor], name: str, first: str) -> bool:
    """Whether a file has the same values under two names of a tensor."""
    return first in tensors and torch.equal(tensors[name], tensors[first])


def _check_tensors(
    expected: Mapping[str, Tensor], constants: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path
) -> None:
    """Compare names, shapes, dtypes and finiteness of all tensors, and report all problems together.

    A constant of the model, such as a mask, may hold infinities where the model itself has them.
    """
    problems: list[str] = []
    fitting = {name for name, tensor in found.items() if name in expected and _fits(tensor, expected[name])}
    for label, names in (
        ("missing", [name for name in expected if name not in found]),
        ("unexpected", [name for name in found if name not in expected]),
        (
            "wrong shape or dtype",
            [name for name in found if name in expected and name not in fitting],
        ),
        ("not finite", [name for name in fitting if not_finite(found[name], constants.get(name))]),
        (
            "negative variance",
            [name for name in fitting if name.endswith("running_var") and bool((found[name] < 0).any())],
        ),
    ):
        if names:
            listed = ", ".join(sorted(names)[:_MAXIMUM_LISTED])
            more = len(names) - _MAXIMUM_LISTED
            problems.append(f"{label}: {listed}" + (f" and {more} more" if more > 0 else ""))
    if problems:
        raise CheckpointError(
            "; ".join(problems), where=str(path), hint="the file belongs to another model or is damaged"
        )


def _fits(tensor: Tensor, expected: Tensor) -> bool:
    """Whether a stored tensor can take the place of a model's."""
    return tensor.shape == expected.shape and tensor.dtype == expected.dtype
