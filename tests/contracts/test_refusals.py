"""What the learner refuses when it attaches: one error that names everything, and a model that was not touched."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import norse.torch as norse
import pytest
import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from stllr_plugin import AttachmentError, RuleError, STLLRLearner, STLLRRule, STLLRWarning
from stllr_plugin.activations import NAMED
from stllr_plugin.surrogates import SurrogateSpike
from tests.contracts.networks import RULE, Deep, Explicit, Hidden, NorseCells, adam, build


def refused(model: Any, *parts: str, rule: Any = RULE, **options: Any) -> AttachmentError:
    """Attaches, expects one error with all of the parts in its text, and checks that nothing was changed."""
    before = everything(model) if isinstance(model, nn.Module) else None
    with pytest.raises(AttachmentError) as caught:
        STLLRLearner(model, rule=rule, **options)
    for part in parts:
        assert part in str(caught.value)
    assert before is None or everything(model) == before
    return caught.value


def everything(model: nn.Module) -> dict[tuple[str, str], Any]:
    """What each module holds; hooks and other tables as copies, everything else by identity."""
    return {
        (name, key): copy.copy(value) if type(value) in (dict, set, list) or "hooks" in key else id(value)
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
    }


def around(neuron: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), neuron, nn.Linear(4, 4), snn.Leaky(0.9))


SNNTORCH: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "Alpha": (lambda: snn.Alpha(0.9, 0.8), "does not depend on the input of the same time step", "snntorch.Synaptic"),
    "SLSTM": (lambda: snn.SLSTM(4, 4), "gates multiply", "snntorch.RSynaptic"),
    "SConv2dLSTM": (lambda: snn.SConv2dLSTM(1, 1, 3), "gates multiply", "snntorch.RSynaptic"),
    "LeakyParallel": (lambda: snn.LeakyParallel(4, 4), "in one torch.nn.RNN", "nn.Linear and snntorch.Leaky"),
    "AssociativeLeaky": (lambda: snn.AssociativeLeaky(4, 2, 2, 4), "outer product of its inputs", "snntorch.Leaky"),
    "reset_delay": (lambda: snn.RSynaptic(0.9, 0.8, linear_features=4, reset_delay=False), "reset_delay", "=True"),
    "unknown": (lambda: type("Mine", (snn.SpikingNeuron,), {})(), "this neuron is not known", "supported: Leaky"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature:UserWarning")
@pytest.mark.parametrize("case", SNNTORCH)
def test_snntorch_neurons_without_a_form_of_the_rule(case):
    make, found, remedy = SNNTORCH[case]
    neuron = make()
    refused(around(neuron), f"Neuron '1' ({type(neuron).__name__})", found, remedy)


NORSE_REASONS = {
    "CobaLIFCell": "its input has no effect on its state",
    "LIFCorrelation": "its weights are arguments of each call",
    "LIFMCRecurrentCell": "coupled between compartments",
    "LIFMCRefracRecurrentCell": "after the spike decision",
    "LSNNCell": "reaches the membrane one step later",
    "LSNN": "reaches the membrane one step later",
}
NORSE_SUPPORTED = {
    *("LIFCell", "LIFRecurrentCell", "LIFBoxCell", "LIFExCell", "LIFExRecurrentCell", "LIFAdExCell"),
    *("LIFAdExRecurrentCell", "LIFRefracCell", "LIFRefracRecurrentCell", "LIFAdExRefracCell"),
    *("LIFAdExRefracRecurrentCell", "IAFCell", "LSNNRecurrentCell", "LICell", "LIBoxCell", "LILinearCell"),
    *("LIF", "LIFRecurrent", "LIFEx", "LIFExRecurrent", "LIFAdEx", "LIFAdExRecurrent", "LIFRefracRecurrent"),
    *("LIFAdExRefracRecurrent", "IAF", "LI", "LSNNRecurrent"),
}


def norse_neurons() -> dict[str, Callable[[], nn.Module]]:
    """All of Norse's neurons that can be built."""
    found: dict[str, Callable[[], nn.Module]] = {}
    for name, kind in vars(norse).items():
        family = kind.__module__ if inspect.isclass(kind) and issubclass(kind, nn.Module) else ""
        if not any(part in family for part in (".lif", ".lsnn", ".iaf", ".leaky_integrator", ".izhikevich", ".coba")):
            continue
        for args in ((), (4, 4)):
            try:
                kind(*args)
            except (TypeError, AttributeError):
                continue
            found[name] = lambda kind=kind, args=args: kind(*args)
            break
    return found


