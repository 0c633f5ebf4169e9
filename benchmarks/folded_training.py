"""Devices with one scale per weight, at few bits: BatchNorm kept apart in training against folded before it.

Trains one supernet for each way from the same float weights, and measures each width as it is simulated in training
and as ONNX Runtime runs the exported file: on a device with one scale per weight, and on one whose scales are also
powers of two.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from common import markdown_table, write_results
from images import write_subset

from eqdeploy.network import BatchNormTraining, ScaleTraining
from eqdeploy.pipeline import export_profiles
from eqdeploy.progress import SilentProgress
from eqdeploy.report import ArtifactReport
from eqdeploy.requests import ExportRequest
from eqdeploy.training.config import TrainingConfig
from eqdeploy.training.run_files import RunFiles
from eqdeploy.training.trainer import train

CONFIGURATION = Path(__file__).parent.parent / "eqdeploy" / "embedded" / "cifar10-resnet20.train.yaml"
BITS = (2, 3, 4, 8)
#: What is compared: how BatchNorm and scales are trained.
TRAININGS = (
    (BatchNormTraining.SEPARATE, ScaleTraining.FREE),
    (BatchNormTraining.FOLDED, ScaleTraining.FREE),
    (BatchNormTraining.FOLDED_MEAN, ScaleTraining.FREE),
    (BatchNormTraining.FOLDED_BIAS, ScaleTraining.FREE),
    (BatchNormTraining.FOLDED_MEAN, ScaleTraining.POWER_OF_TWO),
)
DEVICES = ("per-tensor", "power-of-two")


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    configuration: Path
    data: str
    images: int
    held_out: int
    float_epochs: int
    epochs: int
    weights: Path | None
    work: Path | None
    name: str


def main() -> None:
    """Train, export, compare, write the table."""
    options = _options()
    with _folder(options.work) as folder:
        preprocessing = TrainingConfig.load(options.configuration).preprocessing.to_preprocessing()
        data = write_subset(options.data, preprocessing, folder / "images", train=options.images, test=options.held_out)
        weights = options.weights or _float_weights(options, data, folder / "float")
        rows = [
            row
            for batch_norm, scales in TRAININGS
            for row in _measure(options, data, weights, folder / f"{batch_norm}-{scales}", batch_norm, scales)
        ]
    header = ["device", "BatchNorm", "scales", *(f"{bits} bits: simulated → exported" for bits in BITS)]
    table = []
    for device in DEVICES:
        for batch_norm, scales in TRAININGS:
            found = [
                row for row in rows if (row["device"], row["batch_norm"], row["scales"]) == (device, batch_norm, scales)
            ]
            cells = [f"{row['simulated']:.2%} → {row['exported']:.2%}{'' if row['exact'] else ' *'}" for row in found]
            table.append([device, str(batch_norm), str(scales), *cells])
    summary = (
        f"Top-1 on {rows[0]['images']} held-out images after {options.epochs} epochs on at most {options.images} "
        "images, weights and activations at the same width, one scale per weight, first and last layer 8 bits. "
        "* The export quantizes weights a second time."
    )
    command = (
        f"python benchmarks/folded_training.py --data {options.data} --weights float.safetensors --work runs "
        f"--images {options.images} --epochs {options.epochs}"
    )
    figures = {"configuration": options.configuration.name, "images": options.images, "epochs": options.epochs}
    figures = {**figures, "rows": rows}
    write_results(options.name, command, figures, [summary, markdown_table(header, table)])


def _measure(
    options: Options, data: Path, weights: Path, folder: Path, batch_norm: BatchNormTraining, scales: ScaleTraining
) -> Iterator[dict[str, Any]]:
    """Train one supernet and export every width for both devices."""
    checkpoint = RunFiles.of(folder).checkpoint
    if not checkpoint.exists():
        config = _configuration(options, data, folder.with_suffix(".yaml"), batch_norm, scales, weights)
        train(config, folder, resume=True, progress=SilentProgress())
    for device in DEVICES:
        for bits in BITS:
            report = _export(checkpoint, data, folder / "export", _profile(folder / "profile.yaml", device, bits))
            accuracy = {row["name"]: row["accuracy"] for row in report.accuracy.details["rows"]}
            yield {
                "device": device,
                "batch_norm": str(batch_norm),
                "scales": str(scales),
                "bits": bits,
                **accuracy,
                "images": report.accuracy.details["rows"][0]["images"],
                "exact": all(layer.exact for layer in report.folding),
                "largest_weight_error": max(layer.relative_error for layer in report.folding),
                "verdict": str(report.verdict),
            }
            print(f"{device} {batch_norm} {scales} W{bits}A{bits}: {accuracy}", flush=True)


def _export(checkpoint: Path, data: Path, output: Path, profile: Path) -> ArtifactReport:
    """Export under one profile."""
    request = ExportRequest(
        profiles=(str(profile),), supernet=str(checkpoint), data=str(data), output=output, force=True, parity_images=16
    )
    (result,) = export_profiles(request, SilentProgress())
    return result.report


def _profile(path: Path, device: str, bits: int) -> Path:
    """Write the profile of a device with one scale per weight."""
    scale = {"scale": "power_of_two"} if device == "power-of-two" else {}
    document = {
        "schema": 1,
        "name": f"{device}-{bits}",
        "description": f"{bits}-bit weights with one scale, {bits}-bit activations.",
        "inherits": "onnxruntime-x86",
        "weights": {"bits": bits, "boundary_bits": 8, "granularity": "per_tensor", "batch_norm": "requantize", **scale},
        "activations": {"non_negative": {"bits": bits}, "signed": {"bits": bits}, "boundary_bits": 8, **scale},
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def _configuration(
    options: Options,
    data: Path,
    path: Path,
    batch_norm: BatchNormTraining = BatchNormTraining.SEPARATE,
    scales: ScaleTraining = ScaleTraining.FREE,
    weights: Path | None = None,
) -> TrainingConfig:
    """Fill in the configuration; with float weights to start from, the float network is not trained."""
    document = yaml.safe_load(options.configuration.read_text(encoding="utf-8"))
    document["data"] = str(data)
    document["space"] = {
        **document["space"],
        "bits": list(BITS),
        "granularities": ["per_tensor"],
        "symmetries": ["symmetric"],
        "batch_norm": str(batch_norm),
        "scales": str(scales),
    }
    document["float_training"]["epochs"] = 0 if weights else options.float_epochs
    document["supernet_training"] |= {"epochs": options.epochs, "restarts": 0}
    if weights:
        document["model"]["weights"] = str(weights)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return TrainingConfig.load(path)


def _float_weights(options: Options, data: Path, folder: Path) -> Path:
    """Train the float network that every supernet starts from."""
    weights = RunFiles.of(folder).float_weights
    if not weights.exists():
        config = _configuration(options, data, folder.with_suffix(".yaml"))
        train(config, folder, resume=True, float_only=True, progress=SilentProgress())
    return weights


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    """A folder that stays, in which a second run finds what the first has trained; or a temporary one."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="labelled images, such as the folder of CIFAR-10")
    parser.add_argument("--configuration", type=Path, default=CONFIGURATION, help="model, preprocessing, optimization")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--held-out", type=int, default=10_000, help="held-out images")
    parser.add_argument("--float-epochs", type=int, default=10, help="float training, without --weights")
    parser.add_argument("--epochs", type=int, default=10, help="training of each supernet")
    parser.add_argument("--weights", type=Path, default=None, help="float weights to start from")
    parser.add_argument("--work", type=Path, default=None, help="folder that keeps what was trained")
    parser.add_argument("--name", default="folded_training", help="name of the result files")
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
