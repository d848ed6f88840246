"""Every supported synapse with its options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.cases.case import Case, bias, exact, generator, settle, spike_input, weight
from tests.cases.rules import RULES
from tests.oracles.spec import Net, Node
from tests.oracles.stllr import Oracle


@dataclass(frozen=True)
class SynapseSetup:
    """A synapse under test: weight shape and shape of its input (without the batch)."""

    id: str
    kind: str
    weight: tuple[int, ...]
    input: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    has_bias: bool = True
    parametrization: str = ""


def _synapse_setups() -> list[SynapseSetup]:
    make = SynapseSetup
    setups = [
        make("Linear", "Linear", (4, 3), (3,)),
        make("Linear-nobias", "Linear", (4, 3), (3,), has_bias=False),
        make("Linear-extra", "Linear", (4, 3), (2, 3)),
        make("Linear-extra2", "Linear", (3, 2), (2, 2, 2)),
        make("Linear-weight_norm", "Linear", (4, 3), (3,), parametrization="weight_norm"),
        make("Linear-standardise", "Linear", (4, 3), (3,), parametrization="standardise"),
        make("Conv2d-weight_norm", "Conv2d", (3, 2, 2, 2), (2, 4, 3), parametrization="weight_norm"),
        make("Conv2d-standardise", "Conv2d", (3, 2, 2, 2), (2, 4, 3), parametrization="standardise"),
        make("ConvTranspose2d-standardise", "ConvTranspose2d", (2, 3, 2, 2), (2, 3, 2), parametrization="standardise"),
    ]
    extents: dict[int, tuple[int, ...]] = {1: (6,), 2: (5, 4), 3: (3, 4, 3)}
    kernels: dict[int, tuple[int, ...]] = {1: (3,), 2: (3, 2), 3: (2, 3, 2)}
    odd: dict[int, tuple[int, ...]] = {1: (3,), 2: (3, 3), 3: (1, 3, 3)}
    for dims in (1, 2, 3):
        kind, extent, kernel = f"Conv{dims}d", extents[dims], kernels[dims]

        def conv(name: str, options: Mapping[str, Any], kernel: tuple[int, ...] = kernel, **kwargs: Any) -> None:
            groups = options.get("groups", 1)
            shape = (4, 2 // groups, *kernel)  # noqa: B023
            setups.append(make(f"{kind}-{name}", kind, shape, (2, *extent), options, **kwargs))  # noqa: B023

        conv("plain", {})
        conv("nobias", {"padding": 1}, has_bias=False)
        conv("stride", {"stride": 2, "padding": 1})
        conv("dilation", {"dilation": 2, "padding": 2})
        conv("groups", {"groups": 2, "padding": (1,) * dims})
        conv("same", {"padding": "same"})
        conv("same-dilated", {"padding": "same", "dilation": 2})
        conv("valid", {"padding": "valid", "stride": 2})
        for mode in ("reflect", "replicate", "circular"):
            conv(mode, {"padding": tuple(k // 2 for k in odd[dims]), "padding_mode": mode}, odd[dims])
            conv(f"{mode}-same", {"padding": "same", "padding_mode": mode})
        transpose = f"ConvTranspose{dims}d"
        small: tuple[int, ...] = {1: (4,), 2: (3, 2), 3: (2, 2, 2)}[dims]
        variants: dict[str, dict[str, Any]] = {
            "plain": {},
            "stride": {"stride": 2, "padding": 1},
            "output_padding": {"stride": 2, "padding": 1, "output_padding": 1},
            "dilation": {"dilation": 2},
            "groups": {"groups": 2, "stride": 2},
        }
        for name, options in variants.items():
            out = 4 // options.get("groups", 1)
            setups.append(make(f"{transpose}-{name}", transpose, (2, out, *kernel), (2, *small), options))
    setups.append(
        make("Conv2d-mixed", "Conv2d", (4, 1, 3, 2), (2, 5, 6), {"stride": (2, 1), "padding": (2, 0), "groups": 2})
    )
    setups.append(make("Conv2d-depthwise", "Conv2d", (2, 1, 3, 3), (2, 4, 4), {"groups": 2, "padding": 1}))
    return setups


SYNAPSES: dict[str, SynapseSetup] = {setup.id: setup for setup in _synapse_setups()}


def weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """Each slice along the first axis with norm g."""
    norm = v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.dim() - 1))
    return g * v / norm


def standardise(raw: Tensor, gain: Tensor) -> Tensor:
    flat = raw.flatten(1)
    mean, var = flat.mean(1, keepdim=True), flat.var(1, keepdim=True)
    return (gain * (flat - mean) / torch.sqrt(var * flat.shape[1] + 1e-4)).reshape(raw.shape)


def add_weight(
    params: dict[str, Tensor], computed: dict[str, Any], name: str, value: Tensor, parametrization: str
) -> dict[str, Any]:
    """Put ``value`` into ``params`` as the parametrization stores it; gives the options of the node."""
    prefix = f"{name}.parametrizations.weight"
    if parametrization == "weight_norm":
        rows = value.flatten(1).norm(dim=1).reshape(-1, *[1] * (value.dim() - 1))
        params |= {f"{prefix}.original0": exact(1.25 * rows), f"{prefix}.original1": value}
        computed[f"{name}.weight"] = (weight_norm, (f"{prefix}.original0", f"{prefix}.original1"))
        return {"parametrization": parametrization, "original": "1"}
    if parametrization == "standardise":
        gain = torch.linspace(1.0, 2.0, len(value), dtype=torch.float64)[:, None]
        params |= {f"{prefix}.original": value, f"{prefix}.0.gain": exact(gain)}
        computed[f"{name}.weight"] = (standardise, (f"{prefix}.original", f"{prefix}.0.gain"))
        return {"parametrization": parametrization}
    params[f"{name}.weight"] = value
    return {}


@cache
def synapse_case(setup_id: str) -> Case:
    """The synapse under test feeds a Leaky; a Linear and a second Leaky above it make its learning signal."""
    setup = SYNAPSES[setup_id]

    def build(seed: int) -> Case:
        rng = generator(seed)
        params: dict[str, Tensor] = {}
        computed: dict[str, Any] = {}
        out_features = setup.weight[0]
        fan_in = math.prod(setup.weight[1:])
        if setup.kind.startswith("ConvTranspose"):
            groups = setup.options.get("groups", 1)
            out_features = setup.weight[1] * groups
            fan_in = math.prod(setup.weight) // setup.weight[1] // groups
        value = weight(setup.weight, rng) * math.sqrt(math.prod(setup.weight[1:])) / math.sqrt(fan_in)
        options = dict(setup.options) | add_weight(params, computed, "syn", exact(value), setup.parametrization)
        if setup.has_bias:
            params["syn.bias"] = bias(out_features, rng)
        lif = {"beta": 0.75, "threshold": 0.75}
        nodes = [Node("syn", setup.kind, ("x",), options), Node("lif1", "Leaky", ("syn",), lif)]
        nodes.append(Node("flat", "Flatten", ("lif1",)))
        xs = spike_input((4, 2, *setup.input), rng)
        # the size of the flattened layer, from one step of the oracle
        probe = Net(tuple(nodes), params, ("flat",), computed)
        found = Oracle(probe, RULES["default"]).forward(xs[0], local=True).values["flat"]
        params |= {"fc2.weight": weight((3, found.shape[1]), rng, 1.5), "fc2.bias": bias(3, rng)}
        nodes += [Node("fc2", "Linear", ("flat",)), Node("lif2", "Leaky", ("fc2",), lif)]
        return Case(f"synapse:{setup_id}", Net(tuple(nodes), params, ("lif2",), computed), xs)

    return settle(build)
