"""Stateless modules that may stand between a synapse and its neuron, or between a neuron and the next synapse."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracles.spec import Node


def combine(node: Node, inputs: list[Tensor]) -> Tensor:
    """What a module receives if it has several inputs."""
    if node.kind in ("Concat", "Delay"):
        return torch.cat(inputs, 1)
    combined = inputs[0]
    for other in inputs[1:]:
        combined = combined * other if node.kind == "Product" else combined + other
    return combined


def apply_between(node: Node, x: Tensor, params: dict[str, Tensor]) -> Tensor:
    options = node.options
    if node.kind.startswith("BatchNorm"):
        axes = (0, *range(2, x.dim()))
        mean, var = x.mean(axes, keepdim=True), x.var(axes, unbiased=False, keepdim=True)
        return _affine(node, (x - mean) / torch.sqrt(var + 1e-5), params)
    if node.kind == "GroupNorm":
        grouped = x.reshape(x.shape[0], options["groups"], -1)
        mean, var = grouped.mean(-1, keepdim=True), grouped.var(-1, unbiased=False, keepdim=True)
        return _affine(node, ((grouped - mean) / torch.sqrt(var + 1e-5)).reshape(x.shape), params)
    if node.kind == "AvgPool2d":
        return F.avg_pool2d(x, options["size"])
    if node.kind == "MaxPool2d":
        return F.max_pool2d(x, options["size"])
    if node.kind == "Scale":
        return options["factor"] * x
    if node.kind in ("Product", "Concat"):
        return x
    if (
        node.kind == "Delay"
    ):  # inputs are the values of this step, the step before, ...; each channel blends two of them
        lags = x.chunk(len(node.inputs), 1)
        shares = [(1 - (params[f"{node.name}.delay"] - lag).abs()).clamp(min=0) for lag in range(len(lags))]
        return sum(share * value for share, value in zip(shares, lags, strict=True))
    if node.kind == "Tanh":
        return torch.tanh(x)
    if node.kind == "Upsample":
        return x.repeat_interleave(options["factor"], 2).repeat_interleave(options["factor"], 3)
    if node.kind == "Flatten":
        return x.flatten(1)
    if node.kind == "MeanHW":
        return x.mean((2, 3))
    raise NotImplementedError(node.kind)


def _affine(node: Node, x: Tensor, params: dict[str, Tensor]) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    return x * params[f"{node.name}.weight"].reshape(shape) + params[f"{node.name}.bias"].reshape(shape)
