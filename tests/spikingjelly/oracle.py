"""The rule on layers of SpikingJelly nodes, with e_ij[t] written out for every sample, neuron and weight.

    tr_x[t]   = lambda_pre  * tr_x[t-1]   + x[t]
    tr_psi[t] = lambda_post * tr_psi[t-1] + psi(v[t])
    e[t]      = alpha_pre * psi(v[t]) * du/do * (do/dW at x = tr_x[t]) + alpha_post * c * tr_psi[t-1] * du/do * (do/dW)
    dL/dW     = sum over t of delta[t] * e[t],  delta = dL[t]/d(spike) at the same step

c = 1 ("code") or lambda_post ("paper"). A loss on a state m that the node keeps adds dL/dm * dm/do * (do/dW at tr_x).
The synapse's output is o = W * x, u the membrane after charging, v = u - threshold; incoming states are constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracles.functions import Elementwise
from tests.oracles.stllr import Rule

State = dict[str, Tensor]
Loss = Callable[[dict[str, Tensor], int], Tensor]

SURROGATES: dict[str, Callable[..., Tensor]] = {
    "Sigmoid": lambda v, alpha=4.0: alpha * torch.sigmoid(alpha * v) * torch.sigmoid(-alpha * v),
    "ATan": lambda v, alpha=2.0: alpha / 2 / (1 + (math.pi / 2 * alpha * v) ** 2),
    "PiecewiseQuadratic": lambda v, alpha=1.0: (alpha - alpha**2 * v.abs()).clamp(min=0),
    "PiecewiseExp": lambda v, alpha=1.0: alpha / 2 * torch.exp(-alpha * v.abs()),
    "SoftSign": lambda v, alpha=2.0: 1 / (2 * alpha * (1 / alpha + v.abs()) ** 2),
    "SuperSpike": lambda v, alpha=1.0: alpha / (1 + v.abs()) ** 2,
    "Erf": lambda v, alpha=2.0: alpha / math.sqrt(math.pi) * torch.exp(-((alpha * v) ** 2)),
    "Rect": lambda v, alpha=1.0: alpha * (v.abs() < 0.5 / alpha),
    "QPseudoSpike": lambda v, alpha=2.0: (1 + 2 / (alpha - 1) * v.abs()) ** -alpha,
    "PiecewiseLeakyReLU": lambda v, w=1.0, c=0.01: c + (1 / (2 * w) - c) * (v.abs() < w).to(v),
}


@dataclass(frozen=True)
class Node:
    """A SpikingJelly node: its class, the arguments that differ from the defaults, and parameters by name."""

    kind: str
    options: Mapping[str, object] = field(default_factory=dict)
    params: Mapping[str, Tensor] = field(default_factory=dict)
    surrogate: tuple[str, Mapping[str, float]] = ("Sigmoid", {})

    def __getattr__(self, name: str) -> object:
        defaults = {"tau": 2.0, "decay_input": True, "v_threshold": 1.0, "detach_reset": False, "scale_reset": False}
        defaults |= {"a0": 1.0, "v_c": 0.8, "v_rest": 0.0, "delta_T": 1.0, "theta_rh": 0.8}
        defaults |= {"a": 0.0, "b": 0.0, "tau_w": 2.0, "w_rest": 0.0, "c_decay": 0.5, "v_decay": 0.75, "v_reset": 0.0}
        if name.startswith("__") or name not in {**defaults, **self.options}:
            raise AttributeError(name)
        return {**defaults, **self.options}[name]

    @property
    def derivative(self) -> Elementwise:
        name, constants = self.surrogate
        return lambda v: SURROGATES[name](v, **constants)

    def start(self, like: Tensor) -> State:
        rest = 0.0 if self.v_reset is None else self.v_reset
        if self.kind == "HalfThresholdIFNode":
            rest = self.v_threshold / 2
        state = {"v": torch.full_like(like, rest)}
        extra = {"IzhikevichNode": ("w", self.w_rest), "CUBALIFNode": ("c", 0.0), "ComplementaryLIFNode": ("m", 0.0)}
        if self.kind in extra:
            name, value = extra[self.kind]
            state[name] = torch.full_like(like, value)
        return state

    def charge(self, o: Tensor, s: State, params: Mapping[str, Tensor]) -> Tensor:
        """u[t]."""
        v, rest = s["v"], 0.0 if self.v_reset is None else self.v_reset
        if self.kind in ("IFNode", "HalfThresholdIFNode", "SimpleIFNode"):
            return v + o
        if self.kind == "QIFNode":
            return v + (o + self.a0 * (v - self.v_rest) * (v - self.v_c)) / self.tau
        if self.kind == "IzhikevichNode":
            return v + (o + self.a0 * (v - self.v_rest) * (v - self.v_c) - s["w"]) / self.tau
        if self.kind == "EIFNode":
            steep = self.delta_T * torch.exp((v - self.theta_rh) / self.delta_T)
            return v + (o - (v - self.v_rest) + steep) / self.tau
        if self.kind == "CUBALIFNode":
            return self.v_decay * v + self.c_decay * s["c"] + o
        if self.kind == "ComplementaryLIFNode":
            return v * (1 - 1 / self.tau) + o
        rate = torch.sigmoid(params["w"]) if self.kind == "ParametricLIFNode" else 1 / self.tau
        gain = rate if self.decay_input else 1.0
        u = v * (1 - rate) + rest * rate + gain * o
        return F.relu(params["k"] * u) if self.kind == "KLIFNode" else u

    def after(self, o: Tensor, u: Tensor, spike: Tensor, s: State, params: Mapping[str, Tensor]) -> State:
        """The states that the node keeps."""
        new: State = {}
        reset, threshold = spike.detach() if self.detach_reset else spike, self.v_threshold
        if self.kind == "ComplementaryLIFNode":
            m = s["m"] * torch.sigmoid(u / self.tau) + spike
            return {"v": u - spike * (threshold + torch.sigmoid(m)), "m": m}
        if self.kind == "CUBALIFNode":
            new["c"] = self.c_decay * s["c"] + o
        if self.kind == "IzhikevichNode":
            new["w"] = s["w"] + (self.a * (u - self.v_rest) - s["w"]) / self.tau_w + self.b * spike
        if self.kind == "KLIFNode" and self.scale_reset:
            u, threshold = u / params["k"], threshold / params["k"]
        soft = self.v_reset is None or self.kind == "HalfThresholdIFNode"
        new["v"] = u - reset * threshold if soft else (1 - reset) * u + reset * self.v_reset
        return {"v": new.pop("v"), **new}  # in the order in which the node lists them


@dataclass(frozen=True)
class Layer:
    """A synapse and the node that it feeds. ``recurrence``: the spikes of the step before are joined or added."""

    weight: Tensor
    bias: Tensor | None
    node: Node
    conv: Mapping[str, int] | None = None
    recurrence: str | None = None
    flatten: bool = False

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.conv is None:
            return x @ weight.t()
        return F.conv2d(x, weight, **self.conv)

    def shift(self, bias: Tensor | None) -> Tensor | float:
        if bias is None:
            return 0.0
        return bias if self.conv is None else bias.reshape(-1, 1, 1)

    def jacobian(self, x: Tensor) -> Tensor:
        """do/dW as [B, O, *W]."""
        jacobian = torch.autograd.functional.jacobian(lambda w: self.apply(x, w), self.weight, vectorize=True)
        return jacobian.reshape(len(x), -1, *self.weight.shape)


@dataclass
class Expected:
    grads: dict[str, Tensor]  # "0.weight", "0.bias", "0.w": by layer
    outputs: dict[str, list[Tensor]]  # of the last layer
    rates: list[float]
    margin: float


def spike(v: Tensor, derivative: Elementwise) -> Tensor:
    """SpikingJelly fires at v >= 0."""
    return (v.detach() >= 0).to(v) + derivative(v.detach()) * (v - v.detach())


def run(layers: list[Layer], xs: Tensor, rule: Rule, loss: Loss) -> Expected:
    """All steps are supervised; the loss of a step sees spikes ("y") and kept states of the last layer."""
    count = len(layers)
    params = [{name: p.clone().requires_grad_() for name, p in layer.node.params.items()} for layer in layers]
    biases = [None if layer.bias is None else layer.bias.clone().requires_grad_() for layer in layers]
    grads = {f"{i}.weight": torch.zeros_like(layer.weight) for i, layer in enumerate(layers)}
    for i in range(count):
        grads |= {f"{i}.{name}": torch.zeros_like(p) for name, p in params[i].items()}
        if biases[i] is not None:
            grads[f"{i}.bias"] = torch.zeros_like(biases[i])
    states: list[State | None] = [None] * count
    before: list[Tensor | None] = [None] * count
    pre: list[Tensor | None] = [None] * count
    post: list[Tensor | None] = [None] * count
    outputs: dict[str, list[Tensor]] = {}
    fired: list[list[Tensor]] = [[] for _ in layers]
    margin = math.inf
    for t, x in enumerate(xs):
        value, spikes, kept, now, post_now = x, [], [], [], []
        for i, layer in enumerate(layers):
            node = layer.node
            psi = node.derivative if rule.psi is None else rule.psi_of(None)  # type: ignore[arg-type]
            carry = psi if rule.propagate == "psi" else node.derivative
            if layer.recurrence is not None:
                old = torch.zeros_like(value) if before[i] is None else before[i]
                value = torch.cat((value, old), -1) if layer.recurrence == "join" else value + old
            if layer.flatten:
                value = value.flatten(1)
            o = layer.apply(value, layer.weight) + layer.shift(biases[i])
            state = states[i] = node.start(o.detach()) if states[i] is None else states[i]
            u = node.charge(o, state, params[i])
            y = spike(u - node.v_threshold, carry)
            own = spike(u - node.v_threshold, node.derivative)
            new = {name: s.clone() for name, s in node.after(o, u, own, state, params[i]).items()}
            # the eligibility of this step, from a copy of the neuron that stands alone
            leaf = o.detach().requires_grad_()
            alone = node.charge(leaf, state, params[i])
            (du,) = torch.autograd.grad(alone.sum(), leaf, retain_graph=True)
            v = (u - node.v_threshold).detach()
            j = layer.jacobian(value.detach())
            tr_x = j if pre[i] is None else rule.lambda_pre * pre[i] + j
            p = psi(v).flatten(1)
            e = rule.alpha_pre * _times(p * du.flatten(1), tr_x)
            if post[i] is not None:
                c = rule.lambda_post if rule.convention == "paper" else 1.0
                e = e + rule.alpha_post * c * _times(post[i] * du.flatten(1), j)
            alone_spike = spike(alone - node.v_threshold, node.derivative)
            alone_new = node.after(leaf, alone, alone_spike, state, params[i])
            dm = {
                name: torch.autograd.grad(s.sum(), leaf, retain_graph=True)[0].flatten(1)
                for name, s in alone_new.items()
                if s.requires_grad
            }
            pre[i] = tr_x
            post_now.append(p if post[i] is None else rule.lambda_post * post[i] + p)
            now.append((e, {name: _times(d, tr_x) for name, d in dm.items()}))
            spikes.append(y)
            kept.append(new)
            fired[i].append(y.detach())
            margin = min(margin, v.abs().min().item())
            value = y
        post = list(post_now)
        seen = {"y": spikes[-1], **kept[-1]}
        leaves = {name: s.detach().requires_grad_() for name, s in seen.items()}
        found = torch.autograd.grad(loss(leaves, t), list(leaves.values()), allow_unused=True)
        errors = {name: g for name, g in zip(leaves, found, strict=True) if g is not None and seen[name].requires_grad}
        total = sum((seen[name] * g).sum() for name, g in errors.items())
        others = {f"{i}.{name}": p for i in range(count) for name, p in params[i].items()}
        others |= {f"{i}.bias": b for i, b in enumerate(biases) if b is not None}
        wanted = [*spikes, *others.values()]
        got = torch.autograd.grad(total, wanted, allow_unused=True)
        for i, delta in enumerate(got[:count]):
            if delta is not None:
                grads[f"{i}.weight"] += _times(delta.flatten(1), now[i][0]).sum((0, 1))
        for name, g in errors.items():
            if name != "y":
                grads[f"{count - 1}.weight"] += _times(g.flatten(1), now[-1][1][name]).sum((0, 1))
        for name, g in zip(others, got[count:], strict=True):
            if g is not None:
                grads[name] += g
        states = [{name: s.detach() for name, s in new.items()} for new in kept]
        before = [y.detach() for y in spikes]
        for name, s in seen.items():
            outputs.setdefault(name, []).append(s.detach())
    return Expected(grads, outputs, [torch.stack(f).mean().item() for f in fired], margin)


def _times(factor: Tensor, jacobian: Tensor) -> Tensor:
    """[B, O] times [B, O, *W]."""
    return factor.reshape(*factor.shape, *[1] * (jacobian.dim() - 2)) * jacobian
