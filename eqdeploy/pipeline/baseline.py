"""The float network that an artifact is held against."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from eqdeploy.data import LabelledImages
from eqdeploy.pipeline.subnets import activate_calibrated
from eqdeploy.progress import Progress
from eqdeploy.supernet.checkpoint import Checkpoint
from eqdeploy.supernet.copies import copy_sharing_weights
from eqdeploy.supernet.inputs import positional, to_inputs
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.supernet.visibility import COMPARED_DEPTH, SoftmaxViews
from eqdeploy.validation.accuracy import Classifier, torch_classifier
from eqdeploy.validation.distance import FloatValues


class FloatNetwork:
    """A copy of a supernet that computes the float network and shows its tensors.

    Args:
        supernet: Is copied, with its BatchNorm statistics as they are now. Its weights must not change afterwards.
    """

    def __init__(self, supernet: Supernet) -> None:
        self._supernet = copy_sharing_weights(supernet).eval()
        self._supernet.deactivate()

    @property
    def classifier(self) -> Classifier:
        """The network as a classifier of preprocessed images."""
        return torch_classifier(self._supernet)

    def tensors(self, images: NDArray[Any], names: Collection[str]) -> FloatValues:
        """Values of some tensors.

        Args:
            images: Preprocessed, shape (N, …), or (N,) records with a field for each input.
            names: Names of the network description; those that it does not have are left out.

        Returns:
            float32 values by name, shape (N, …) of the tensor, and what softmax does not see of them.
        """
        graph_module = self._supernet.graph_module
        views = SoftmaxViews(graph_module, COMPARED_DEPTH)
        recorder = _Recorder(graph_module, frozenset(names), views.needed(names))
        with torch.inference_mode():
            recorder.run(*positional(graph_module.graph, to_inputs(images)))
            floors = {name: views.floor(name, recorder.kept) for name in recorder.values}
        return FloatValues(
            recorder.values, {name: floor.numpy() for name, floor in floors.items() if floor is not None}
        )


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps chosen tensors as they are when they are computed."""

    def __init__(self, graph_module: fx.GraphModule, names: frozenset[str], nodes: frozenset[fx.Node]) -> None:
        super().__init__(graph_module)
        self.names = names
        self.nodes = nodes
        self.values: dict[str, NDArray[np.float32]] = {}
        self.kept: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.nodes:
            self.kept[n] = result.clone()
        if n.name in self.names and isinstance(result, Tensor):
            self.values[n.name] = np.array(result.numpy(), np.float32)
        return result


def float_network(checkpoint: Checkpoint, images: LabelledImages, seed: int, progress: Progress) -> FloatNetwork:
    """The float network of a checkpoint: its weights without quantization, BatchNorm calibrated for them.

    Args:
        checkpoint: The supernet; its BatchNorm statistics are replaced.
        images: Calibration images.
        seed: Seed of the augmentation.
        progress: Listener.
    """
    activate_calibrated(checkpoint, None, images, seed, progress)
    return FloatNetwork(checkpoint.supernet)
