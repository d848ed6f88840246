"""What people do to synapses: sparsity masks, trainable delays, frozen layers, learning rates of their own."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import AttachmentError, StateError
from stllr_plugin.nn import weight_standardize
from tests.cases.case import Case, exact, generator
from tests.cases.drive import attach, gradients, relative_errors, run_steps
from tests.cases.modules import CaseNet
from tests.cases.neurons import neuron_case
from tests.cases.rules import RULES
from tests.cases.structures import dense, leaky, linear, structure_case
from tests.cases.surrogates import exact_spike_grad
from tests.cases.synapses import synapse_case
from tests.contracts import networks
from tests.oracles.spec import Net, Node
from tests.oracles.stllr import Oracle

pytest.importorskip("norse")

PRUNED: dict[str, tuple[Callable[[], Case], str]] = {
    "Linear": (lambda: neuron_case("Leaky-zero-now", "both"), "fc1"),
    "upper Linear": (lambda: neuron_case("Leaky-zero-now", "both"), "fc2"),
    "recurrence": (lambda: neuron_case("RLeaky-zero-late-linear", "both"), "lif1.recurrent"),
    "Conv2d": (lambda: synapse_case("Conv2d-stride"), "syn"),
    "ConvTranspose2d": (lambda: synapse_case("ConvTranspose2d-stride"), "syn"),
    "readout": (lambda: structure_case("plain_readout"), "out"),
    "called twice": (lambda: structure_case("two_inputs_one_synapse"), "fc1"),
}
pruned_layers = pytest.mark.parametrize("name", PRUNED)


class Mask(nn.Module):
    """A sparsity mask as a parametrization."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def random_mask(shape: torch.Size) -> Tensor:
    return (torch.rand(shape, generator=generator(6)) < 0.5).double()


def layer_of(model: nn.Module, synapse: str) -> nn.Module:
    return model.get_submodule(synapse)


def masked(case: Case, synapse: str, mask: Tensor, original: str) -> Case:
    """The case for the oracle: the weight is ``original`` times the mask."""
    params = dict(case.net.params)
    params[f"{synapse}.{original}"] = params.pop(f"{synapse}.weight")
    computed = {f"{synapse}.weight": (lambda raw: raw * mask, (f"{synapse}.{original}",))}
    return Case(case.id, Net(case.net.nodes, params, case.net.outputs, computed), case.xs, case.hidden)


def expect(case: Case, synapse: str, mask: Tensor, original: str, rule: str) -> dict[str, Tensor]:
    changed = masked(case, synapse, mask, original)
    return Oracle(changed.net, RULES[rule]).run(changed.xs, changed.loss).grads


# ------------------------------------------------------------------------------------------------ masks
@pruned_layers
def test_a_mask_as_a_parametrization(name: str) -> None:
    build, synapse = PRUNED[name]
    case = build()
    for rule, way in (("default", "a"), ("paper", "b"), ("own_all", "b")):
        model = CaseNet(case.net, hidden=case.hidden)
        layer = layer_of(model, synapse)
        mask = random_mask(layer.weight.shape)
        parametrize.register_parametrization(layer, "weight", Mask(mask))
        with attach(model, RULES[rule]):
            run_steps(model, case.xs, case.loss, way)
        expected = expect(case, synapse, mask, "parametrizations.weight.original", rule)
        assert max(relative_errors(gradients(model), expected).values()) <= 1e-9
        gradient = layer.parametrizations.weight.original.grad
        assert gradient.any() and not gradient[mask == 0].any()


METHODS: dict[str, Callable[[nn.Module, str], Any]] = {
    "l1_unstructured": lambda layer, name: prune.l1_unstructured(layer, name, amount=0.5),
    "random_unstructured": lambda layer, name: prune.random_unstructured(layer, name, amount=0.3),
    "random_structured": lambda layer, name: prune.random_structured(layer, name, amount=1, dim=0),
    "ln_structured": lambda layer, name: prune.ln_structured(layer, name, amount=1, n=2, dim=1),
    "custom_from_mask": lambda layer, name: prune.custom_from_mask(
        layer, name, random_mask(getattr(layer, name).shape)
    ),
    "identity": lambda layer, name: prune.identity(layer, name),
    "twice": lambda layer, name: [prune.l1_unstructured(layer, name, amount=0.25) for _ in range(2)],
}


