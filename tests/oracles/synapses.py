"""What a synapse computes from its input and weight, and its Jacobian with respect to every element of the weight."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracles.spec import Node


def _tuple(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _pad(x: Tensor, weight: Tensor, node: Node, dims: int) -> Tensor:
    """The input with what the convolution adds around it, so that the convolution itself needs no padding."""
    padding = node.options.get("padding", 0)
    dilation = _tuple(node.options.get("dilation", 1), dims)
    if padding == "valid":
        return x
    sides: list[tuple[int, int]] = []
    for axis in range(dims):
        if padding == "same":
            total = dilation[axis] * (weight.shape[2 + axis] - 1)
            sides.append((total // 2, total - total // 2))
        else:
            sides.append((_tuple(padding, dims)[axis],) * 2)
    flat = [amount for side in reversed(sides) for amount in side]
    mode = node.options.get("padding_mode", "zeros")
    return F.pad(x, flat) if mode == "zeros" else F.pad(x, flat, mode=mode)


def apply_synapse(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    """The output of a synapse without its bias; linear in ``weight``."""
    if node.kind == "Linear":
        return F.linear(x, weight.T if node.options.get("transposed") else weight)
    dims = int(node.kind[-2])
    stride = _tuple(node.options.get("stride", 1), dims)
    dilation = _tuple(node.options.get("dilation", 1), dims)
    groups = node.options.get("groups", 1)
    if node.kind.startswith("ConvTranspose"):
        transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        padding = _tuple(node.options.get("padding", 0), dims)
        output_padding = _tuple(node.options.get("output_padding", 0), dims)
        return transpose(x, weight, None, stride, padding, output_padding, groups, dilation)
    conv = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    return conv(_pad(x, weight, node, dims), weight, None, stride, 0, dilation, groups)


def add_bias(node: Node, out: Tensor, bias: Tensor | None) -> Tensor:
    """``out`` plus ``bias`` along the axis of the output features."""
    if bias is None:
        return out
    if node.kind == "Linear":
        return out + bias
    return out + bias.reshape(1, -1, *[1] * (out.dim() - 2))


def weight_jacobian(apply, x: Tensor, weight: Tensor) -> Tensor:
    """d out[b, o] / d w for every element w of ``weight``: tensor [B, O, W].

    ``apply(x, weight)`` is linear in the weight: the column of element w is the output for the weight that is one at w
    and zero elsewhere.
    """
    one_hot = torch.eye(weight.numel(), dtype=weight.dtype).reshape(-1, *weight.shape)
    return torch.vmap(lambda w: apply(x, w), out_dims=-1)(one_hot).flatten(1, -2)
