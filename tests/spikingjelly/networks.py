"""Cases for the oracle, and the SpikingJelly networks that they describe."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from stllr_plugin import STLLRLearner
from tests.cases.case import bias, generator, spike_input, weight
from tests.cases.drive import learner_rule
from tests.oracles.stllr import Rule
from tests.spikingjelly.oracle import Expected, Layer, Node, run


def loss(outputs: dict[str, Tensor], t: int) -> Tensor:
    """A smooth function of everything that is seen, another one at each step."""
    total = torch.zeros((), dtype=next(iter(outputs.values())).dtype)
    for i, value in enumerate(outputs.values()):
        flat = value.flatten(1)
        position = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype)
        total = total + 0.5 * ((flat - torch.sin(0.7 * position + 2 * t + i)) ** 2).sum() / len(flat)
        total = total + torch.tanh(flat @ torch.cos(1.3 * position + t)).sum()
    return total


def build_node(node: Node) -> nn.Module:
    name, constants = node.surrogate
    module = getattr(neuron, node.kind)(surrogate_function=getattr(surrogate, name)(**constants), **node.options)
    return module


def build(layers: list[Layer], dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """The network; the parameters of layer i are named as the oracle names them by :func:`parameters`."""
    modules: list[nn.Module] = []
    for spec in layers:
        if spec.flatten:
            modules.append(nn.Flatten())
        node = build_node(spec.node)
        if spec.recurrence == "join":
            units = spec.weight.shape[0]
            block = layer.LinearRecurrentContainer(node, units, units, bias=spec.bias is not None)
            modules.append(block)
            continue
        if spec.conv is None:
            synapse = layer.Linear(*reversed(spec.weight.shape), bias=spec.bias is not None)
        else:
            out, into, height, width = spec.weight.shape
            synapse = layer.Conv2d(into, out, (height, width), bias=spec.bias is not None, **spec.conv)
        if spec.recurrence == "add":
            modules.append(layer.ElementWiseRecurrentContainer(nn.Sequential(synapse, node), lambda y, x: x + y))
        else:
            modules += [synapse, node]
    net = nn.Sequential(*modules).to(dtype)
    for (_, parameter), value in zip(parameters(net, layers).items(), values(layers).values(), strict=True):
        with torch.no_grad():
            parameter.copy_(value)
    return net


def values(layers: list[Layer]) -> dict[str, Tensor]:
    """Parameter values by the oracle's names."""
    found: dict[str, Tensor] = {}
    for i, spec in enumerate(layers):
        found[f"{i}.weight"] = spec.weight
        if spec.bias is not None:
            found[f"{i}.bias"] = spec.bias
        found |= {f"{i}.{name}": value for name, value in spec.node.params.items()}
    return found


def parameters(net: nn.Module, layers: list[Layer]) -> dict[str, nn.Parameter]:
    """The network's parameters by the oracle's names."""
    synapses = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    nodes = [m for m in net.modules() if isinstance(m, (neuron.BaseNode, neuron.SimpleBaseNode))]
    found: dict[str, nn.Parameter] = {}
    for i, spec in enumerate(layers):
        found[f"{i}.weight"] = synapses[i].weight
        if spec.bias is not None:
            found[f"{i}.bias"] = synapses[i].bias
        found |= {f"{i}.{name}": getattr(nodes[i], name) for name in spec.node.params}
    return found


def last_node(net: nn.Module) -> nn.Module:
    return [m for m in net.modules() if isinstance(m, (neuron.BaseNode, neuron.SimpleBaseNode))][-1]


def seen_of(net: nn.Module, y: Tensor) -> dict[str, Tensor]:
    return {"y": y, **dict(last_node(net)._memories)}


def measure(
    layers: list[Layer], xs: Tensor, rule: Rule, way: str = "b", dtype: torch.dtype = torch.float64
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """Gradients and outputs of an attached network. Way "a": one backward at the end; "b": one at each step."""
    net = build(layers, dtype)
    with STLLRLearner(net, rule=learner_rule(rule)):
        total: Tensor | float = 0.0
        outputs: dict[str, list[Tensor]] = {}
        for t, x in enumerate(xs.to(dtype)):
            seen = seen_of(net, net(x))
            step = loss(seen, t)
            if way == "b":
                step.backward()
                if t % 2:
                    functional.detach_net(net)  # as SpikingJelly's own online loops do; it must make no difference
            else:
                total = total + step
            for name, value in seen.items():
                outputs.setdefault(name, []).append(value.detach().clone())
        if way == "a":
            total.backward()  # type: ignore[union-attr]
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters(net, layers).items()}
    return grads, outputs


def assert_same(
    found: tuple[dict[str, Tensor], dict[str, list[Tensor]]], expected: Expected, tolerance: float, text: str
) -> None:
    """Outputs, then gradients: the norm of the difference over the norm.

    In float32 the gradient of a node's single number, a sum over the layer in which large terms may cancel, is measured
    against the largest gradient of the network.
    """
    grads, outputs = found
    for name, values_ in expected.outputs.items():
        one, other = torch.stack(outputs[name]).double(), torch.stack(values_)
        assert torch.allclose(one, other, rtol=1e2 * tolerance, atol=1e2 * tolerance), f"{text}: output {name}"
    errors = {}
    for name, value in expected.grads.items():
        norm = value.norm().item()
        assert norm > 1e-6, f"{text}: the gradient of {name} vanishes, which tests nothing"
        if value.dim() == 0 and tolerance > 1e-6:
            norm = max(other.norm().item() for other in expected.grads.values())
        errors[name] = (grads[name].double() - value).norm().item() / norm
    assert max(errors.values()) < tolerance, f"{text}: relative errors {errors}"


def settle(make: Callable[[torch.Generator], tuple[list[Layer], Tensor]], margin: float) -> tuple[list[Layer], Tensor]:
    """The first seed whose layers all fire, not always, with no membrane near its threshold."""
    for seed in range(300):
        layers, xs = make(generator(seed))
        result = run(layers, xs, Rule(), loss)
        if all(0.05 < rate < 0.75 for rate in result.rates) and result.margin > margin and math.isfinite(result.margin):
            return layers, xs
    raise AssertionError("no seed settles")


def dense(node: Node, scale: float, recurrence: str | None = None, margin: float = 1e-4) -> tuple[list[Layer], Tensor]:
    """Two layers of the node under test; with ``recurrence`` the first is inside a recurrent container."""

    def make(rng: torch.Generator) -> tuple[list[Layer], Tensor]:
        units = 4 if recurrence is None else 5  # a container is as wide as its input
        columns = 10 if recurrence == "join" else 5
        first = Layer(weight((units, columns), rng, scale), bias(units, rng, scale), node, recurrence=recurrence)
        second = Layer(weight((4, units), rng, scale), bias(4, rng, scale), node)
        return [first, second], spike_input((5, 3, 5), rng)

    return settle(make, margin)


def spatial(node: Node, scale: float, margin: float = 1e-4) -> tuple[list[Layer], Tensor]:
    """A convolution, then a dense layer."""

    def make(rng: torch.Generator) -> tuple[list[Layer], Tensor]:
        first = Layer(weight((3, 2, 3, 3), rng, scale), bias(3, rng, scale), node, conv={"stride": 2, "padding": 1})
        second = Layer(weight((4, 12), rng, scale), bias(4, rng, scale), node, flatten=True)
        return [first, second], spike_input((4, 2, 2, 4, 4), rng)

    return settle(make, margin)


def with_surrogate(node: Node, name: str, **constants: float) -> Node:
    return replace(node, surrogate=(name, constants))
