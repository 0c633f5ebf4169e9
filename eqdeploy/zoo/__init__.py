"""Float models to make supernets of: a built-in zoo, torchvision and timm by name, and the user's own."""

from eqdeploy.zoo.architectures import ARCHITECTURES, ArchitectureSpec, build
from eqdeploy.zoo.factory import load_factory

__all__ = ["ARCHITECTURES", "ArchitectureSpec", "build", "load_factory"]
