"""Torch's attention and Transformer modules, written out into linears, products and softmax that quantize.

Torch runs them as single functions. Written out, each projection is a layer, and scores and probabilities are tensors
with encodings. Only the module changes, not what it computes: the factor 1/√d of the scores moves into the query's
projection.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eqdeploy.errors import UnsupportedOperationError


def write_out_attention(model: nn.Module) -> nn.Module:
    """Replace every ``MultiheadAttention``, Transformer, encoder and decoder of torch's by modules of linears.

    Subclasses stay as they are: they may compute something else. A module that occurs twice stays one.

    Args:
        model: Changed in place, in evaluation mode.

    Returns:
        The model, or what takes its place.

    Raises:
        UnsupportedOperationError: If an attention has ``add_bias_kv`` or ``add_zero_attn``, or another module has the
            same parameter as one of its projections.
    """
    _refuse_tied_projections(model)
    replaced: dict[int, nn.Module] = {}

    def visit(module: nn.Module, path: str) -> nn.Module:
        if id(module) not in replaced:
            replaced[id(module)] = module
            for name, child in list(module._modules.items()):
                if child is not None:
                    new = visit(child, f"{path}.{name}" if path else name)
                    if new is not child:  # torch's container classes check the types of what they hold
                        module._modules[name] = new
            make = _WRITTEN_OUT.get(type(module))
            if make is not None:
                replaced[id(module)] = make(module, path).train(module.training)
        return replaced[id(module)]

    return visit(model, "")


class Attention(nn.Module):
    """``nn.MultiheadAttention`` as four linears, two products and a softmax."""

    def __init__(self, source: nn.MultiheadAttention, path: str) -> None:
        super().__init__()
        if source.bias_k is not None or source.add_zero_attn:
            raise UnsupportedOperationError(
                "add_bias_kv and add_zero_attn are not supported", where=path, hint="build the attention without them"
            )
        self.heads, self.batch_first = source.num_heads, source.batch_first
        together: Tensor | None = source.in_proj_weight  # torch keeps one matrix where all sizes are equal
        apart = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
        weights = apart if together is None else together.chunk(3)
        bias: Tensor | None = source.in_proj_bias
        biases = [None] * 3 if bias is None else bias.chunk(3)
        scale = 1 / math.sqrt(source.head_dim)
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(weight, bias, factor)
            for weight, bias, factor in zip(weights, biases, (scale, 1.0, 1.0), strict=True)
        )
        self.dropout = nn.Dropout(source.dropout)
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias, 1.0)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Same arguments and results as torch's for batches of sequences, shape (N, L, E) or (L, N, E)."""
        if not self.batch_first:
            same = query is key, key is value
            query = query.transpose(0, 1)
            key = query if same[0] else key.transpose(0, 1)
            value = key if same[1] else value.transpose(0, 1)
        scores = self._split(self.q_proj(query)) @ self._split(self.k_proj(key)).transpose(2, 3)
        if attn_mask is not None:
            scores = _masked(scores, attn_mask)
        if key_padding_mask is not None:
            scores = _masked(scores, key_padding_mask.unsqueeze(1).unsqueeze(1))
        weights = torch.softmax(scores, -1)
        mixed = self.dropout(weights) @ self._split(self.v_proj(value))
        result = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not self.batch_first:
            result = result.transpose(0, 1)
        if not need_weights:
            return result, None
        return result, weights.mean(1) if average_attn_weights else weights

    def _split(self, x: Tensor) -> Tensor:
        """(N, L, E) as (N, heads, L, E / heads)."""
        split: Tensor = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
        return split