@pruned_layers
@pytest.mark.parametrize("method", METHODS)
def test_pruning_before_attaching(method: str, name: str) -> None:
    build, synapse = PRUNED[name]
    case = build()
    torch.manual_seed(0)
    for rule, way in (("default", "a"), ("paper", "b")):
        model = CaseNet(case.net, hidden=case.hidden)
        layer = layer_of(model, synapse)
        METHODS[method](layer, "weight")
        mask = layer.weight_mask.clone()
        assert method == "identity" or not mask.all()
        with attach(model, RULES[rule]):
            run_steps(model, case.xs, case.loss, way)
        expected = expect(case, synapse, mask, "weight_orig", rule)
        assert max(relative_errors(gradients(model), expected).values()) <= 1e-9
        assert not layer.weight_orig.grad[mask == 0].any()


OWN = ("input_weights", "recurrent_weights")


def own_weights_masked(name: str, mask_it: Callable[[nn.Module, Tensor], str], after: bool = False) -> None:
    """A weight that Norse's cell holds itself, masked before or after attaching."""
    case = neuron_case("LIFRecurrentCell-autapses", "both")
    model = CaseNet(case.net)
    mask = random_mask(getattr(model.lif1, name).shape)
    original = "" if after else mask_it(model.lif1, mask)
    with attach(model, RULES["default"]):
        original = original or mask_it(model.lif1, mask)
        run_steps(model, case.xs, case.loss)
    params = dict(case.net.params)
    params[f"lif1.{original}"] = params.pop(f"lif1.{name}")
    computed = {f"lif1.{name}": (lambda raw: raw * mask, (f"lif1.{original}",))}
    expected = Oracle(Net(case.net.nodes, params, case.net.outputs, computed), RULES["default"])
    errors = relative_errors(gradients(model), expected.run(case.xs, case.loss).grads)
    assert max(errors.values()) <= 1e-9


@pytest.mark.parametrize("after", [False, True], ids=["before attaching", "after attaching"])
@pytest.mark.parametrize("name", OWN)
def test_pruned_weights_of_a_neuron_of_norse(name: str, after: bool) -> None:
    def prune_it(cell: nn.Module, mask: Tensor) -> str:
        prune.custom_from_mask(cell, name, mask)
        return f"{name}_orig"

    own_weights_masked(name, prune_it, after)


@pytest.mark.parametrize("name", OWN)
def test_parametrized_weights_of_a_neuron_of_norse_are_right_or_refused(name: str) -> None:
    def parametrize_it(cell: nn.Module, mask: Tensor) -> str:
        parametrize.register_parametrization(cell, name, Mask(mask))
        return f"parametrizations.{name}.original"

    with contextlib.suppress(AttachmentError):
        own_weights_masked(name, parametrize_it)


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "recurrence"])
def test_a_parametrization_that_comes_after_attaching(name: str) -> None:
    build, synapse = PRUNED[name]
    case = build()
    model = CaseNet(case.net, hidden=case.hidden)
    layer = layer_of(model, synapse)
    mask = random_mask(layer.weight.shape)
    with attach(model, RULES["default"]):
        parametrize.register_parametrization(layer, "weight", Mask(mask))
        run_steps(model, case.xs, case.loss)
    expected = expect(case, synapse, mask, "parametrizations.weight.original", "default")
    assert max(relative_errors(gradients(model), expected).values()) <= 1e-9


def test_a_pruned_bias() -> None:
    case = neuron_case("Leaky-zero-now", "both")
    model = CaseNet(case.net)
    prune.custom_from_mask(model.fc1, "bias", torch.tensor([1.0, 0.0, 1.0, 0.0]).double())
    params = dict(case.net.params)
    params["fc1.bias_orig"] = params.pop("fc1.bias")
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0]).double()
    params["fc1.bias"] = params["fc1.bias_orig"] * mask
    expected = Oracle(Net(case.net.nodes, params, case.net.outputs), RULES["default"]).run(case.xs, case.loss).grads
    expected["fc1.bias_orig"] = expected.pop("fc1.bias") * mask
    with attach(model, RULES["default"]):
        run_steps(model, case.xs, case.loss)
    assert max(relative_errors(gradients(model), expected).values()) <= 1e-9


