"""How SpikingJelly models are used: sequences and resets, readouts, modules with states of their own, refusals."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("spikingjelly", reason="needs the extra 'spikingjelly'")

from spikingjelly.activation_based import functional, layer, neuron, surrogate  # noqa: E402

from stllr_plugin import AttachmentError, STLLRLearner, STLLRRule  # noqa: E402
from stllr_plugin.errors import SequenceInputError  # noqa: E402

RULE = STLLRRule(psi="sigmoid")
ROOT = Path(__file__).resolve().parents[2]


def network(**options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"v_threshold": 0.5, "decay_input": False, **options}
    return nn.Sequential(
        layer.Linear(4, 6), neuron.LIFNode(**options), layer.Linear(6, 3), neuron.LIFNode(**options)
    ).double()


def data(batch: int = 3, steps: int = 5, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return (torch.rand(steps, batch, 4, generator=rng) < 0.6).double()


def train(net: nn.Module, xs: Tensor) -> None:
    for t, x in enumerate(xs):
        y = net(x)
        ((y - torch.sin(torch.arange(3.0).double() + t)) ** 2).sum().backward()


def gradients(net: nn.Module) -> list[Tensor]:
    found = [p.grad.clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = None
    return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- sequences -------------------------------------------------------------------------------------


@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
def test_a_reset_by_the_user_or_by_the_learner_begins_a_sequence(v_reset: float | None) -> None:
    net = network(v_reset=v_reset)
    learner = STLLRLearner(net, rule=RULE)
    train(net, data())
    fresh = gradients(net)
    train(net, data())
    assert not same(gradients(net), fresh)  # the same sequence went on
    functional.reset_net(net)
    train(net, data())
    assert same(gradients(net), fresh)
    learner.reset()
    train(net, data())
    assert same(gradients(net), fresh)


def test_step_ends_the_sequence() -> None:
    net = network()
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.0), rule=RULE)
    train(net, data())
    fresh = gradients(net)
    learner.zero_grad()
    train(net, data())
    learner.step()
    assert net[1].v == 0.0  # as before the first step
    gradients(net)
    train(net, data())
    assert same(gradients(net), fresh)


@pytest.mark.parametrize("v_reset", [-0.25, None])
def test_samples_that_are_reset_continue_as_new_ones(v_reset: float | None) -> None:
    """Sample 1 restarts half-way: from there it gives what a sequence of its own gives."""
    first, second = data(seed=1), data(seed=2)
    net = network(v_reset=v_reset)
    learner = STLLRLearner(net, rule=RULE)
    train(net, second[:, 1:2])
    alone = gradients(net)
    learner.reset()
    train(net, first)
    gradients(net)
    learner.reset(torch.tensor([False, True, False]))
    for t, x in enumerate(second):
        y = net(x)
        ((y[1] - torch.sin(torch.arange(3.0).double() + t)) ** 2).sum().backward()
    for one, other in zip(gradients(net), alone, strict=True):
        torch.testing.assert_close(one, other)


def test_evaluation_between_sequences_leaves_nothing_behind() -> None:
    net = network()
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.0), rule=RULE)
    train(net, data())
    fresh = gradients(net)
    train(net, data())
    learner.step()
    gradients(net)
    net.eval()
    with torch.no_grad():
        for x in data(batch=7):
            net(x)
    net.train()
    train(net, data())
    assert same(gradients(net), fresh)


def test_detach_gives_the_model_back() -> None:
    net, plain = network(), network()
    before = {name: set(module.__dict__) for name, module in net.named_modules()}
    learner = STLLRLearner(net, rule=RULE)
    train(net, data())
    learner.detach()
    assert {name: set(module.__dict__) for name, module in net.named_modules()} == before
    assert not any(value.requires_grad for module in (net[1], net[3]) for value in module.memories())
    gradients(net)
    for module in (net, plain):
        functional.reset_net(module)
        sum((module(x) ** 2).sum() for x in data()).backward()
    assert same(gradients(net), gradients(plain))


def test_a_deep_copy_needs_a_learner_of_its_own() -> None:
    net = network()
    STLLRLearner(net, rule=RULE)
    train(net, data())
    expected = gradients(net)
    functional.reset_net(net)
    copied = copy.deepcopy(net)
    from stllr_plugin import remove_hooks

    remove_hooks(copied)
    STLLRLearner(copied, rule=RULE)
    train(copied, data())
    assert same(gradients(copied), expected)
    assert all(p.grad is None for p in net.parameters())


def test_memory_does_not_grow_with_time() -> None:
    """The graph of a step is gone once the next one has run."""
    import weakref

    net = network()
    STLLRLearner(net, rule=RULE)
    past = []
    for x in data(steps=6):
        y = net(x)
        past.append(weakref.ref(y.grad_fn))
        del y
    net(data()[0])
    assert [ref() for ref in past] == [None] * 6


def test_stream_runs_a_model_of_nodes_step_by_step() -> None:
    net = network()
    learner = STLLRLearner(net, rule=RULE)
    train(net, data())
    looped = gradients(net)
    learner.reset()
    for t, y in enumerate(learner.stream(data())):
        ((y - torch.sin(torch.arange(3.0).double() + t)) ** 2).sum().backward()
    assert same(gradients(net), looped)


@pytest.mark.parametrize("name", [None, "dropout", "delay", "recurrent"])
def test_two_passes_start_from_the_same_states(name: str | None) -> None:
    """A loss on spike counts: one backward at the end, and two passes, with a sequence that goes on behind another."""
    found = []
    for two in (False, True):
        net = network() if name is None else kept(MODULES[name]())
        learner = STLLRLearner(net, rule=RULE)
        torch.manual_seed(1)
        for x in data(seed=5):
            net(x)
        last = str(len(net) - 1)

        def forward(net: nn.Module = net) -> Tensor:
            return torch.stack([net(x) for x in data()])

        def count_loss(spikes: Tensor) -> Tensor:
            return torch.logsumexp(spikes.sum(0), 1).sum()

        if two:
            learner.two_pass(last, count_loss, forward)
        else:
            count_loss(forward()).backward()
        found.append([torch.zeros(1) if p.grad is None else p.grad for p in net.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


# --- readouts --------------------------------------------------------------------------------------


def test_a_node_that_never_fires_is_a_readout() -> None:
    """v_threshold=inf, read out through ``v``: the weight gets dL/dv * trace, with the trace that the rule sets."""
    torch.manual_seed(0)
    readout = neuron.LIFNode(tau=2.0, v_threshold=float("inf"))
    net = nn.Sequential(layer.Linear(4, 3, bias=False), readout).double()
    xs, expected, trace = data(), torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
    STLLRLearner(net, rule=STLLRRule(lambda_pre=0.5, alpha_post=-1.0, psi="sigmoid"))
    for t, x in enumerate(xs):
        net(x)
        error = torch.sin(torch.arange(9.0).double() + t).view(3, 3)
        (readout.v * error).sum().backward()
        trace = 0.5 * trace + x
        expected += error.t() @ trace / readout.tau
    torch.testing.assert_close(net[0].weight.grad, expected)


# --- modules that keep states ----------------------------------------------------------------------


def kept(module: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    lif = {"v_threshold": 0.5, "decay_input": False}
    return nn.Sequential(
        layer.Linear(4, 6), neuron.LIFNode(**lif), module, layer.Linear(6, 3), neuron.LIFNode(**lif)
    ).double()


MODULES: dict[str, Callable[[], nn.Module]] = {
    "filter": lambda: layer.SynapseFilter(tau=4.0, learnable=True),
    "delay": lambda: layer.Delay(1),
    "dropout": lambda: layer.Dropout(0.5),
    "recurrent": lambda: layer.LinearRecurrentContainer(neuron.IFNode(v_threshold=0.5), 6, 6),
}


@pytest.mark.parametrize("name", MODULES)
def test_their_state_is_fresh_in_each_sequence_and_cut_off_at_each_step(name: str) -> None:
    net = kept(MODULES[name]())
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), lr=0.0), rule=RULE)
    runs = []
    for _ in range(2):
        torch.manual_seed(1)  # for the dropout mask
        train(net, data())
        runs.append([torch.zeros(1) if p.grad is None else p.grad.clone() for p in net.parameters()])
        learner.step()
        learner.zero_grad()
    assert same(*runs)
    total = torch.zeros(()).double()  # one backward at the end gives the same: nothing flows between steps
    torch.manual_seed(1)
    for t, x in enumerate(data()):
        total = total + ((net(x) - torch.sin(torch.arange(3.0).double() + t)) ** 2).sum()
    total.backward()
    for p, expected in zip(net.parameters(), runs[0], strict=True):
        torch.testing.assert_close(
            torch.zeros(1) if p.grad is None else p.grad, expected.to(p.dtype), check_dtype=False
        )


def test_reset_with_a_mask_reaches_recurrent_containers() -> None:
    net = kept(MODULES["recurrent"]())
    learner = STLLRLearner(net, rule=RULE)
    train(net, data())
    learner.reset(torch.tensor([True, False, False]))
    y = net[2].y
    assert not y[0].any()
    assert y[1:].any()


def test_dropout_keeps_its_mask_through_a_sequence_only() -> None:
    net = kept(layer.Dropout(0.5))
    learner = STLLRLearner(net, rule=RULE)
    masks = []
    for _ in range(4):
        for x in data():
            net(x)
            masks.append(net[2].mask.clone())
        learner.reset()
    assert all(torch.equal(masks[5 * i], masks[5 * i + k]) for i in range(4) for k in range(5))
    assert not all(torch.equal(masks[0], masks[5 * i]) for i in range(4))


# --- refusals --------------------------------------------------------------------------------------


def refused(model: nn.Module, *parts: str, rule: Any = RULE) -> None:
    with pytest.raises(AttachmentError) as caught:
        STLLRLearner(model, rule=rule)
    for part in parts:
        assert part in str(caught.value)


class OwnStep(neuron.LIFNode):
    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        return super().single_step_functional_forward((inputs[0] * 2,), states, **kwargs)


class OwnCharge(neuron.SimpleBaseNode):
    def neuronal_charge(self, x: Tensor) -> None:
        self.v = 0.75 * self.v + torch.tanh(x)


class OwnFire(OwnCharge):
    def neuronal_fire(self) -> Tensor:
        return self.surrogate_function(self.v - 2.0)


class OwnNode(neuron.BaseNode):
    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        return (self.surrogate_function(inputs[0]),), states


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "multi-step": (lambda: neuron.LIFNode(step_mode="m"), ("step_mode='m'", "set_step_mode")),
    "v_seq": (lambda: neuron.LIFNode(store_v_seq=True), ("store_v_seq",)),
    "not spiking": (lambda: neuron.IFNode(surrogate_function=surrogate.ATan(spiking=False)), ("spiking=False",)),
    "OTTT": (neuron.OTTTLIFNode, ("LIFNode", 'rule="ottt"', "1 - 1/tau")),
    "SLTT": (neuron.SLTTLIFNode, ("LIFNode", 'rule="sltt"')),
    "OTTTSequential": (lambda: layer.OTTTSequential(nn.Linear(4, 4), neuron.LIFNode()), ('rule="ottt"',)),
    "GradwithTrace": (lambda: layer.GradwithTrace(nn.Linear(4, 4)), ('rule="ottt"',)),
    "resonate": (neuron.RAFNode, ("du[t]/dI[t] = 0",)),
    "liaf": (lambda: neuron.LIAFNode(torch.relu, True), ("in place of spikes",)),
    "ternary": (neuron.TernaryLIFNode, ("two thresholds",)),
    "counts": (neuron.ILIFNode, ("spike counts",)),
    "gated": (lambda: neuron.GatedLIFNode(T=4), ("all time steps in one call",)),
    "psn": (lambda: neuron.PSN(4), ("all time steps in one call",)),
    "sliding psn": (lambda: neuron.SlidingPSN(2), ("past inputs",)),
    "batch norm on membranes": (lambda: neuron.MPBNLIFNode(out_features=4), ("normalises the membrane",)),
    "converted": (neuron.ActivationAwareIFNode, ("converted networks",)),
    "subclass with a step of its own": (OwnStep, ("OwnStep", "overrides single_step_functional_forward")),
    "subclass that fires otherwise": (OwnFire, ("overrides neuronal_fire",)),
    "unknown node": (OwnNode, ("not supported", "SimpleBaseNode")),
    "standardised weights": (lambda: layer.WSLinear(4, 4), ("standardises its weight",)),
    "multi-step layer": (lambda: layer.Linear(4, 4, step_mode="m"), ("multi-step", "set_step_mode")),
    "drop connect": (lambda: layer.DropConnectLinear(4, 4), ("drawn anew",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, parts = REFUSED[name]
    refused(nn.Sequential(nn.Linear(4, 4), make(), nn.Linear(4, 4), neuron.LIFNode()), *parts)


@pytest.mark.parametrize("make", [surrogate.SquarewaveFourierSeries, surrogate.LeakyKReLU])
def test_surrogates_that_cannot_serve_as_psi(make: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), neuron.LIFNode(surrogate_function=make()))
    refused(net, "surrogate", rule=STLLRRule(psi=None))
    STLLRLearner(net, rule=RULE)  # with a psi of its own and propagate="psi" it is not needed


def test_a_node_switched_to_multi_step_mode_later() -> None:
    net = network()
    STLLRLearner(net, rule=RULE)
    functional.set_step_mode(net, "m")
    with pytest.raises(SequenceInputError, match="set_step_mode"):
        net(data())


def test_a_node_of_the_users_own() -> None:
    """Derived from SimpleBaseNode: u is what it charges to; here du/do = 1 - tanh(o)^2."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3, bias=False), OwnCharge(v_threshold=0.5, v_reset=0.0)).double()
    rule = STLLRRule(lambda_pre=0.5, alpha_post=-1.0, lambda_post=0.25, psi="sigmoid")
    STLLRLearner(net, rule=rule)
    weight, v = net[0].weight.detach().clone(), torch.zeros(3, 3).double()
    tr_x, tr_psi = torch.zeros(3, 4).double(), torch.zeros(3, 3).double()
    expected = torch.zeros(3, 4).double()
    for t, x in enumerate(data()):
        y = net(x)
        delta = torch.cos(torch.arange(9.0).double() + t).view(3, 3)
        (y * delta).sum().backward()
        o = x @ weight.t()
        u = 0.75 * v + torch.tanh(o)
        psi = 4 * torch.sigmoid(4 * (u - 0.5)) * torch.sigmoid(-4 * (u - 0.5))
        tr_x = 0.5 * tr_x + x
        slope = delta * (1 - torch.tanh(o) ** 2)
        expected += (slope * psi).t() @ tr_x - (slope * tr_psi).t() @ x
        tr_psi = 0.25 * tr_psi + psi
        fired = (u >= 0.5).double()
        v = (1 - fired) * u
    torch.testing.assert_close(net[0].weight.grad, expected)


