"""A network in evaluation mode as one compiled graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqdeploy.errors import TrainingError
from eqdeploy.supernet.inputs import Inputs, batch_size, call, map_inputs


class CompiledEvaluation:
    """Calls a module as one compiled graph.

    The first call compiles, for half a minute and more. Fewer images than before are filled up to as many, so that
    the last batch of a data set compiles nothing.

    Args:
        module: In evaluation mode whenever this is called.
    """

    def __init__(self, module: nn.Module) -> None:
        self._run = torch.compile(module, dynamic=False)
        self._batch = 0

    def __call__(self, images: Inputs) -> Tensor:
        """Logits of a batch of shape (N, …).

        Raises:
            TrainingError: If the compiler fails.
        """
        count = batch_size(images)
        self._batch = max(self._batch, count)
        missing = self._batch - count
        if missing:
            images = map_inputs(lambda part: torch.cat([part, part[:1].expand(missing, *part.shape[1:])]), images)
        try:
            result: Tensor = call(self._run, images)
        except RuntimeError as error:
            # Imported late: it takes a second where nothing is compiled.
            from torch._dynamo.exc import TorchDynamoException

            if not isinstance(error, TorchDynamoException):
                raise
            reason = next((line for line in str(error).splitlines() if line), type(error).__name__)
            raise TrainingError(
                f"the network cannot be compiled: {reason}", hint="measure without compiling"
            ) from error
        return result[:count]
