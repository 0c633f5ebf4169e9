"""What is fuzzed: one target for every parser of files that somebody else may have made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from eqdeploy.data import Preprocessing
from eqdeploy.data.cifar import find_layout, read_cifar
from eqdeploy.data.inputs import TokenPreprocessing
from eqdeploy.data.plain_pickle import read_plain_pickle
from eqdeploy.data.references import load_images
from eqdeploy.encoding_table import check_encodings
from eqdeploy.errors import EqDeployError
from eqdeploy.exporters.contract import get_exporter
from eqdeploy.exporters.files import refuse_outside_data
from eqdeploy.exporters.qdq_reader import read_model
from eqdeploy.inspection import inspect_file
from eqdeploy.manifest import verify_manifest
from eqdeploy.pipeline.configuration import read_configuration
from eqdeploy.pipeline.sources import load_subnet
from eqdeploy.profile_loading import load_profile
from eqdeploy.project import PROJECT_FILE, load_project
from eqdeploy.quantized_model import QuantizedModel
from eqdeploy.report import read_report
from eqdeploy.search.latency import LatencyTable
from eqdeploy.search.predictor import Predictor
from eqdeploy.search.store import HEADER_FILE, MeasurementStore
from eqdeploy.supernet.checkpoint import checkpoint_digest, load_checkpoint
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.float_weights import load_float_weights
from eqdeploy.training.log import read_step_mode
from eqdeploy.training.state import load_state, restore_state
from eqdeploy.validation.qdq_file import QdqFile
from eqdeploy.zoo import build
from tests.fuzz import mutations
from tests.fuzz.mutations import Mutation

CORPUS = Path(__file__).resolve().parent / "corpus"
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "exporters"

#: What the images of the seeds are read for.
IMAGES = Preprocessing((8, 8), 1, (0.5,), (0.25,))
COLOURS = Preprocessing((4, 4), 3, (0.5,) * 3, (0.25,) * 3, resize_shorter_side=5)
CIFAR = Preprocessing((32, 32), 3, (0.0,) * 3, (1.0,) * 3)
TOKENS = TokenPreprocessing((4,), 16)


@dataclass(frozen=True)
class Target:
    """A parser and how its input is made.

    Attributes:
        file: Where the input stands below a folder of its own.
        parse: Reads the file, as far as reading goes before anything is computed.
        mutate: Makes one input of another.
        prepare: Puts what else belongs there into the folder, once.
        mutations: How many mutations the quick test makes; slow parsers get fewer.
    """

    file: str
    parse: Callable[[Path], object]
    mutate: Mutation
    prepare: Callable[[Path], object] = lambda _: None
    mutations: int = 150

    def placed(self, folder: Path) -> Path:
        """Make an empty folder ready; return where inputs are written."""
        self.prepare(folder)
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def seeds(self, name: str) -> dict[str, bytes]:
        """Committed inputs by file name: valid ones, and those that once failed."""
        return {path.name: path.read_bytes() for path in sorted((CORPUS / name).iterdir())}


def _all(*parsers: Callable[[Path], object]) -> Callable[[Path], object]:
    """Hand a file to several parsers; it is refused if all of them refuse it."""

    def parse(path: Path) -> None:
        refusals: list[EqDeployError] = []
        for parser in parsers:
            try:
                parser(path)
            except EqDeployError as refusal:
                refusals.append(refusal)
        if len(refusals) == len(parsers):
            raise refusals[0]

    return parse


def _load_checkpoint(path: Path) -> None:
    load_checkpoint(path, build)


def _read_exported(exporter: str, parents: int) -> Callable[[Path], object]:
    """Read a folder that an exporter wrote, the file in it being ``parents`` levels below."""
    return lambda path: get_exporter(exporter).read(path.parents[parents])


def _copy_golden(exporter: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copytree(GOLDEN / exporter, folder, dirs_exist_ok=True)


@cache
def _golden_model() -> QuantizedModel:
    return read_model(GOLDEN / "onnx_qdq" / "model.onnx")


def _data(preprocessing: Preprocessing | TokenPreprocessing, *, folder: bool = False) -> Callable[[Path], object]:
    """Read the data in a file, or in the folder around it."""

    def parse(path: Path) -> None:
        reference = str(path.parent if folder else path)
        for split in ("train", "test"):
            load_images(reference, split=split, preprocessing=preprocessing)

    return parse


def _read_cifar(path: Path) -> None:
    read_plain_pickle(path)
    found = find_layout(path.parents[1])
    assert found is not None  # by the file's name
    read_cifar(found[0], path.parent, split="test", preprocessing=CIFAR, limit=None)


def _prepare_cifar(folder: Path) -> None:
    inner = folder / "cifar-10-batches-py"
    inner.mkdir()
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        (inner / name).write_bytes((CORPUS / "pickle" / "batch").read_bytes())


def _load_float_weights(path: Path) -> None:
    load_float_weights(build("mlp", {"width": 2, "depth": 1}), path)


def _parse_configuration(path: Path) -> None:
    configuration = read_configuration(path.parent)
    configuration.device_profile(where=str(path))
    configuration.preprocessing_of(where=str(path))


def state_companions() -> tuple[nn.Module, torch.optim.Optimizer, dict[str, torch.Generator]]:
    """What a training state is restored into."""
    model = nn.Linear(2, 2)
    return model, torch.optim.Adam(model.parameters()), {"data": torch.Generator()}


def _restore_state(path: Path) -> None:
    state = load_state(path, configuration={})
    model, optimizer, generators = state_companions()
    restore_state(state, model=model, optimizer=optimizer, average=None, generators=generators)


def _inspect(path: Path) -> None:
    inspect_file(path).to_json()


def _qdq_file(path: Path) -> None:
    file = QdqFile.load(path)
    file.constants, file.parameters()  # computed when first asked for


#: Every target by name; its seeds are in the folder of that name.
TARGETS: dict[str, Target] = {
    "checkpoint": Target(
        "a.safetensors", _all(_load_checkpoint, checkpoint_digest, _inspect), mutations.mutate_safetensors
    ),
    "training-state": Target("state.safetensors", _restore_state, mutations.mutate_safetensors),
    "float-weights": Target("weights.safetensors", _load_float_weights, mutations.mutate_safetensors),
    "predictor": Target("predictor.safetensors", Predictor.load, mutations.mutate_safetensors),
    "pickle": Target("cifar-10-batches-py/test_batch", _read_cifar, mutations.mutate_bytes, _prepare_cifar),
    "profile": Target("profile.yaml", lambda path: load_profile(str(path)), mutations.mutate_yaml),
    "training-configuration": Target("train.yaml", TrainingConfig.load, mutations.mutate_yaml),
    "project": Target(PROJECT_FILE, lambda path: load_project(path.parent), mutations.mutate_yaml),
    "manifest": Target("manifest.json", lambda path: verify_manifest(path.parent), mutations.mutate_json),
    "report": Target("report.json", lambda path: read_report(path.parent), mutations.mutate_json),
    "configuration": Target("config.json", _parse_configuration, mutations.mutate_json),
    "subnet": Target("subnet.json", _all(load_subnet, _inspect), mutations.mutate_json),
    "encodings": Target(
        "encodings.json", lambda path: check_encodings(path.parent, _golden_model()), mutations.mutate_json
    ),
    "aimet-encodings": Target(
        "snpe/model.encodings",
        _all(_read_exported("snpe", 1), _inspect),
        mutations.mutate_json,
        _copy_golden("snpe"),
        mutations=30,
    ),
    "training-log": Target("log.jsonl", read_step_mode, mutations.mutate_json_lines),
    "measurements-header": Target(HEADER_FILE, lambda path: MeasurementStore.open(path.parent), mutations.mutate_json),
    "measurements": Target(
        "measurements-0.jsonl",
        lambda path: MeasurementStore.open(path.parent).read(),
        mutations.mutate_json_lines,
        lambda folder: shutil.copy(CORPUS / "measurements-header" / HEADER_FILE, folder),
    ),
    "onnx": Target(
        "model.onnx",
        _all(read_model, _qdq_file, refuse_outside_data, _inspect),
        mutations.mutate_onnx,
        mutations=30,
    ),
    "tensorrt-qdq": Target(
        "model.onnx",
        _read_exported("tensorrt", 0),
        mutations.mutate_onnx,
        _copy_golden("tensorrt"),
        mutations=30,
    ),
    "calibration-cache": Target(
        "tensorrt/calibration.cache",
        _read_exported("tensorrt", 1),
        mutations.mutate_bytes,
        _copy_golden("tensorrt"),
        mutations=30,
    ),
    "npz-images": Target("a.npz", _all(_data(IMAGES), _data(COLOURS), _inspect), mutations.mutate_npz),
    "npz-inputs": Target("a.npz", _data(TOKENS), mutations.mutate_npz),
    "image-file": Target("a/b.png", _data(COLOURS, folder=True), mutations.mutate_bytes),
    "latency-table": Target("latency.csv", LatencyTable.read, mutations.mutate_bytes),
}