NORSE = norse_neurons()


def test_the_list_of_norse_neurons_is_not_empty():
    assert set(NORSE) >= NORSE_SUPPORTED | set(NORSE_REASONS)


@pytest.mark.parametrize("name", sorted(set(NORSE) - NORSE_SUPPORTED))
def test_norse_neurons_without_a_form_of_the_rule(name):
    reason = NORSE_REASONS.get(name, "")
    refused(around(NORSE[name]()), f"Neuron '1' ({name})", reason, "upported: LIFCell", "exclude=['1']")


@pytest.mark.parametrize("name", sorted(NORSE_SUPPORTED))
def test_norse_neurons_with_one(name):
    STLLRLearner(around(NORSE[name]()), rule=RULE).detach()


def test_izhikevich_neurons():
    behavior = norse.functional.izhikevich.tonic_spiking
    for neuron in (norse.IzhikevichCell(behavior), norse.IzhikevichRecurrentCell(4, 4, behavior)):
        STLLRLearner(around(neuron), rule=RULE).detach()


def test_norse_s_recorded_states():
    refused(around(norse.LIF(record_states=True)), "Neuron '1' (LIF)", "record_states=True", "record_states=False")


def test_norse_s_adjoint_method():
    neuron = norse.LIFCell(norse.LIFParameters(method="adjoint"))
    refused(around(neuron), "Neuron '1' (LIFCell)", 'method="adjoint"', 'use another method, e.g. "super"')


UNUSABLE: dict[str, tuple[Any, str, str]] = {
    "straight_through": (surrogate.straight_through_estimator(), "surrogate.straight_through_estimator()", "fall off"),
    "triangular": (surrogate.triangular(), "surrogate.triangular(threshold=1)", "negative at v = 0"),
    "heaviside": (surrogate.heaviside(), "surrogate.heaviside()", "does not fall off: 1 at the threshold, 1 at v ="),
    "sigmoid": (surrogate.sigmoid(slope=25), "surrogate.sigmoid(slope=25)", "not finite at v = -4"),
    "escape": (surrogate.spike_rate_escape(), "spike_rate_escape(beta=1, slope=25)", "largest at v = 1 (25)"),
    "SSO": (surrogate.SSO(), "surrogate.SSO(mean=0, variance=0.2)", "differs from call to call"),
    "LSO": (surrogate.LSO(), "surrogate.LSO(slope=0.1)", "raises TypeError"),
    "SFS": (surrogate.SFS(B=1), "surrogate.SFS(B=1, slope=25)", "largest at v = 1.25"),
    "apply": (surrogate.FastSigmoid.apply, "surrogate.FastSigmoid.apply", "raises"),
    "disabled": (None, "surrogate_disable=True", "no surrogate derivative"),
    "zero": (surrogate.custom_surrogate(lambda v, grad, spikes: 0 * grad), "custom_surrogate(func=", "zero everywhere"),
    "periodic": (SurrogateSpike(torch.cos), "surrogates.SurrogateSpike", "negative at v = -4"),
}
NEEDS_IT = pytest.mark.parametrize(
    "rule", [STLLRRule(psi=None), STLLRRule(propagate="surrogate")], ids=["psi=None", "propagate"]
)


