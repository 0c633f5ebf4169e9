"""Measure the values of tensors that training gave no scale."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from eqdeploy.errors import DataError
from eqdeploy.quant.elastic_quantizer import LARGEST_EXPONENT
from eqdeploy.quant.encoding import Encoding
from eqdeploy.quant.form import Form
from eqdeploy.quant.initialize import minimize_error, subsample
from eqdeploy.supernet.inputs import Inputs, batch_size, positional
from eqdeploy.supernet.modes import evaluation_mode
from eqdeploy.supernet.supernet import Supernet
from eqdeploy.supernet.visibility import ENCODED_DEPTH, SoftmaxViews, raised

#: Values kept of each tensor and batch, besides its extremes.
VALUES_PER_BATCH = 1 << 13


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps a sample of chosen tensors, of those before softmax as it sees them."""

    def __init__(self, graph_module: fx.GraphModule, names: Collection[str]) -> None:
        super().__init__(graph_module)
        self._views = SoftmaxViews(graph_module, ENCODED_DEPTH)
        self._direct = frozenset(names) - self._views.names
        self._seen_by_softmax = frozenset(names) & self._views.names
        self._needed = self._views.needed(names)
        self._kept: dict[fx.Node, Tensor] = {}
        self._waiting: dict[str, Tensor] = {}
        self.samples: dict[str, list[Tensor]] = {name: [] for name in names}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self._needed:
            self._kept[n] = result
        if n.name in self._seen_by_softmax:
            self._waiting[n.name] = result
        elif n.name in self._direct:
            self._add(n.name, result)
        return result

    def finish_batch(self) -> None:
        """Take the samples that had to wait for what comes after them."""
        for name, values in self._waiting.items():
            floor = self._views.floor(name, self._kept)
            if floor is not None and not bool(torch.isfinite(floor).all()):
                raise DataError(
                    "a calibration image leaves softmax a row in which everything is hidden, or a value that is not "
                    "finite",
                    where=name,
                    hint="let every row of the mask show at least one entry",
                )
            self._add(name, raised(values, floor))
        self._waiting.clear()
        self._kept.clear()

    def _add(self, name: str, values: Tensor) -> None:
        """Keep a sample of a tensor."""
        if not bool(torch.isfinite(values).all()):
            raise DataError("a calibration image gives this tensor a value that is not finite", where=name)
        self.samples[name].append(subsample(values.detach().float().reshape(1, -1), VALUES_PER_BATCH))


@torch.no_grad()
def sample_tensors(supernet: Supernet, batches: Iterable[Inputs], names: Collection[str]) -> dict[str, Tensor]:
    """Collect values of tensors of the active subnet, in evaluation mode, before their own quantizer.

    What softmax alone reads is raised to where softmax begins to see it: a mask of −10000 or −∞ would take the whole
    range of an encoding and leave one code to all scores.

    Args:
        supernet: With its subnet active and BatchNorm calibrated.
        batches: Preprocessed images, each batch of shape (N, ...), without augmentation.
        names: Tensor names of the network description.

    Returns:
        For each name, float32 values of shape (1, M): evenly spaced ones and every batch's extremes.

    Raises:
        DataError: If there are no images, or a tensor takes a value that is not finite.
    """
    recorder = _Recorder(supernet.graph_module, names)
    images = 0
    with evaluation_mode(supernet):
        for batch in batches:
            recorder.run(*positional(supernet.graph_module.graph, batch))
            recorder.finish_batch()
            images += batch_size(batch)
    if images == 0:
        raise DataError("the calibration set is empty", hint="give at least a few hundred images")
    return {name: torch.cat(samples, dim=1) for name, samples in recorder.samples.items()}


def calibrate_encodings(samples: Mapping[str, Tensor], forms: Mapping[str, Form]) -> dict[str, Encoding]:
    """Turn sampled values into encodings with the smallest error.

    Args:
        samples: Values by tensor name, shape (1, M).
        forms: The device's form of each tensor, per-tensor.

    Returns:
        Encodings by tensor name. A tensor without any non-zero value gets scale 1. Scales stay inside the range of
        trained ones, so that the product of two is a normal float32 number.
    """
    encodings: dict[str, Encoding] = {}
    for name, form in forms.items():
        scale, zero_point = minimize_error(samples[name], form)
        encodings[name] = Encoding.per_tensor(
            min(max(scale[0].item(), 2.0**-LARGEST_EXPONENT), 2.0**LARGEST_EXPONENT),
            int(zero_point[0].item()),
            form.q_min,
            form.q_max,
            form.bits,
            signed=form.signed,
        )
    return encodings