class _Layer(nn.Module):
    """What encoder and decoder layers share: attention to themselves and a feed-forward network."""

    self_attn: nn.Module
    linear1: nn.Module
    linear2: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    dropout: nn.Module
    dropout1: nn.Module
    dropout2: nn.Module

    def __init__(self, source: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer, path: str) -> None:
        super().__init__()
        self._modules.update(source._modules)
        self.norm_first = source.norm_first
        self.activation = source.activation

    def _attend(self, x: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor:
        attended = self.self_attn(x, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=False)[0]
        result: Tensor = self.dropout1(attended)
        return result

    def _feed_forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return result

    def _residual(self, x: Tensor, block: Callable[[Tensor], Tensor], norm: nn.Module) -> Tensor:
        """A block with a residual around it, normalized before the block or behind the sum."""
        if self.norm_first:
            return x + block(norm(x))
        result: Tensor = norm(x + block(x))
        return result


class EncoderLayer(_Layer):
    """``nn.TransformerEncoderLayer`` without its fused path."""

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Same arguments and result as torch's."""
        x = self._residual(src, lambda x: self._attend(x, src_mask, src_key_padding_mask), self.norm1)
        return self._residual(x, lambda x: self.dropout2(self._feed_forward(x)), self.norm2)


class DecoderLayer(_Layer):
    """``nn.TransformerDecoderLayer`` in written-out parts."""

    multihead_attn: nn.Module
    norm3: nn.Module
    dropout3: nn.Module

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Same arguments and result as torch's."""

        def look_up(x: Tensor) -> Tensor:
            attended = self.multihead_attn(
                x, memory, memory, key_padding_mask=memory_key_padding_mask, attn_mask=memory_mask, need_weights=False
            )[0]
            result: Tensor = self.dropout2(attended)
            return result

        x = self._residual(tgt, lambda x: self._attend(x, tgt_mask, tgt_key_padding_mask), self.norm1)
        x = self._residual(x, look_up, self.norm2)
        return self._residual(x, lambda x: self.dropout3(self._feed_forward(x)), self.norm3)


class Encoder(nn.Module):
    """``nn.TransformerEncoder``: layers, then a norm."""

    def __init__(self, source: nn.TransformerEncoder, path: str) -> None:
        super().__init__()
        self.layers, self.norm = source.layers, source.norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Same arguments and result as torch's."""
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return src if self.norm is None else self.norm(src)


class Decoder(nn.Module):
    """``nn.TransformerDecoder``: layers, then a norm."""

    def __init__(self, source: nn.TransformerDecoder, path: str) -> None:
        super().__init__()
        self.layers, self.norm = source.layers, source.norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Same arguments and result as torch's."""
        for layer in self.layers:
            tgt = layer(tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        return tgt if self.norm is None else self.norm(tgt)


_WRITTEN_OUT: dict[type[nn.Module], Callable[[Any, str], nn.Module]] = {
    nn.MultiheadAttention: Attention,
    nn.TransformerEncoderLayer: EncoderLayer,
    nn.TransformerDecoderLayer: DecoderLayer,
    nn.TransformerEncoder: Encoder,
    nn.TransformerDecoder: Decoder,
}


#: Parameters of an attention that are cut into parts or multiplied when it is written out.
_REWRITTEN = ("in_proj_weight", "in_proj_bias", "q_proj_weight")


def _refuse_tied_projections(model: nn.Module) -> None:
    """Refuse parameters that become others when they are written out, and would come apart from their twins.

    Those of the output, and of key and value where each has a matrix, are taken over as they are.
    """
    owners: dict[nn.Parameter, list[tuple[str, str]]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(parameter, []).append((path, name))
    for (path, name), twin in (pair for tied in owners.values() for pair in itertools.permutations(tied, 2)):
        if name in _REWRITTEN and type(model.get_submodule(path)) is nn.MultiheadAttention:
            raise UnsupportedOperationError(
                f"its {name} is also {'.'.join(filter(None, twin))}",
                where=path,
                hint="call one MultiheadAttention twice, which shares everything, or give each its own parameters",
            )


def _masked(scores: Tensor, mask: Any) -> Tensor:
    """Scores with what a mask hides at −∞ (where a boolean mask is true) or lowered by the mask."""
    if mask.dtype != torch.bool:
        lowered: Tensor = scores + mask
        return lowered
    if isinstance(mask, Tensor):  # known while tracing, so it is a constant to add
        return scores + torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -math.inf)
    return scores.masked_fill(mask, -math.inf)


def _linear(weight: Tensor | None, bias: Tensor | None, factor: float) -> nn.Linear:
    """A linear with the given parameters; what is only a part, or is multiplied, is copied."""
    assert weight is not None  # one of the two ways in which torch keeps it
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = _parameter(weight, factor)
    if bias is not None:
        linear.bias = _parameter(bias, factor)
    return linear


def _parameter(tensor: Tensor, factor: float) -> nn.Parameter:
    """A parameter as it is, so that its ties hold, or a copy of a part or of a multiple."""
    if isinstance(tensor, nn.Parameter) and factor == 1.0:
        return tensor
    return nn.Parameter(tensor.detach() * factor, requires_grad=tensor.requires_grad)