@pytest.mark.parametrize("kind", ["parametrization", *METHODS])
def test_masked_weights_stay_zero_over_training(kind: str) -> None:
    """With momentum; the others move."""
    torch.manual_seed(0)
    net = networks.build(networks.Hidden)
    if kind == "parametrization":
        parametrize.register_parametrization(net.fc1, "weight", Mask(random_mask(net.fc1.weight.shape).float()))
    else:
        METHODS[kind](net.fc1, "weight")
    before = net.fc1.weight.detach().clone()
    learner = STLLRLearner(net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), rule=networks.RULE)
    for _ in range(3):
        learner.zero_grad()
        networks.run_steps(net, networks.spikes(4), networks.labels())
        learner.step()
    net(networks.spikes(1)[0])  # pruning computes the weight when the layer runs
    after = net.fc1.weight.detach()
    assert torch.equal(after == 0, before == 0)
    assert (after != before)[before != 0].any()


def test_pruning_several_layers_at_once() -> None:
    case = neuron_case("Leaky-zero-now", "both")
    model = CaseNet(case.net)
    prune.global_unstructured([(model.fc1, "weight"), (model.fc2, "weight")], prune.L1Unstructured, amount=0.5)
    masks = {name: layer_of(model, name).weight_mask for name in ("fc1", "fc2")}
    changed = masked(masked(case, "fc1", masks["fc1"], "weight_orig"), "fc2", masks["fc2"], "weight_orig")
    computed = {
        f"{name}.weight": (lambda raw, mask=mask: raw * mask, (f"{name}.weight_orig",)) for name, mask in masks.items()
    }
    net = Net(changed.net.nodes, changed.net.params, changed.net.outputs, computed)
    expected = Oracle(net, RULES["default"]).run(case.xs, case.loss).grads
    with attach(model, RULES["default"]):
        run_steps(model, case.xs, case.loss)
    assert max(relative_errors(gradients(model), expected).values()) <= 1e-9


def shape_of(layer: nn.Module) -> dict[str, Any]:
    """What a module consists of, by identity where that matters."""
    return {
        "parameters": {name: id(p) for name, p in layer._parameters.items()},
        "buffers": {name: id(b) for name, b in layer._buffers.items()},
        "hooks": [(id(k), type(hook)) for k, hook in layer._forward_pre_hooks.items()],
        "after": len(layer._forward_hooks),
        "own": sorted(layer.__dict__),
        "class": type(layer),
        "needs": {name: p.requires_grad for name, p in layer.named_parameters()},
        "keys": list(layer.state_dict()),
    }


@pytest.mark.parametrize("method", METHODS)
def test_detach_leaves_a_pruned_module_as_it_was(method: str) -> None:
    torch.manual_seed(0)
    net = networks.build(networks.Hidden)
    METHODS[method](net.fc1, "weight")
    twin = copy.deepcopy(net.state_dict())
    before = shape_of(net.fc1)
    learner = STLLRLearner(net, rule=networks.RULE)
    networks.run_steps(net, networks.spikes(3), networks.labels())
    learner.detach()
    assert shape_of(net.fc1) == before
    assert all(torch.equal(value, twin[name]) for name, value in net.state_dict().items() if name.startswith("fc"))
    effective = (net.fc1.weight_orig * net.fc1.weight_mask).detach()
    utils.reset(net)
    net(networks.spikes(1)[0])
    assert net.fc1.weight.requires_grad and torch.equal(net.fc1.weight.detach(), effective)
    prune.remove(net.fc1, "weight")
    assert isinstance(net.fc1.weight, nn.Parameter) and torch.equal(net.fc1.weight, effective)
    assert not net.fc1._forward_pre_hooks
    STLLRLearner(net, rule=networks.RULE)
    networks.run_steps(net, networks.spikes(3), networks.labels())
    assert net.fc1.weight.grad.any()


def right_or_refused(run: Callable[[nn.Module, STLLRLearner], None], case: Case, expected: dict[str, Tensor]) -> None:
    model = CaseNet(case.net)
    with attach(model, RULES["default"]) as learner:
        try:
            run(model, learner)
        except StateError as error:
            assert "fc1" in str(error) and "attach" in str(error)
            assert all(parameter.requires_grad for parameter in model.parameters())
        else:
            assert max(relative_errors(gradients(model), expected).values()) <= 1e-9