def test_spikingjelly_loads_only_with_a_model_that_uses_it() -> None:
    probe = (
        "import sys, torch, stllr_plugin\n"
        "import snntorch\n"
        "model = torch.nn.Sequential(torch.nn.Linear(2, 2), snntorch.Leaky(beta=0.9, init_hidden=True))\n"
        "stllr_plugin.STLLRLearner(model, rule='dvs_gesture')\n"
        "assert 'spikingjelly' not in sys.modules and 'stllr_plugin.neurons.spikingjelly' not in sys.modules\n"
    )
    pytest.importorskip("snntorch")
    run = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def test_lightning_helpers_know_nodes_and_memories() -> None:
    states = pytest.importorskip("lightning_modules.tasks.states", reason="needs the extra 'lightning'")
    net = kept(MODULES["recurrent"]())
    with torch.no_grad():
        once = [net(x) for x in data()]
        states.reset_states(net)
        again = [net(x) for x in data()]
    assert same(once, again)
    assert list(states.spiking_modules(net)) == ["1", "2.sub_module", "4"]


def test_the_code_in_the_document_runs() -> None:
    text = (ROOT / "docs" / "spikingjelly.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    session: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in blocks:
            exec(block, session)


def test_a_library_that_is_too_old_is_named() -> None:
    """The nodes of SpikingJelly 0.0.0.0.14 have no ``single_step_functional_forward``."""
    probe = (
        "import torch, stllr_plugin\n"
        "from spikingjelly.activation_based import base, neuron\n"
        "model = torch.nn.Sequential(torch.nn.Linear(2, 2), neuron.LIFNode())\n"
        "del neuron.BaseNode.single_step_functional_forward, base.MemoryModule.single_step_functional_forward\n"
        "try:\n"
        "    stllr_plugin.STLLRLearner(model, rule='dvs_gesture')\n"
        "except stllr_plugin.AttachmentError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "older than 2.0" in run.stdout
