"""Give a supernet that was trained before there were any its probes and the statistics of its training images.

    python -m benchmarks.add_probes SUPERNET.safetensors --data FOLDER

Weights, scales, BatchNorm statistics and the digest by which artifacts, measurements and predictors know the supernet
stay as they are. ``eqdeploy train`` writes the same bytes by itself. The shipped supernets went through this once.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from eqdeploy.data import load_data
from eqdeploy.supernet.checkpoint import checkpoint_digest, load_checkpoint, save_checkpoint
from eqdeploy.supernet.probes import PROBES, Probes
from eqdeploy.training.result import training_statistics
from eqdeploy.zoo import build


def add_probes(path: Path, data: str) -> None:
    """Write the checkpoint again, with probes of held-out images and statistics of the training images."""
    before = checkpoint_digest(path)
    checkpoint = load_checkpoint(path, build)
    supernet, preprocessing = checkpoint.supernet, checkpoint.preprocessing
    training, held_out = (load_data(data, split=split, preprocessing=preprocessing) for split in ("train", "test"))
    statistics = training_statistics(supernet, training, preprocessing)
    metadata = checkpoint.metadata.model_copy(update={"training_data": statistics})
    save_checkpoint(supernet, metadata, path, Probes.of(supernet, held_out.spread(PROBES).images, preprocessing))
    after = checkpoint_digest(path)
    if before != after:
        raise SystemExit(f"the digest was {before} and is now {after}")
    print(f"{path}: {before}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("supernet", type=Path)
    parser.add_argument("--data", required=True)
    arguments = parser.parse_args()
    add_probes(arguments.supernet, arguments.data)