@pytest.mark.parametrize("case", UNUSABLE)
@NEEDS_IT
def test_a_surrogate_that_cannot_serve_is_refused_by_name_where_the_rule_needs_it(case, rule):
    spike_grad, name, found = UNUSABLE[case]
    options = {"surrogate_disable": True} if spike_grad is None else {"spike_grad": spike_grad}
    net = nn.Sequential(nn.Linear(4, 4), snn.Leaky(0.9, **options))
    error = refused(net, "Neuron '1' (Leaky)", name, found, "surrogate.atan()", rule=rule)
    assert 'psi="triangle" with propagate="psi"' in str(error)
    STLLRLearner(net, rule=RULE).detach()


@pytest.mark.parametrize(("method", "found"), [("heaviside", "no surrogate derivative"), ("logistic", "ValueError")])
@NEEDS_IT
def test_norse_methods_that_cannot_serve(method, found, rule):
    net = nn.Sequential(nn.Linear(4, 4), norse.LIFCell(norse.LIFParameters(method=method)))
    refused(
        net, "Neuron '1' (LIFCell)", f'method="{method}", which cannot serve', found, 'e.g. method="super"', rule=rule
    )
    STLLRLearner(net, rule=RULE).detach()


SERVING: dict[str, Callable[[], nn.Module]] = {
    "default": lambda: snn.Leaky(0.9),
    "atan": lambda: snn.Leaky(0.9, spike_grad=surrogate.atan(alpha=5.0)),
    "fast_sigmoid": lambda: snn.Leaky(0.9, spike_grad=surrogate.fast_sigmoid(slope=100)),
    "sigmoid": lambda: snn.Leaky(0.9, spike_grad=surrogate.sigmoid(slope=5)),
    "wide-sigmoid": lambda: snn.Leaky(0.9, spike_grad=surrogate.sigmoid(slope=0.01)),
    "custom": lambda: snn.Leaky(0.9, spike_grad=surrogate.custom_surrogate(lambda v, g, s: g * (v.abs() < 0.5))),
    "off-centre": lambda: snn.Leaky(0.9, spike_grad=SurrogateSpike(lambda v: torch.exp(-((v - 0.2) ** 2)))),
    **{name: lambda name=name: snn.Leaky(0.9, spike_grad=SurrogateSpike(name)) for name in NAMED if name != "spike"},
    **{
        f"norse-{method}-{alpha}": lambda method=method, alpha=alpha: norse.LIFCell(
            norse.LIFParameters(method=method, alpha=torch.tensor(alpha))
        )
        for method in ("super", "triangle", "tanh", "circ", "heavi_erfc")
        for alpha in (1.0, 100.0)  # 100 is the default
    },
}


@pytest.mark.parametrize("case", SERVING)
@NEEDS_IT
def test_a_surrogate_that_serves_is_taken(case, rule):
    STLLRLearner(nn.Sequential(nn.Linear(4, 4), SERVING[case]()), rule=rule).detach()


def test_surrogates_of_spikingjelly():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    functions = pytest.importorskip("spikingjelly.activation_based.surrogate")
    for name, found in {"DeterministicPass": "does not fall off", "LeakyKReLU": "does not fall off"}.items():
        node = neuron.LIFNode(surrogate_function=getattr(functions, name)())
        net = nn.Sequential(nn.Linear(4, 4), node)
        refused(net, f"surrogate.{name}, which cannot serve", found, "surrogate.ATan()", rule=STLLRRule(psi=None))
    for name in ("Sigmoid", "ATan", "PiecewiseQuadratic", "S2NN", "QPseudoSpike", "Rect"):
        node = neuron.LIFNode(surrogate_function=getattr(functions, name)())
        STLLRLearner(nn.Sequential(nn.Linear(4, 4), node), rule=STLLRRule(psi=None)).detach()


def test_probing_a_random_surrogate_leaves_the_random_numbers_alone():
    net = nn.Sequential(nn.Linear(4, 4), snn.Leaky(0.9, spike_grad=surrogate.SSO()))
    state = torch.get_rng_state()
    refused(net, "random", rule=STLLRRule(psi=None))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_rule_for_the_neuron_s_own_weights_needs_the_surrogate_too():
    net = nn.Sequential(nn.Linear(4, 4), snn.RLeaky(0.9, linear_features=4, spike_grad=surrogate.triangular()))
    refused(net, "Neuron '1' (RLeaky): psi=None", "triangular", layer_rules={"1.recurrent": STLLRRule(psi=None)})


