"""Take a network of more than 2 GiB through save, export, validate, eval and inspect; say what it takes.

    EQDEPLOY_MEMORY_LIMIT=none python benchmarks/large_model.py {table|linear} [--gib 2.1] [--profile NAME]

``table`` is large by an embedding, which stays float: the file itself exceeds 2 GiB, and its tensors lie beside it.
``linear`` is large by one quantized layer: in the file are 8-bit integers, a quarter of its weights.

Memory is what limits bound: private memory in use (``RssAnon`` of /proc), looked at twenty times a second, of the
process that works. Pages of mapped files do not count. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

#: Width of the table's entries.
_WIDTH = 256
_INPUTS = 6
_SAMPLES = 64


class Table(nn.Module):
    """Looks up words, and decides by their mean."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, _WIDTH, _weight=torch.empty(rows, _WIDTH))
        self.hidden = nn.Linear(_WIDTH, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, words: Tensor) -> Tensor:
        """(N, words) to (N, 10)."""
        result: Tensor = self.head(torch.relu(self.hidden(self.table(words).mean(1))))
        return result


class Wide(nn.Module):
    """One square layer between two small ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(_INPUTS, width)
        self.wide = nn.Linear(width, width, bias=False, device="meta").to_empty(device="cpu")
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) to (N, 10)."""
        result: Tensor = self.head(torch.relu(self.wide(torch.relu(self.first(x)))))
        return result


def _size() -> int:
    return int(os.environ["LARGE_MODEL_SIZE"])


def table() -> Table:
    """The factory that ``--model`` names."""
    return Table(_size())


def linear() -> Wide:
    """The factory that ``--model`` names."""
    return Wide(_size())


def save(variant: str) -> None:
    """Write data.npz and large.safetensors into the working directory: random weights, scales from the data."""
    from eqdeploy.data import TokenPreprocessing, ValuePreprocessing
    from eqdeploy.data.augmentation import Augmentation
    from eqdeploy.network import ElasticSpace
    from eqdeploy.supernet.checkpoint import ArchitectureReference, metadata_of, save_checkpoint
    from eqdeploy.supernet.inputs import to_inputs
    from eqdeploy.supernet.supernet import Supernet

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model: nn.Module = table() if variant == "table" else linear()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.numel() > 1 << 24:
                weight.uniform_(-1.0, 1.0)
                weight.mul_(1.0 if variant == "table" else _size() ** -0.5)
    if variant == "table":
        preprocessing = TokenPreprocessing((_INPUTS,), _size())
        inputs = random.integers(0, _size(), (_SAMPLES, _INPUTS))
    else:
        preprocessing = ValuePreprocessing((_INPUTS,))
        inputs = random.normal(size=(_SAMPLES, _INPUTS)).astype(np.float32)
    with torch.no_grad():
        labels = model.eval()(torch.from_numpy(inputs)).argmax(1).numpy()
    np.savez("data.npz", inputs=inputs, labels=labels)
    supernet = Supernet.from_float(model, to_inputs(preprocessing.example(2)), ElasticSpace(bits=(8,)))
    del model
    supernet.initialize(to_inputs(preprocessing.apply(inputs)))
    metadata = metadata_of(
        supernet,
        architecture=ArchitectureReference(name=None),
        preprocessing=preprocessing,
        augmentation=Augmentation(),
        classes=tuple("0123456789"),
        provenance={},
    )
    save_checkpoint(supernet, metadata, Path("large.safetensors"))


def _children(process: int) -> list[int]:
    try:
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _private_bytes(process: int) -> int:
    """Private memory of a process and of its children, the largest of them."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    own = next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)
    return max([own, *map(_private_bytes, _children(process))])


def measure(name: str, command: list[str], folder: Path) -> None:
    """Run a command, and print its time, its memory and how it ended.

    Raises:
        SystemExit: If it fails.
    """
    here = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    begun, largest = time.monotonic(), 0
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": here}, stdout=log, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            largest = max(largest, _private_bytes(process.pid))
            time.sleep(0.05)
    print(f"{name:10} {time.monotonic() - begun:6.0f} s {largest / 1e9:6.1f} GB  exit {process.returncode}", flush=True)
    if process.returncode:
        print((folder / f"{name}.log").read_text()[-2000:])
        raise SystemExit(1)


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=("table", "linear"))
    parser.add_argument("--gib", type=float, default=2.1, help="size of the large weight as float32")
    parser.add_argument("--profile", default="onnxruntime-x86")
    parser.add_argument("--folder", type=Path, help="for checkpoint and artifact [default: a temporary one]")
    parser.add_argument("--save", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.save:
        save(arguments.variant)
        return
    values = arguments.gib * (1 << 30) / 4
    os.environ["LARGE_MODEL_SIZE"] = str(int(values / _WIDTH if arguments.variant == "table" else values**0.5))
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run = [sys.executable, "-m", "eqdeploy"]
        artifact = f"build/{arguments.profile}"
        model = ["--supernet", "large.safetensors", "--model", f"large_model:{arguments.variant}"]
        data = ["--data", "data.npz"]
        measure("save", [sys.executable, str(Path(__file__).resolve()), arguments.variant, "--save"], folder)
        print(f"checkpoint {(folder / 'large.safetensors').stat().st_size / 1e9:.2f} GB")
        measure("export", [*run, "export", "--force", "--profile", arguments.profile, *model, *data], folder)
        files = {path.name: path.stat().st_size for path in (folder / artifact).rglob("model.onnx*")}
        print("files", ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in files.items()))
        measure("validate", [*run, "validate", artifact, *model, *data], folder)
        measure("eval", [*run, "eval", artifact, *data], folder)
        measure("inspect", [*run, "inspect", f"{artifact}/model.onnx"], folder)


if __name__ == "__main__":
    main()