@pytest.mark.parametrize("first_runs", [False, True], ids=["at once", "after a sequence"])
def test_pruning_after_attaching_is_right_or_refused(first_runs: bool) -> None:
    case = neuron_case("Leaky-zero-now", "both")
    mask = random_mask(case.net.params["fc1.weight"].shape)

    def run(model: nn.Module, learner: STLLRLearner) -> None:
        if first_runs:
            run_steps(model, case.xs, case.loss)
            learner.zero_grad()
            learner.reset()
        prune.custom_from_mask(model.fc1, "weight", mask)
        run_steps(model, case.xs, case.loss)

    right_or_refused(run, case, expect(case, "fc1", mask, "weight_orig", "default"))


def test_removing_the_pruning_while_attached_is_right_or_refused() -> None:
    case = neuron_case("Leaky-zero-now", "both")
    mask = random_mask(case.net.params["fc1.weight"].shape)
    model = CaseNet(case.net)
    prune.custom_from_mask(model.fc1, "weight", mask)
    params = dict(case.net.params) | {"fc1.weight": case.net.params["fc1.weight"] * mask}
    expected = Oracle(Net(case.net.nodes, params, case.net.outputs), RULES["default"]).run(case.xs, case.loss).grads
    with attach(model, RULES["default"]):
        prune.remove(model.fc1, "weight")
        run_steps(model, case.xs, case.loss)
    assert max(relative_errors(gradients(model), expected).values()) <= 1e-9


def test_a_pruned_layer_in_evaluation() -> None:
    net, plain = networks.build(networks.Hidden), networks.build(networks.Hidden)
    for model in (net, plain):
        prune.l1_unstructured(model.fc1, "weight", amount=0.5)
    STLLRLearner(net, rule=networks.RULE)
    for model in (net, plain):
        model.eval()
    x = networks.spikes(3)
    for step in x:
        assert torch.equal(net(step)[0], plain(step)[0])


# ------------------------------------------------------------------------------------------------ delays
class Delay(nn.Module):
    """Each channel is late by a trainable number of steps, between 0 and ``longest``; blends the two nearest steps."""

    def __init__(self, delay: Tensor, longest: int = 2) -> None:
        super().__init__()
        self.delay = nn.Parameter(delay)
        self.longest = longest
        self.past: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        lags = [x, *self.past]
        shares = [torch.relu(1 - (self.delay - lag).abs()) for lag in range(len(lags))]
        self.past = lags[: self.longest]
        self.past[0] = x.detach()
        return sum(share * value for share, value in zip(shares, lags, strict=True))