# -- layers


def test_layers_whose_weights_have_no_form_of_the_rule():
    cases = {
        nn.LSTM(4, 4): "its recurrence runs inside one call",
        nn.GRU(4, 4): "its recurrence runs inside one call",
        nn.RNN(4, 4): "its recurrence runs inside one call",
        nn.LSTMCell(4, 4): "its units are not spiking neurons",
        nn.MultiheadAttention(4, 1): "multiply each other's outputs",
        nn.Bilinear(4, 4, 4): "not linear in one input",
        nn.Embedding(4, 4): "its input is an index",
        nn.EmbeddingBag(4, 4): "its input is an index",
    }
    for layer, found in cases.items():
        refused(around(layer), f"Layer '1' ({type(layer).__name__})", found, "use ", "exclude=['1']")


@pytest.mark.parametrize("layer", [nn.LazyLinear(4), nn.LazyConv2d(2, 3)], ids=["linear", "conv"])
def test_lazy_layers(layer):
    net = nn.Sequential(layer, snn.Leaky(0.9))
    refused(net, f"Synapse '0' ({type(layer).__name__})", "not initialised yet", "run one forward pass first")


def test_a_weight_that_is_no_parameter():
    layer = nn.Linear(4, 4)
    del layer.weight
    layer.weight = torch.rand(4, 4)
    refused(nn.Sequential(layer, snn.Leaky(0.9)), "Synapse '0' (Linear)", "plain tensor", "torch.nn.utils.prune")


def test_lazy_layers_attach_once_they_have_run():
    net = nn.Sequential(nn.LazyLinear(4), snn.Leaky(0.9, init_hidden=True))
    net(torch.ones(2, 3))
    STLLRLearner(net, rule=RULE)


# -- the model as a whole


def test_a_model_without_spiking_neurons():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    refused(
        net,
        "no spiking neuron of snnTorch, Norse or SpikingJelly",
        "Sequential",
        "snntorch.Leaky or norse.torch.LIFCell",
        "CONTRIBUTING.md",
    )


def test_a_model_of_which_everything_is_excluded():
    refused(build(Hidden), "no spiking neuron", exclude="*")


def test_something_that_is_no_module():
    refused([nn.Linear(2, 2)], "model is a list, not a torch.nn.Module")


def test_attaching_twice_replaces_the_learner_with_a_warning():
    net = build(Hidden)
    first = STLLRLearner(net, rule=RULE)
    with pytest.warns(STLLRWarning, match="was attached to another STLLRLearner, which is detached now"):
        second = STLLRLearner(nn.Sequential(net, nn.ReLU()), rule=RULE)
    assert not first.attached and second.attached
    with pytest.raises(RuleError):
        STLLRLearner(net, rule=3)
    assert second.attached, "a refusal changes nothing"


def test_data_parallel():
    refused(DataParallel(build(Hidden)), "the model is a DataParallel wrapper", "use DistributedDataParallel")
    refused(nn.Sequential(DataParallel(build(Hidden))), "module '0' is a DataParallel wrapper")


def test_a_compiled_model():
    refused(
        torch.compile(build(Hidden)),
        "the model is compiled already",
        "Attach to the bare model first, then call torch.compile",
    )


def test_a_model_compiled_in_place():
    net = build(Hidden)
    net.compile()
    refused(net, "compiled already", "Attach to the bare model first")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_scripted_part():
    net = nn.Sequential(nn.Linear(4, 4), snn.Leaky(0.9), torch.jit.script(nn.Linear(4, 4)))
    refused(net, "module '2' is a TorchScript module", "Attach to the original nn.Module")


# -- options


def test_a_layer_rules_pattern_that_matches_nothing():
    names = "the model has ['fc1', 'fc2', 'lif1', 'lif2']"
    refused(
        build(Hidden),
        "layer_rules pattern 'conv*' matches no synapse and no neuron",
        names,
        layer_rules={"conv*": RULE},
    )


