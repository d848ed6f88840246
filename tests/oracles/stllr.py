"""The rule with its eligibility e_ij[t] written out for every sample, neuron and weight.

Definition. For a neuron with compared membrane u, v = u - threshold, fed at step t by a synapse o = W * x:

    tr_x[t]   = lambda_pre  * tr_x[t-1]   + x[t]
    tr_psi[t] = lambda_post * tr_psi[t-1] + psi(v[t])
    e[t]      = alpha_pre * psi(v[t]) * (du/dW with x = tr_x[t]) + alpha_post * c * tr_psi[t-1] * (du/dW with x = x[t])
    dL/dW     = sum over supervised t of delta[t] * e[t]

where du/dW = du/do * do/dW with every incoming state constant, c = 1 (convention "code") or lambda_post ("paper"; with
"current" it is tr_psi[t] in place of tr_psi[t-1]), and
delta = dL[t]/d(spike) at the same step. A loss on the returned membrane m adds delta_m[t] * (dm/dW with x = tr_x[t]).

Where a neuron cannot spike whatever its membrane is (refractory, inhibited), psi is zero. A neuron whose input only
acts at the next step has x[t-1] in place of x[t], zero at the first step, and passes no signal on to what is below it.

Tensors: do/dW is [B, O, W]; du/do is [B, N, B, O] (batch norm couples samples); e is [B, N, W].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.oracles import functions, neurons, signals
from tests.oracles.between import apply_between, combine
from tests.oracles.spec import Net, Node
from tests.oracles.synapses import add_bias, apply_synapse, weight_jacobian

Loss = Callable[[dict[str, Tensor], int], Tensor]


@dataclass(frozen=True)
class Rule:
    """Constants of the rule; ``psi=None`` means the derivative of the neuron's own surrogate."""

    alpha_pre: float = 1.0
    lambda_pre: float = 0.8
    alpha_post: float = -0.2
    lambda_post: float = 0.5
    psi: str | functions.Elementwise | None = "triangle"
    propagate: str = "psi"
    convention: str = "code"

    def psi_of(self, neuron: neurons.Neuron) -> functions.Elementwise:
        if self.psi is None:
            return neuron.surrogate
        return functions.PSI[self.psi] if isinstance(self.psi, str) else self.psi

    def propagate_of(self, neuron: neurons.Neuron) -> functions.Elementwise:
        return self.psi_of(neuron) if self.propagate == "psi" else neuron.surrogate


@dataclass
class Result:
    """What a run of the oracle gives back."""

    grads: dict[str, Tensor]
    outputs: dict[str, Tensor]  # [T, ...] for every entry of net.outputs
    spikes: dict[str, Tensor]  # [T, ...] for every spiking neuron
    membranes: dict[str, Tensor]  # v = u - threshold, [T, ...]
    loss: float

    @property
    def margin(self) -> float:
        """Smallest distance of any membrane from its threshold: how safe the spikes are from rounding."""
        return min((v.abs().min().item() for v in self.membranes.values()), default=float("inf"))


@dataclass
class _Edge:
    """A synapse and the neuron it feeds: the trace of do/dW and the trace of psi."""

    pre: Tensor | None = None  # [B, O, W]
    post: Tensor | None = None  # [B, N]


@dataclass
class _Pass:
    """Values of one time step. In the local pass every neuron output is a constant for whatever follows it."""

    values: dict[str, Tensor] = field(default_factory=dict)
    synapse_in: dict[str, Tensor] = field(default_factory=dict)
    synapse_out: dict[str, Tensor] = field(default_factory=dict)
    decision: dict[str, neurons.Decision] = field(default_factory=dict)
    y: dict[str, Tensor] = field(default_factory=dict)  # spike output, times the graded factor
    spike: dict[str, Tensor] = field(default_factory=dict)  # 0 or 1, without the graded factor
    mem: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, neurons.State] = field(default_factory=dict)