class Delayed(nn.Module):
    """Trainable delays before the first synapse and between the layers."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        spike = exact_spike_grad("atan", 2.0)
        self.delay1, self.fc1 = Delay(net.params["delay1.delay"].clone()), nn.Linear(3, 4)
        self.lif1 = snn.Leaky(0.75, 0.75, spike)
        self.delay2, self.fc2 = Delay(net.params["delay2.delay"].clone()), nn.Linear(4, 3)
        self.lif2 = snn.Leaky(0.75, 0.75, spike)
        self.double()
        self.load_state_dict(dict(net.params), strict=False)

    def forward(self, x: Tensor, state: Any = None) -> tuple[dict[str, Tensor], Any]:
        mem1, mem2 = state or (self.lif1.reset_mem(), self.lif2.reset_mem())
        spk1, mem1 = self.lif1(self.fc1(self.delay1(x)), mem1)
        spk2, mem2 = self.lif2(self.fc2(self.delay2(spk1)), mem2)
        return {"lif2": spk2, "lif2.mem": mem2}, (mem1, mem2)


def delayed_case() -> Case:
    rng = generator(37)
    params = dense(rng, ("fc1", 4, 3), ("fc2", 3, 4))
    params["delay1.delay"] = torch.tensor([0.25, 1.5, 1.875]).double()
    params["delay2.delay"] = torch.tensor([0.5, 0.0625, 1.25, 0.75]).double()
    nodes: list[Node] = []
    for i, source, size in ((1, "x", 3), (2, "lif1", 4)):
        nodes += [Node(f"late{i}", "Scale", (f"{source}@before",), {"factor": 1.0, "start": (size,)})]
        nodes += [Node(f"later{i}", "Scale", (f"late{i}@before",), {"factor": 1.0, "start": (size,)})]
        nodes += [Node(f"delay{i}", "Delay", (source, f"late{i}", f"later{i}"))]
        nodes += [linear(f"fc{i}", f"delay{i}"), leaky(f"lif{i}", f"fc{i}")]
    xs = exact((torch.rand((7, 2, 3), generator=rng) < 0.6).double() * 1.5)
    return Case("delayed", Net(tuple(nodes), params, ("lif2", "lif2.mem")), xs)


@pytest.mark.parametrize("supervise_last", [None, 3])
@pytest.mark.parametrize("way", ["a", "b"])
@pytest.mark.parametrize("rule", ["default", "paper", "surrogate", "own_all"])
def test_trainable_delays(rule: str, way: str, supervise_last: int | None) -> None:
    """Weights follow the rule on the delayed input; a delay gets its plain gradient of the step."""
    case = delayed_case()
    steps = len(case.xs)
    first = steps - (supervise_last or steps)
    result = Oracle(case.net, RULES[rule]).run(case.xs, case.loss, [t >= first for t in range(steps)])
    assert all(gradient.all() for name, gradient in result.grads.items() if name.endswith("delay"))
    assert all(0 < spikes.mean() < 1 for spikes in result.spikes.values())
    model = Delayed(case.net)
    with attach(model, RULES[rule], supervise_last=supervise_last, num_steps=steps) as learner:
        run_steps(model, case.xs, case.loss, way, first)
        assert set(learner.report().other_parameters) == {"delay1.delay", "delay2.delay"}
    assert max(relative_errors(gradients(model), result.grads).values()) <= 1e-9


def test_a_delay_that_keeps_the_graph_of_the_past_is_refused() -> None:
    class Forgetful(Delay):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            self.past[0] = x
            return out

    case = delayed_case()
    model = Delayed(case.net)
    model.delay2 = Forgetful(case.net.params["delay2.delay"].clone())
    with attach(model, RULES["default"]), pytest.raises(StateError, match="detach"):
        run_steps(model, case.xs, case.loss, "a")


# ------------------------------------------------------------------------------------------------ frozen layers
def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)


def train(net: nn.Module, learner: STLLRLearner, batches: int = 2) -> None:
    for _ in range(batches):
        learner.zero_grad()
        networks.run_steps(net, networks.spikes(4), networks.labels())
        learner.step()


FROZEN = {
    "lowest layer": (networks.Deep, ("fc1.",), {"fc1->lif1"}),
    "layer in between": (networks.Deep, ("fc2.",), {"fc2->lif2"}),
    "last layer": (networks.Deep, ("fc3.",), {"fc3->lif3"}),
    "two layers": (networks.Deep, ("fc1.", "fc2."), {"fc1->lif1", "fc2->lif2"}),
    "weight": (networks.Deep, ("fc2.weight",), {"fc2->lif2"}),
    "bias": (networks.Deep, ("fc2.bias",), set()),
    "recurrence": (networks.Explicit, ("lif1.recurrent.",), {"lif1.recurrent->lif1"}),
    "Norse's recurrence": (networks.NorseRecurrent, ("cell.recurrent",), {"cell.recurrent_weights->cell"}),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_parameters_cost_nothing_and_stay(name: str) -> None:
    kind, frozen, edges = FROZEN[name]
    whole, net = networks.build(kind), networks.build(kind)
    for parameter_name, parameter in net.named_parameters():
        parameter.requires_grad_(not parameter_name.startswith(frozen))
    before = networks.values(net)
    everything, learner = (STLLRLearner(n, sgd(n), rule=networks.RULE) for n in (whole, net))
    for model in (whole, net):
        networks.run_steps(model, networks.spikes(4), networks.labels())
    full, partial = networks.gradients(whole), networks.gradients(net)
    for parameter_name, parameter in net.named_parameters():
        if parameter_name.startswith(frozen):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(partial[parameter_name], full[parameter_name])
    assert edges <= set(everything.traces()) and set(learner.traces()) == set(everything.traces()) - edges
    saved = sum(everything.traces()[edge]["pre"].numel() * 4 for edge in edges)
    assert learner.memory_usage()["pre"] == everything.memory_usage()["pre"] - saved
    alone = [edge for edge in edges if not any(e.endswith(edge.split("->")[1]) for e in learner.traces())]
    saved = sum(everything.traces()[edge]["post"].numel() * 4 for edge in alone)
    assert learner.memory_usage()["post"] == everything.memory_usage()["post"] - saved
    train(net, learner)
    for parameter_name, value in networks.values(net).items():
        assert torch.equal(value, before[parameter_name]) == parameter_name.startswith(frozen), parameter_name
    assert not any(parameter.requires_grad for n, parameter in net.named_parameters() if n.startswith(frozen))


def test_a_layer_frozen_and_thawed_between_sequences() -> None:
    """As in progressive thawing: what is trained follows requires_grad, without attaching again."""
    net = networks.build(networks.Deep)
    learner = STLLRLearner(net, sgd(net), rule=networks.RULE)
    net.fc1.requires_grad_(False)
    before = net.fc1.weight.detach().clone()
    train(net, learner)
    assert torch.equal(net.fc1.weight, before) and "fc1->lif1" not in learner.traces()
    net.fc1.requires_grad_(True)
    reference = copy.deepcopy(net.state_dict())
    learner.zero_grad()
    networks.run_steps(net, networks.spikes(4), networks.labels())
    fresh = networks.build(networks.Deep)
    fresh.load_state_dict({name: value for name, value in reference.items() if name.startswith("fc")}, strict=False)
    STLLRLearner(fresh, rule=networks.RULE)
    networks.run_steps(fresh, networks.spikes(4), networks.labels())
    networks.assert_close(networks.gradients(net), networks.gradients(fresh))
    learner.step()
    assert not torch.equal(net.fc1.weight, before)


# ------------------------------------------------------------------------------------------------ parameter groups
def test_groups_keep_their_learning_rates_and_decays() -> None:
    net = networks.build(networks.Deep)
    groups = [
        {"params": net.fc1.parameters(), "lr": 0.5},
        {"params": [net.fc2.weight], "weight_decay": 0.3},
        {"params": [net.fc2.bias], "lr": 0.0},
    ]
    learner = STLLRLearner(net, torch.optim.SGD(groups, lr=0.1), rule=networks.RULE)
    learner.add_param_group({"params": net.fc3.parameters(), "lr": 0.25})
    assert [group["lr"] for group in learner.param_groups] == [0.5, 0.1, 0.0, 0.25]
    rates = {"fc1": 0.5, "fc2.weight": 0.1, "fc2.bias": 0.0, "fc3": 0.25}
    scheduler = torch.optim.lr_scheduler.ExponentialLR(learner, 0.5)
    for batch in range(3):
        learner.zero_grad()
        networks.run_steps(net, networks.spikes(4, seed=batch), networks.labels())
        before, grads = networks.values(net), networks.gradients(net)
        learner.step()
        scheduler.step()
        for name, value in networks.values(net).items():
            rate = next(rate for key, rate in rates.items() if name.startswith(key)) * 0.5**batch
            decay = 0.3 * before[name] if name == "fc2.weight" else 0.0
            assert grads[name].any()
            torch.testing.assert_close(value, before[name] - rate * (grads[name] + decay), rtol=1e-6, atol=1e-7)


def test_parameters_in_no_group_are_left_alone() -> None:
    net = networks.build(networks.Deep)
    before = networks.values(net)
    learner = STLLRLearner(net, torch.optim.Adam(net.fc2.parameters(), 0.1), rule=networks.RULE)
    train(net, learner)
    for name, value in networks.values(net).items():
        assert torch.equal(value, before[name]) != name.startswith("fc2"), name


@pytest.mark.parametrize("supervised", [1, 3])
def test_a_parametrized_weight_without_bias_counts_at_steps_without_a_loss(supervised: int) -> None:
    """Where the length is known such steps have no graph, but the traces must see them all the same."""
    found = []
    for told in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(
            weight_standardize(nn.Linear(6, 8, bias=False)),
            snn.Leaky(0.9, threshold=0.2, init_hidden=True),
            nn.Linear(8, 3, bias=False),
            snn.Leaky(0.9, init_hidden=True, output=True),
        )
        learner = STLLRLearner(net, rule="dvs_gesture", supervise_last=supervised, num_steps=6 if told else None)
        xs = (torch.rand(6, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.5).float()
        losses = [net(x)[1].square().sum() for x in xs]
        torch.stack(losses).sum().backward()
        found.append(gradients(net))
        assert learner.memory_usage()["pre"] > 0
    torch.testing.assert_close(found[0], found[1])
    assert all(gradient.abs().sum() > 0 for gradient in found[0].values())
