"""A few inputs with the outputs that training saw: proof that preprocessing and network are still what they were.

Whatever is compared later is computed with the same preprocessing, so a mistake in it would change both sides alike
and show nowhere. Probes were computed when the supernet was made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.errors import CheckpointError, DataError

#: Probes that training stores unless it is told otherwise; 4 images of CIFAR-10 are 12 kB.
PROBES = 4

#: Most that a checkpoint holds: all of them run whenever it is loaded.
MAXIMUM_PROBES = 64

#: Largest difference of an output, relative to the largest. Kernels of other processors and thread counts differ by
#: 1e-6; a standard deviation that is one per mille off, by about 1e-3.
TOLERANCE = 1e-4

# No module can have such a name, so these are never parameters of a model.
_INPUTS, _OUTPUTS = "eqdeploy:probes.inputs", "eqdeploy:probes.outputs"


@dataclass(frozen=True, eq=False)
class Probes:
    """Inputs as they are stored, and the float network's outputs for them.

    Attributes:
        inputs: (P, C, H, W) pixels, uint8 or float32, before preprocessing.
        outputs: (P, ...) float32, of the float network with the BatchNorm statistics of the checkpoint.
    """

    inputs: Tensor
    outputs: Tensor

    @staticmethod
    def of(
        network: Callable[[Tensor], Any], images: NDArray[np.uint8] | NDArray[np.float32], preprocessing: Preprocessing
    ) -> Probes:
        """Compute probes.

        Args:
            network: A supernet, deactivated, in evaluation mode, on the processor.
            images: (P, C, H, W) pixels as stored.
            preprocessing: What the network reads.
        """
        inputs = torch.from_numpy(np.ascontiguousarray(images).copy())
        return Probes(inputs, _run(network, inputs, preprocessing))

    @staticmethod
    def taken_from(tensors: dict[str, Tensor], *, where: str) -> Probes | None:
        """Take the probes out of the tensors of a checkpoint; None if it has none.

        Raises:
            CheckpointError: If they are not what :meth:`tensors` gives.
        """
        inputs, outputs = tensors.pop(_INPUTS, None), tensors.pop(_OUTPUTS, None)
        if inputs is None and outputs is None:
            return None
        if (
            inputs is None
            or outputs is None
            or inputs.dtype not in (torch.uint8, torch.float32)
            or outputs.dtype is not torch.float32
            or not 1 <= len(inputs) == len(outputs) <= MAXIMUM_PROBES
            or not bool(torch.isfinite(inputs).all() and torch.isfinite(outputs).all())
        ):
            raise CheckpointError("the probes are damaged", where=where)
        return Probes(inputs, outputs)

    def tensors(self) -> dict[str, Tensor]:
        """Under the names that they have in a checkpoint."""
        return {_INPUTS: self.inputs.contiguous(), _OUTPUTS: self.outputs.contiguous()}

    def check(self, network: Callable[[Tensor], Any], preprocessing: Preprocessing, *, where: str) -> float:
        """Compute the outputs again.

        Args:
            network: As for :meth:`of`.
            preprocessing: What the network reads.
            where: The checkpoint, for messages.

        Returns:
            The largest difference, relative to the largest output.

        Raises:
            CheckpointError: If outputs differ by more than rounding.
        """
        try:
            found = _run(network, self.inputs, preprocessing)
        except DataError as error:
            raise CheckpointError(f"the probes do not fit: {error}", where=where) from error
        if found.shape != self.outputs.shape:
            raise CheckpointError("the probes are of another network", where=where)
        largest = max(float(self.outputs.abs().max()), torch.finfo(torch.float32).tiny)
        difference = float((found - self.outputs).abs().max()) / largest
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"preprocessing or network are not what training saw: outputs for {len(self.inputs)} stored inputs "
                f"differ by {difference:.2g} of the largest (allowed {TOLERANCE:g})",
                where=where,
                hint="the file, the model that is passed with it, or the installed eqdeploy has changed",
            )
        return difference


@torch.no_grad()
def _run(network: Callable[[Tensor], Any], inputs: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The network's outputs for stored inputs."""
    outputs = network(torch.from_numpy(preprocessing.apply(inputs.numpy())))
    if not isinstance(outputs, Tensor):
        raise DataError("the network returns several tensors")
    return outputs.detach().float().contiguous()