def test_a_layer_rules_pattern_that_the_model_s_recurrent_weights_match():
    STLLRLearner(build(Explicit), rule=RULE, layer_rules={"lif1.recurrent": "shd"})


def test_a_layer_rules_value_that_is_no_rule():
    refused(build(Hidden), "layer_rules['fc1']: There is no preset 'shdd'", layer_rules={"fc1": "shdd"})
    refused(build(Hidden), "layer_rules['fc1']: rule must be an STLLRRule", layer_rules={"fc1": 3})


def test_an_exclude_pattern_that_matches_nothing():
    refused(build(Hidden), "exclude='lif7' matches no module of the model", exclude=["lif7", "fc2"])


def test_a_learning_signal_that_does_not_exist():
    refused(build(Hidden), "learning_signal='none' is not known", "bp, dfa, sign_dfa", learning_signal="none")


@pytest.mark.parametrize("rule", ["no_such_preset", 3, None, {"alpha_pre": 1.0}])
def test_a_rule_that_is_none(rule):
    with pytest.raises(RuleError, match="preset"):
        STLLRLearner(build(Hidden), rule=rule)


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature:UserWarning")
def test_all_problems_are_reported_at_once():
    net = nn.Sequential(nn.LSTM(4, 4), snn.Alpha(0.9, 0.8), norse.LSNNCell(), nn.LazyLinear(4), snn.SLSTM(4, 4))
    error = refused(net, layer_rules={"conv": RULE}, exclude=["lif"], learning_signal="x")
    expected = [
        "Layer '0'",
        "Neuron '1'",
        "Neuron '2'",
        "Synapse '3'",
        "Neuron '4'",
        "layer_rules",
        "learning_signal",
        "exclude",
    ]
    assert len(error.problems) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(error.problems, expected, strict=True))
    assert "8 problems; the model was not changed" in str(error)
    assert "  1. Layer '0'" in str(error) and "  8. exclude" in str(error)


@pytest.mark.parametrize("kind", [Hidden, Explicit, NorseCells, Deep])
def test_after_a_refusal_the_model_attaches_as_ever(kind):
    net = build(kind)
    optimizer = adam(net)
    groups = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(AttachmentError):
        STLLRLearner(net, optimizer, rule=RULE, exclude="nothing")
    assert [dict(group) for group in optimizer.param_groups] == groups
    STLLRLearner(net, optimizer, rule=RULE)


def test_the_same_module_under_two_names_is_reported_once():
    """Weight sharing by module is allowed."""
    shared = nn.Linear(4, 4)
    learner = STLLRLearner(nn.Sequential(shared, snn.Leaky(0.9), shared, snn.Leaky(0.9)), rule=RULE)
    assert list(learner.report().synapses) == ["0"]


def test_a_hidden_state_shared_by_two_layers():
    """One neuron with init_hidden that serves two layers: they would share one membrane."""
    lif = snn.Leaky(0.9, init_hidden=True)
    net = nn.Sequential(nn.Linear(4, 4), lif, nn.Linear(4, 4), lif)

    def run() -> Tensor:
        STLLRLearner(net, rule=RULE)
        for _ in range(2):
            out = net(torch.ones(2, 4))
        return out

    with pytest.raises((AttachmentError, RuntimeError), match="init_hidden"):
        run()


def test_a_synapse_s_own_rule_that_needs_an_unusable_surrogate_is_refused_in_the_first_step():
    spiking = snn.Leaky(0.9, init_hidden=True, spike_grad=surrogate.triangular())
    net = nn.Sequential(nn.Linear(4, 4), spiking)
    learner = STLLRLearner(net, rule=RULE, layer_rules={"0": STLLRRule(psi=None)})
    with pytest.raises(RuleError, match=r"Neuron '1' \(Leaky\).*psi=None.*triangular"):
        net(torch.rand(2, 4))
    learner.detach()
