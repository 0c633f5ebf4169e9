"""What a planted fault is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Make = Callable[[Callable[..., Any]], Any]


@dataclass(frozen=True)
class Planted:
    """A fault in one function.

    Attributes:
        name: What is wrong.
        stage: Where.
        owner: Module or class whose attribute is replaced.
        attribute: Name of the function.
        make: Makes the faulty function of the right one.
        profile: Profile that is exported.
        network: Network that is exported.
        also: Further owners, attributes and faulty functions: what a careless author would have got wrong alike.
    """

    name: str
    stage: str
    owner: Any
    attribute: str
    make: Make
    profile: str = "onnxruntime-x86"
    network: str = "digits"
    also: tuple[tuple[Any, str, Make], ...] = ()


def after(change: Callable[[Any], Any]) -> Make:
    """Change what a function returns."""
    return lambda original: lambda *args, **kwargs: change(original(*args, **kwargs))