class Oracle:
    """Steps through ``net`` and accumulates the gradient of every parameter."""

    def __init__(
        self,
        net: Net,
        rule: Rule,
        *,
        layer_rules: Mapping[str, Rule] | None = None,
        signal: str = "bp",
        feedback: Mapping[str, Tensor] | None = None,
        target: signals.Target | None = None,
        exclude: Sequence[str] = (),
    ) -> None:
        """``exclude`` names synapses whose weights get their plain same-step gradient.

        ``feedback`` has a matrix for each hidden spiking neuron; see tests.oracles.signals.
        """
        self.net, self.rule, self.layer_rules = net, rule, dict(layer_rules or {})
        self.signal, self.feedback, self.exclude = signal, dict(feedback or {}), tuple(exclude)
        self.target = target
        self.readout_grads = {name: torch.zeros_like(matrix.double()) for name, matrix in self.feedback.items()}
        self.raw = {name: value.detach().double().requires_grad_() for name, value in net.params.items()}
        self.chained = {w: compute(*[self.raw[n] for n in names]) for w, (compute, names) in net.computed.items()}
        # what the network computes with: the parameters, and leaves in place of the computed weights
        self.params = dict(self.raw)
        self.params |= {name: value.detach().requires_grad_() for name, value in self.chained.items()}
        self.edges: dict[tuple[str, str], _Edge] = {}
        self.state: dict[str, neurons.State] = {}
        self.before: dict[str, Tensor] = {}  # outputs of the step before, for those who ask for them
        self.grads = {name: torch.zeros_like(value) for name, value in self.params.items()}

    # ---------------------------------------------------------------- description
    def rule_for(self, synapse: str, neuron: str) -> Rule:
        """Rules by synapse name win over rules by neuron name."""
        return self.layer_rules.get(synapse, self.layer_rules.get(neuron, self.rule))

    def own_synapses(self, node: Node) -> list[str]:
        """Synapses inside a neuron module, named ``neuron.part``."""
        return [f"{node.name}.{part}" for part in node.own_synapses]

    def synapses_of(self, node: Node) -> list[str]:
        reached = [] if node.own_input else self.net.synapses_before(node)
        return [synapse for synapse in reached + self.own_synapses(node) if synapse not in self.exclude]

    def weight_name(self, synapse: str) -> str:
        owner, _, part = synapse.partition(".")
        if not part:
            options = self.net.node(synapse).options
            return f"{options.get('tied') or options.get('shares') or synapse}.weight"
        if part == "recurrent" and self.net.node(owner).options["recurrent"] == "one_to_one":
            return f"{owner}.V"
        return f"{synapse}.weight" if part in ("recurrent", "linear") else synapse

    def apply(self, synapse: str, x: Tensor, weight: Tensor) -> Tensor:
        """Output of a synapse without bias."""
        owner, _, part = synapse.partition(".")
        if not part:
            return apply_synapse(self.net.node(synapse), x, weight)
        kind = self.net.node(owner).options.get("recurrent", "linear")
        if kind == "one_to_one":
            return x * weight
        if kind == "conv":
            padding = (weight.shape[2] // 2, weight.shape[3] // 2)
            return apply_synapse(Node(synapse, "Conv2d", (), {"padding": padding}), x, weight)
        return apply_synapse(Node(synapse, "Linear", ()), x, weight)

    # ---------------------------------------------------------------- one pass
    def _synapse(self, step: _Pass, synapse: str, x: Tensor) -> Tensor:
        weight = self.weight_name(synapse)
        out = self.apply(synapse, x, self.params[weight])
        step.synapse_in[synapse], step.synapse_out[synapse] = x, out
        return out

    def _bias(self, node: Node) -> Tensor | None:
        return self.params.get(f"{node.options.get('shares', node.name)}.bias")

    def forward(self, x: Tensor, *, local: bool) -> _Pass:
        step = _Pass(values={"x": x})
        for node in self.net.nodes:
            incoming = combine(node, [self._value(step, node, name) for name in node.inputs])
            if node.is_synapse:
                step.values[node.name] = add_bias(node, self._synapse(step, node.name, incoming), self._bias(node))
            elif node.is_neuron:
                self._neuron(step, node, incoming, local=local)
            else:
                step.values[node.name] = apply_between(node, incoming, self.params)
        return step

    def _value(self, step: _Pass, node: Node, name: str) -> Tensor:
        if not name.endswith("@before"):
            return step.values[name]
        before = self.before.get(name.removesuffix("@before"))
        if before is None:
            before = torch.zeros(step.values["x"].shape[0], *node.options["start"], dtype=torch.float64)
        return before

    def _neuron(self, step: _Pass, node: Node, incoming: Tensor, *, local: bool) -> None:
        neuron = neurons.look_up(self.net, node, self.params)
        arriving = incoming.detach()
        if node.is_late:
            incoming = self.state.get(node.name, {}).get("arrived", torch.zeros_like(arriving))
        if node.own_input:
            synapse = f"{node.name}.{node.own_input}"
            incoming = self._synapse(step, synapse, incoming)
            incoming = incoming + self.params.get(f"{synapse}.bias", 0.0)
        if node.name not in self.state:
            self.state[node.name] = {k: s.detach() for k, s in neurons.initial_state(neuron, incoming).items()}
        state = self.state[node.name]
        for synapse in self.own_synapses(node):
            if "recurrent" in synapse.partition(".")[2]:
                incoming = incoming + self._synapse(step, synapse, state["y_before" if node.is_late else "y"])
                bias = self.params.get(f"{synapse}.bias")
                if bias is not None:
                    incoming = incoming + (bias.reshape(-1, 1, 1) if node.options["recurrent"] == "conv" else bias)
        decision = neurons.decide(neuron, incoming, state)
        y: Tensor | None = None
        own: Tensor | None = None
        if neuron.spikes:
            spike = functions.spike(decision.v, self.rule_for("", node.name).propagate_of(neuron))
            step.spike[node.name] = decision.gated(spike)
            y = step.spike[node.name] * neuron.graded_factor
            own = functions.spike(decision.v, neuron.surrogate)
        after = neurons.after_spike(neuron, decision, own, state)
        # a tensor of its own even where it equals u: a loss on it does not pass through the spike
        mem = after["mem"].clone()
        if y is None:  # a readout returns its membrane
            y = mem
        else:
            step.y[node.name] = y
        step.decision[node.name], step.mem[node.name] = decision, mem
        step.state[node.name] = {**state, **after, "y": y, "y_before": state["y"], "arrived": arriving}
        step.values[node.name] = y.detach() if local else y
        step.values[f"{node.name}.mem"] = mem.detach() if local else mem

    # ---------------------------------------------------------------- a sequence
    def run(self, xs: Tensor, loss: Loss | None, supervised: Sequence[Any] | None = None) -> Result:
        """``supervised[t]`` is a bool, or a bool tensor with one entry per sample. No loss: no traces, no gradients."""
        record: dict[str, list[Tensor]] = {name: [] for name in self.net.outputs}
        spikes: dict[str, list[Tensor]] = {}
        membranes: dict[str, list[Tensor]] = {}
        total = 0.0
        for t, x in enumerate(xs.double()):
            local = self.forward(x, local=True)
            if loss is not None:
                flags = torch.as_tensor(True if supervised is None else supervised[t]).expand(x.shape[0])
                self._advance_pre(local)
                if flags.any():
                    total += self._accumulate(self.forward(x, local=False), local, loss, t, flags)
                self._advance_post(local)
            self.before = {name: local.values[name].detach() for name in self.net.shared_from_before()}
            self.state = {n: {k: s.detach() for k, s in state.items()} for n, state in local.state.items()}
            for name in self.net.outputs:
                record[name].append(local.values[name].detach())
            for name, spike in local.spike.items():
                spikes.setdefault(name, []).append(spike.detach())
                membranes.setdefault(name, []).append(local.decision[name].v.detach())
        return Result(
            self.raw_grads(),
            {k: torch.stack(v) for k, v in record.items()},
            {k: torch.stack(v) for k, v in spikes.items()},
            {k: torch.stack(v) for k, v in membranes.items()},
            total,
        )

    def reset(self, mask: Tensor | None = None) -> None:
        """A new sequence, for all samples or for those in ``mask`` [B]."""
        if mask is None:
            self.edges, self.state, self.before = {}, {}, {}
            return
        for edge in self.edges.values():
            for name in ("pre", "post"):
                trace = getattr(edge, name)
                if trace is not None:
                    setattr(edge, name, trace * (~mask).reshape(-1, *[1] * (trace.dim() - 1)))
        for name, state in self.state.items():
            neuron = neurons.look_up(self.net, self.net.node(name), self.params)
            initial = neurons.initial_state(neuron, state["mem"])
            for key, value in state.items():
                keep = (~mask).reshape(-1, *[1] * (value.dim() - 1))
                state[key] = torch.where(keep, value, initial.get(key, torch.zeros_like(value)).detach())

    # ---------------------------------------------------------------- traces
    def _pairs(self) -> list[tuple[str, Node]]:
        return [(synapse, node) for node in self.net.nodes if node.is_neuron for synapse in self.synapses_of(node)]

    def _jacobian(self, local: _Pass, synapse: str) -> Tensor:
        weight = self.params[self.weight_name(synapse)].detach()
        x = local.synapse_in[synapse].detach()
        return weight_jacobian(lambda value, w: self.apply(synapse, value, w), x, weight)

    def _advance_pre(self, local: _Pass) -> None:
        self._now = {synapse: self._jacobian(local, synapse) for synapse, _ in self._pairs()}
        for synapse, node in self._pairs():
            edge = self.edges.setdefault((synapse, node.name), _Edge())
            decay = self.rule_for(synapse, node.name).lambda_pre
            now = self._now[synapse]
            edge.pre = now if edge.pre is None else decay * edge.pre + now

    def _psi(self, rule: Rule, neuron: neurons.Neuron, local: _Pass) -> Tensor:
        decision = local.decision[neuron.node.name]
        return decision.gated(rule.psi_of(neuron)(decision.v.detach())).flatten(1)

    def _advance_post(self, local: _Pass) -> None:
        for synapse, node in self._pairs():
            neuron = neurons.look_up(self.net, node, self.params)
            if not neuron.spikes:
                continue
            rule, edge = self.rule_for(synapse, node.name), self.edges[synapse, node.name]
            psi = self._psi(rule, neuron, local)
            edge.post = psi if edge.post is None else rule.lambda_post * edge.post + psi

    # ---------------------------------------------------------------- gradients
    def _accumulate(self, full: _Pass, local: _Pass, loss: Loss, t: int, flags: Tensor) -> float:
        leaves = {name: full.values[name].detach().requires_grad_() for name in self.net.outputs}
        value = loss(leaves, t)
        errors = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), allow_unused=True), strict=True))
        errors = {
            name: error * flags.reshape(-1, *[1] * (error.dim() - 1))
            for name, error in errors.items()
            if error is not None
        }
        deltas, mem_deltas = self._learning_signals(full, errors, flags)
        for node in self.net.nodes:
            if node.is_neuron:
                self._neuron_gradients(local, node, deltas.get(node.name), mem_deltas.get(node.name))
        # what reaches the loss without passing a neuron: a plain readout
        direct = [(local.values[name], error) for name, error in errors.items() if local.values[name].requires_grad]
        if direct:
            values, grad_outputs = zip(*direct, strict=True)
            self._add_plain(values, grad_outputs, list(self.params))
        return value.item()

    def _learning_signals(
        self, full: _Pass, errors: dict[str, Tensor], flags: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """delta of every spike output and of every returned membrane."""
        at_outputs = sum((full.values[name] * error).sum() for name, error in errors.items())
        deltas: dict[str, Tensor] = {}
        mem_deltas: dict[str, Tensor] = {}
        for node in self.net.nodes:
            if not node.is_neuron:
                continue
            is_output = node.name in errors or f"{node.name}.mem" in errors
            if node.name in full.y:
                if self.signal == "bp" or is_output:
                    (delta,) = torch.autograd.grad(at_outputs, full.y[node.name], retain_graph=True, allow_unused=True)
                    if delta is not None:
                        deltas[node.name] = delta
                else:
                    deltas[node.name] = self._direct_signal(full, node, errors, flags)
            if self.signal == "bp" or is_output:
                mem = full.mem[node.name]
                (delta,) = torch.autograd.grad(at_outputs, mem, retain_graph=True, allow_unused=True)
                if delta is not None:
                    mem_deltas[node.name] = delta
        return deltas, mem_deltas

    def _direct_signal(self, full: _Pass, node: Node, errors: dict[str, Tensor], flags: Tensor) -> Tensor:
        (error,) = errors.values()
        module = node.options.get("shares", node.name)
        matrix, y = self.feedback.get(module), full.y[node.name]
        if self.signal == "local":
            assert matrix is not None and self.target is not None
            self.readout_grads[module] += signals.readout_gradient(y, matrix, self.target, flags)
        delta = signals.hidden_delta(self.signal, error.flatten(1), y, matrix, self.target)
        return delta * flags.reshape(-1, *[1] * (delta.dim() - 1))

    def _neuron_gradients(self, local: _Pass, node: Node, delta: Tensor | None, mem_delta: Tensor | None) -> None:
        weights = {self.weight_name(s) for s, _ in self._pairs()}
        plain = [name for name in self.params if name not in weights]
        neuron = neurons.look_up(self.net, node, self.params)
        if delta is not None:
            self._add_plain([local.y[node.name]], [delta], plain)
            delta = delta * torch.as_tensor(neuron.graded_factor).detach()
        if mem_delta is not None:
            self._add_plain([local.mem[node.name]], [mem_delta], plain)
        for synapse in self.synapses_of(node):
            edge, rule = self.edges[synapse, node.name], self.rule_for(synapse, node.name)
            assert edge.pre is not None
            gradient = torch.zeros(edge.pre.shape[-1], dtype=torch.float64)
            if delta is not None:
                u_by_out = _state_jacobian(local.decision[node.name].u, local.synapse_out[synapse])
                psi = self._psi(rule, neuron, local)
                causal = torch.einsum("bnco,cow->bnw", u_by_out, edge.pre)
                eligibility = rule.alpha_pre * psi[:, :, None] * causal
                post = edge.post
                if rule.convention == "current":
                    post = psi if post is None else rule.lambda_post * post + psi
                if post is not None:
                    factor = rule.lambda_post if rule.convention == "paper" else 1.0
                    current = torch.einsum("bnco,cow->bnw", u_by_out, self._now[synapse])
                    eligibility = eligibility + rule.alpha_post * factor * post[:, :, None] * current
                gradient += torch.einsum("bn,bnw->w", delta.flatten(1), eligibility)
            if mem_delta is not None:
                mem_by_out = _state_jacobian(local.mem[node.name], local.synapse_out[synapse])
                gradient += torch.einsum(
                    "bn,bnw->w", mem_delta.flatten(1), torch.einsum("bnco,cow->bnw", mem_by_out, edge.pre)
                )
            name = self.weight_name(synapse)
            gradient = gradient.reshape(self.params[name].shape)
            if synapse.endswith(".recurrent_weights") and not node.options.get("autapses", False):
                gradient = gradient * (1 - torch.eye(len(gradient), dtype=gradient.dtype))
            self.grads[name] += gradient

    def _add_plain(self, values: Sequence[Tensor], grad_outputs: Sequence[Tensor], names: list[str]) -> None:
        if not names:
            return
        found = torch.autograd.grad(
            values, [self.params[n] for n in names], grad_outputs, retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                self.grads[name] += gradient

    def raw_grads(self) -> dict[str, Tensor]:
        """Gradients by parameter, those of computed weights carried to what they are computed from."""
        grads = {name: self.grads[name].clone() for name in self.raw}
        for weight, value in self.chained.items():
            names = list(self.raw)
            found = torch.autograd.grad(
                value, [self.raw[n] for n in names], self.grads[weight], retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(names, found, strict=True):
                if gradient is not None:
                    grads[name] = grads[name] + gradient
        return grads


def _state_jacobian(value: Tensor, out: Tensor) -> Tensor:
    """d value[b, n] / d out[c, o] for every pair: tensor [B, N, C, O]."""
    rows = torch.eye(value.numel(), dtype=value.dtype).reshape(-1, *value.shape)
    (jacobian,) = torch.autograd.grad(value, out, rows, retain_graph=True, is_grads_batched=True, allow_unused=True)
    if jacobian is None:
        jacobian = torch.zeros(value.numel(), out.numel(), dtype=value.dtype)
    batch, others = value.shape[0], out.shape[0]
    return jacobian.reshape(batch, value.numel() // batch, others, -1)
