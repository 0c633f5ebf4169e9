"""A model of your own, from float to two devices.

Trains a small convolutional network on the embedded digits as an elastic supernet, then exports it for a Qualcomm DSP
and for four-bit weights and activations. Every number of the exported models is proved on the way.

    python examples/own_model.py build/own-model
"""

import sys
from pathlib import Path

from torch import Tensor, nn

from eqdeploy.pipeline import export_profiles, train
from eqdeploy.progress import SilentProgress
from eqdeploy.requests import ExportRequest, TrainRequest

HERE = Path(__file__).parent


class SmallNetwork(nn.Module):
    """Any module that torch.fx can trace will do."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of 10 classes for images of shape (N, 1, 8, 8)."""
        return self.classifier(self.features(images).mean((2, 3)))


def make() -> nn.Module:
    """What the command line would call with ``--model own_model:make``."""
    return SmallNetwork()


def main(output: Path) -> None:
    """Train, export, and say what came out."""
    progress = SilentProgress()
    sys.path.insert(0, str(HERE))
    trained = train(
        TrainRequest(str(HERE / "own_model.train.yaml"), output / "supernet", model="own_model:make", force=True),
        progress,
    )
    request = ExportRequest(
        profiles=("snpe-dsp", "onnxruntime-w4a4"),
        supernet=str(trained.checkpoint),
        model="own_model:make",
        data="digits",
        output=output,
        force=True,
    )
    for result in export_profiles(request, progress):
        print(f"{result.directory}: {result.report.verdict}, {result.report.accuracy.summary}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/own-model"))
