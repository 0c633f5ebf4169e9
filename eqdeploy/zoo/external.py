"""Models of torchvision and timm, where they are installed. Weights are never downloaded."""

from __future__ import annotations

import difflib
import importlib
import reprlib
from collections.abc import Callable
from types import ModuleType

import torch
from pydantic import validate_call
from torch import nn

from eqdeploy.errors import MissingDependencyError, UsageError
from eqdeploy.zoo.blocks import STRICT, Channels, Classes

#: Operators that torchvision's Python code refers to and its compiled part defines.
_TORCHVISION_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def import_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators do not load.

    The wheels on PyPI are compiled against CUDA. With a CPU build of torch their operators are missing and the
    import stops at ``torchvision::nms``; no classification model needs it, so declaring it is enough.

    Raises:
        MissingDependencyError: If torchvision is not installed or does not fit the installed torch.
    """
    try:
        return _import("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise _unusable("torchvision", error) from error
    for name, schema in _TORCHVISION_SCHEMAS.items():
        torch.library.define(name, schema)
    try:
        return _import("torchvision")
    except RuntimeError as error:
        raise _unusable("torchvision", error) from error


def torchvision_builder(name: str) -> Callable[..., nn.Module]:
    """A builder of a torchvision classification model with argument ``classes``.

    Detection and segmentation models are left out: their builders download weights of the backbone by default.

    Raises:
        UsageError: If torchvision has no classification model of that name.
        MissingDependencyError: If torchvision cannot be imported.
    """
    torchvision = import_torchvision()
    _require(name, torchvision.models.list_models(module=torchvision.models), package="torchvision")

    @validate_call(config=STRICT)
    def builder(*, classes: Classes = 1000) -> nn.Module:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
        return model

    return builder


def timm_builder(name: str) -> Callable[..., nn.Module]:
    """A builder of a timm model with arguments ``classes`` and ``input_channels``.

    Raises:
        UsageError: If timm has no model of that name; names that timm would fetch from a hub or folder have none.
        MissingDependencyError: If timm cannot be imported.
    """
    try:
        import_torchvision()  # timm imports it, and needs it declared in the same way
        timm = _import("timm")
    except RuntimeError as error:
        raise _unusable("timm", error) from error
    _require(name, timm.list_models(), package="timm")

    @validate_call(config=STRICT)
    def builder(*, classes: Classes = 1000, input_channels: Channels = 3) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=input_channels)
        return model

    return builder


def _import(package: str) -> ModuleType:
    """Import an optional package."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise MissingDependencyError(
                f"{package} is not installed", where=f"{package}:<name>", hint=f"pip install {package}"
            ) from error
        raise _unusable(package, error) from error


def _unusable(package: str, error: Exception) -> MissingDependencyError:
    """The package is there but does not work."""
    return MissingDependencyError(
        f"{package} is installed but cannot be imported: {error}",
        where=f"{package}:<name>",
        hint=f"install the {package} that fits torch {torch.__version__}",
    )


def _require(name: str, known: list[str], *, package: str) -> None:
    """Refuse names that the package does not list."""
    if name not in known:
        close = difflib.get_close_matches(name[:100], known, n=1)
        raise UsageError(
            f"{package} has no classification model {reprlib.repr(name)}",
            where=f"{package}:{reprlib.repr(name)[1:-1]}",
            hint=f"did you mean '{package}:{close[0]}'?" if close else None,
        )
