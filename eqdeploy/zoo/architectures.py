"""The built-in architectures by name, and building one from a name and plain arguments.

Names and arguments may come from an untrusted checkpoint: names are looked up in a fixed table (or in
torchvision's and timm's own lists), arguments must be scalars that the builder declares, within its bounds.
"""

from __future__ import annotations

import difflib
import inspect
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from pydantic import ValidationError
from torch import nn

from eqdeploy.errors import UsageError
from eqdeploy.zoo import external
from eqdeploy.zoo.decoder import decoder
from eqdeploy.zoo.densenet import densenet_small
from eqdeploy.zoo.digits import digits_resnet
from eqdeploy.zoo.efficientnet import efficientnet_b0
from eqdeploy.zoo.mlp import mlp
from eqdeploy.zoo.mobilenet import mobilenet_v2
from eqdeploy.zoo.resnet import cifar_resnet20, resnet18, resnet50

#: Largest number of parameters that a built-in architecture may be asked for: ten times ResNet-50's.
MAX_PARAMETERS = 256_000_000

Scalar = int | float | bool | str


@dataclass(frozen=True)
class ArchitectureSpec:
    """A built-in architecture.

    Attributes:
        builder: Makes the model; all its arguments are keyword-only scalars with defaults, checked on call.
        input_shape: (channels, height, width) of the images that the default arguments are meant for.
    """

    builder: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]

    @property
    def defaults(self) -> dict[str, Scalar]:
        """Every argument with its default."""
        parameters = inspect.signature(self.builder).parameters
        return {name: parameter.default for name, parameter in parameters.items()}

    @property
    def summary(self) -> str:
        """What it is, in one line."""
        return (inspect.getdoc(self.builder) or "").partition("\n")[0]


ARCHITECTURES: Mapping[str, ArchitectureSpec] = MappingProxyType(
    {
        "cifar-resnet20": ArchitectureSpec(cifar_resnet20, (3, 32, 32)),
        "decoder": ArchitectureSpec(decoder, (3, 32, 32)),
        "densenet-small": ArchitectureSpec(densenet_small, (3, 32, 32)),
        "digits-resnet": ArchitectureSpec(digits_resnet, (1, 8, 8)),
        "efficientnet_b0": ArchitectureSpec(efficientnet_b0, (3, 224, 224)),
        "mlp": ArchitectureSpec(mlp, (1, 8, 8)),
        "mobilenet_v2": ArchitectureSpec(mobilenet_v2, (3, 224, 224)),
        "resnet18": ArchitectureSpec(resnet18, (3, 224, 224)),
        "resnet50": ArchitectureSpec(resnet50, (3, 224, 224)),
    }
)


def build(name: str, arguments: Mapping[str, object]) -> nn.Module:
    """Make a float model with freshly drawn weights (from torch's global generator: seed it for repeatability).

    Args:
        name: A key of :data:`ARCHITECTURES`, or ``torchvision:<name>`` or ``timm:<name>`` where that package is
            installed. No weights are ever downloaded.
        arguments: Keyword arguments of the builder; those left out take their defaults. torchvision models
            take ``classes``, timm models ``classes`` and ``input_channels``.

    Returns:
        The model in train mode.

    Raises:
        UsageError: If the name is unknown, an argument is unknown, of the wrong type or out of bounds, or the
            model would have more than :data:`MAX_PARAMETERS` parameters.
        MissingDependencyError: If torchvision or timm is asked for and cannot be imported.
    """
    package, colon, model = name.partition(":")
    if colon and package == "torchvision":
        return _call(external.torchvision_builder(model), name, arguments)
    if colon and package == "timm":
        return _call(external.timm_builder(model), name, arguments)
    if name not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {reprlib.repr(name)}", hint=_name_hint(name))
    builder = ARCHITECTURES[name].builder
    with torch.device("meta"):  # costs no memory, whatever the arguments ask for
        parameters = sum(parameter.numel() for parameter in _call(builder, name, arguments).parameters())
    if parameters > MAX_PARAMETERS:
        raise UsageError(
            f"{parameters:,} parameters, more than {MAX_PARAMETERS:,}",
            where=name,
            hint="choose a smaller width, depth or number of classes",
        )
    return _call(builder, name, arguments)


def _call(builder: Callable[..., nn.Module], name: str, arguments: Mapping[str, object]) -> nn.Module:
    """Call a validating builder and put its complaints into the user's terms."""
    try:
        return builder(**arguments)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        argument = str(first["loc"][0])
        known = list(inspect.signature(builder).parameters)
        if first["type"] == "unexpected_keyword_argument":
            raise UsageError(
                f"unknown argument {reprlib.repr(argument)}",
                where=name,
                hint=_did_you_mean(argument, known) or f"it takes {', '.join(known)}",
            ) from error
        raise UsageError(
            f"{first['msg'][:1].lower()}{first['msg'][1:]}, not {reprlib.repr(first['input'])}",
            where=f"{name}: {argument}",
        ) from error


def _did_you_mean(word: str, candidates: list[str]) -> str | None:
    """A suggestion where a candidate is close."""
    close = difflib.get_close_matches(word[:100], candidates, n=1)
    return f"did you mean {close[0]!r}?" if close else None


def _name_hint(name: str) -> str:
    """What could have been written instead of an unknown name."""
    names = list(ARCHITECTURES)
    return _did_you_mean(name, names) or (
        f"there are {', '.join(names)}, torchvision:<name> and timm:<name>; "
        "your own model is given as package.module:factory on the command line"
    )
