"""Sections of the training configuration that say what a network reads, images or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from eqdeploy.data.inputs import NamedPreprocessing, TokenPreprocessing, ValuePreprocessing
from eqdeploy.data.preprocessing import Preprocessing
from eqdeploy.training.settings import PreprocessingSettings, Section


class ValueSettings(Section):
    """Fields of :class:`eqdeploy.data.inputs.ValuePreprocessing`."""

    kind: Literal["values"]
    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    feature_axis: int = 0

    @model_validator(mode="after")
    def _check(self) -> ValueSettings:
        self.to_preprocessing()
        return self

    def to_preprocessing(self) -> ValuePreprocessing:
        """The object that applies these settings."""
        return ValuePreprocessing(**_without(self, "kind", "name"))


class TokenSettings(Section):
    """Fields of :class:`eqdeploy.data.inputs.TokenPreprocessing`."""

    kind: Literal["tokens"]
    shape: tuple[int, ...]
    vocabulary: int

    @model_validator(mode="after")
    def _check(self) -> TokenSettings:
        self.to_preprocessing()
        return self

    def to_preprocessing(self) -> TokenPreprocessing:
        """The object that applies these settings."""
        return TokenPreprocessing(**_without(self, "kind", "name"))


class NamedImageSettings(PreprocessingSettings):
    """Images as one input of several."""

    name: str

    def to_preprocessing(self) -> Preprocessing:
        """The object that applies these settings."""
        return Preprocessing(**_without(self, "name"))


class NamedValueSettings(ValueSettings):
    """Numbers as one input of several."""

    name: str


class NamedTokenSettings(TokenSettings):
    """Ids as one input of several."""

    name: str


def _kind_of(given: Any) -> str:
    """Which section describes an input: told by its ``kind``, images without one."""
    kind = given.get("kind", "images") if isinstance(given, dict) else getattr(given, "kind", "images")
    return f"kind:{kind}"


class NamedSettings(Section):
    """Several inputs: one entry for each argument of ``forward``, in their order.

    Attributes:
        inputs: Name and preprocessing of each.
    """

    kind: Literal["named"]
    inputs: tuple[
        Annotated[
            Annotated[NamedImageSettings, Tag("kind:images")]
            | Annotated[NamedValueSettings, Tag("kind:values")]
            | Annotated[NamedTokenSettings, Tag("kind:tokens")],
            Discriminator(_kind_of),
        ],
        ...,
    ]

    @model_validator(mode="after")
    def _check(self) -> NamedSettings:
        self.to_preprocessing()
        return self

    def to_preprocessing(self) -> NamedPreprocessing:
        """The object that applies these settings."""
        return NamedPreprocessing(tuple((part.name, part.to_preprocessing()) for part in self.inputs))


#: From what is stored to what the network reads; ``kind`` tells which, images have none.
AnyPreprocessingSettings = Annotated[
    Annotated[PreprocessingSettings, Tag("kind:images")]
    | Annotated[ValueSettings, Tag("kind:values")]
    | Annotated[TokenSettings, Tag("kind:tokens")]
    | Annotated[NamedSettings, Tag("kind:named")],
    Discriminator(_kind_of),
]

#: What pydantic writes into the place of an error besides keys, and the section that it stands for.
PREPROCESSING_SECTIONS: Mapping[str, type[Section]] = {
    "kind:images": PreprocessingSettings,
    "kind:values": ValueSettings,
    "kind:tokens": TokenSettings,
    "kind:named": NamedSettings,
}


def _without(section: Section, *names: str) -> dict[str, Any]:
    """Fields of a section but for some."""
    return {name: value for name, value in dict(section).items() if name not in names}
