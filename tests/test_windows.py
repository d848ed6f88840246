"""``learner.run``: several time steps at once have the gradients, traces and outputs of one step after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from stllr_plugin import STLLRLearner, STLLRRule
from stllr_plugin.errors import SequenceInputError, StateError
from stllr_plugin.nn import SequenceDropout, weight_standardize
from tests.support import checks
from tests.support.setup import gradients, loss
from tests.support.test_support import ROWS

STEPS, BATCH, CLASSES = 13, 4, 3
RULE = STLLRRule(1.0, 0.8, -0.3, 0.5, "triangle")
RULES = {
    "triangle": RULE,
    "surrogate, paper": STLLRRule(0.7, 0.8, 0.4, 0.5, None, "surrogate", "paper"),
    "no traces": STLLRRule(1.0, 0.0, 0.0, 0.0, None, "surrogate"),
    "shd": STLLRRule.preset("shd"),
    "current": STLLRRule(1.0, 0.0, -1.0, 0.2, "sigmoid", convention="current"),
    "spike": STLLRRule(1.0, 0.5, -1.0, 0.5, "spike"),
}
# These run step by step: sequence modules, a delayed recurrence, containers that keep a state, two recurrences a step.
BY_STEP = ("step by step only", "keeps a state", "several times within a step", "graded spikes that is learned")


class Step(torch.autograd.Function):
    """A step at 0 that keeps float64, as snnTorch's surrogates do not."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        v: Tensor = ctx.saved_tensors[0]
        return grad / (1 + (3 * v) ** 2)


def spike(v: Tensor) -> Tensor:
    spikes: Tensor = Step.apply(v)
    return spikes


def leaky(threshold: float = 0.4, **options: Any) -> nn.Module:
    neuron: nn.Module = snn.Leaky(0.9, threshold=threshold, spike_grad=spike, init_hidden=True, **options)
    return neuron


class Around(nn.Module):
    """A layer, one neuron, a readout."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.below, self.neuron, self.above = nn.Linear(6, 8), neuron, nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.neuron(self.below(x)))  # type: ignore[no-any-return]


class Membranes(nn.Module):
    """Recurrent, read from the membranes of a leaky integrator."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.below = nn.Linear(6, 8)
        self.neuron = snn.RLeaky(0.9, linear_features=8, threshold=0.3, spike_grad=spike, init_hidden=True, **options)
        self.above = nn.Linear(8, CLASSES)
        self.readout = snn.Leaky(0.95, reset_mechanism="none", spike_grad=spike, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.above(self.neuron(self.below(x))))[1]  # type: ignore[no-any-return]


class Shortcut(nn.Module):
    """Batch norm and a scale between synapse and neuron, a residual sum, dropout that is fixed over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.first = weight_standardize(nn.Linear(6, 8)), leaky(0.3)
        self.two, self.norm, self.second = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), leaky(0.3)
        self.drop = SequenceDropout(0.3)
        self.above = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        below = self.first(self.one(x))
        return self.above(self.drop(self.second(self.norm(self.two(below) * 1.5)) + below))  # type: ignore[no-any-return]


class Convolutions(nn.Module):
    """Convolutions, pooling before and after neurons, a recurrent convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.first = nn.Conv2d(2, 3, 3, padding=1), leaky(0.1)
        self.two = nn.Conv2d(3, 3, 3, stride=2)
        self.second = snn.RLeaky(
            0.9, conv2d_channels=3, kernel_size=3, threshold=0.1, spike_grad=spike, init_hidden=True
        )
        self.above = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.avg_pool2d(self.one(x), 2)
        return self.above(self.second(self.two(self.first(pooled))).flatten(1))  # type: ignore[no-any-return]


def pruned() -> nn.Module:
    net = Around(leaky())
    prune.random_unstructured(net.below, "weight", 0.3)
    parametrizations.weight_norm(net.above)
    return net


def norse_net() -> nn.Module:
    norse = pytest.importorskip("norse.torch")
    net = norse.SequentialState(
        nn.Linear(6, 8),
        norse.LIFCell(norse.LIFParameters(v_th=torch.tensor(0.1))),
        nn.Linear(8, 6),
        norse.LIFRecurrentCell(6, 6, norse.LIFParameters(v_th=torch.tensor(0.1))),
        nn.Linear(6, CLASSES),
        norse.LICell(),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3)
    return net  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: Around(leaky()),
    "leaky, reset to zero": lambda: Around(leaky(reset_mechanism="zero")),
    "leaky, reset at once": lambda: Around(leaky(reset_delay=False)),
    "leaky, all learned": lambda: Around(leaky(learn_beta=True, learn_threshold=True)),
    "synaptic": lambda: Around(snn.Synaptic(0.8, 0.9, threshold=0.4, spike_grad=spike, init_hidden=True)),
    "recurrent": Membranes,
    "recurrent, reset at once": lambda: Membranes(reset_delay=False),
    "shortcut": Shortcut,
    "convolutions": Convolutions,
    "pruned": pruned,
    "norse": norse_net,
}


def data(name: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    shape = (2, 8, 8) if name == "convolutions" else (6,)
    return (torch.rand(STEPS, BATCH, *shape) < 0.4).double(), torch.randint(CLASSES, (BATCH,))


def network(name: str) -> nn.Module:
    torch.manual_seed(1)
    return NETWORKS[name]().double()


def by_step(
    net: nn.Module, learner: STLLRLearner, x: Tensor, y: Tensor, last: int | None, lengths: Tensor | None
) -> list[Tensor]:
    first = 0 if last is None else max(0, (STEPS if lengths is None else int(lengths.min())) - last)
    learner.supervision.last = last
    torch.manual_seed(5)
    outputs = []
    for t, output in enumerate(learner.stream(x, lengths=lengths)):
        if t >= first:
            functional.cross_entropy(output, y).backward()
        outputs.append(output.detach())
    return outputs


def compare(name: str, rule: STLLRRule, window: int, last: int | None, lengths: Tensor | None) -> None:
    x, y = data(name)
    one, other = network(name), network(name)
    stepped, learner = STLLRLearner(one, rule=rule), STLLRLearner(other, rule=rule)
    expected = by_step(one, stepped, x, y, last, lengths)
    torch.manual_seed(5)
    result = learner.run(other, x, y, functional.cross_entropy, window=window, supervise_last=last, lengths=lengths)
    assert result.steps_because is None
    assert len(result.outputs) == STEPS
    for found, output in zip(result.outputs, expected, strict=True):
        torch.testing.assert_close(found, output, rtol=1e-9, atol=1e-12)
    for (parameter, found), wanted in zip(gradients(other).items(), gradients(one).values(), strict=True):
        assert (found - wanted).abs().max() < 1e-9 * wanted.abs().max() + 1e-11, parameter
    traces = stepped.traces()
    assert learner.traces().keys() == traces.keys()
    for edge, kept in learner.traces().items():
        for kind, trace in kept.items():
            torch.testing.assert_close(trace, traces[edge][kind], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETWORKS)
def test_windows_equal_steps(name: str, rule: str) -> None:
    compare(name, RULES[rule], 5, None, None)


@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize("name", ["recurrent", "shortcut", "convolutions", "norse"])
def test_last_steps_and_lengths(name: str, window: int) -> None:
    compare(name, RULE, window, 6, None)
    compare(name, RULE, window, 3, torch.tensor([13, 4, 9, 11]))


@settings(max_examples=15, deadline=None)
@given(
    window=st.integers(1, 15),
    last=st.none() | st.integers(1, STEPS),
    decays=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    alphas=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_any_window(window: int, last: int | None, decays: tuple[float, float], alphas: tuple[float, float]) -> None:
    rule = STLLRRule(alphas[0], decays[0], alphas[1], decays[1], "rational")
    compare("recurrent, reset at once", rule, window, last, None)


CLAIMED = [name for name, entry in ROWS.items() if "per-step backward" not in entry.without]


@pytest.mark.parametrize("name", CLAIMED)
def test_every_supported_class(name: str) -> None:
    build = ROWS[name].build
    assert build is not None
    setup = build(torch.float64)
    if setup.drive == "loop" or setup.extra is not None:
        pytest.skip("takes whole sequences in one call, or has a loss of its own")
    with STLLRLearner(setup.net, rule=checks.RULE) as learner:
        result = learner.run(setup.net, setup.xs, list(range(len(setup.xs))), loss, window=3)
    because = result.steps_because
    assert because is None or any(reason in because for reason in BY_STEP), because
    if setup.drive == "hidden" and "spikingjelly" in name:
        assert because is None
    expected = checks.attached(build)
    tolerance = max(ROWS[name].tolerance, 1e-7)  # snnTorch's spikes are float32
    for parameter, found in gradients(setup.net).items():
        torch.testing.assert_close(found, expected[parameter], rtol=tolerance, atol=tolerance)


class Remembers(nn.Module):
    """Feeds its last spikes back by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.back, self.neuron = nn.Linear(6, 8), nn.Linear(8, 8), leaky(0.0)
        self.above = nn.Linear(8, CLASSES)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        current = self.below(x)
        last = torch.zeros_like(current) if self.last is None else self.last
        spikes = self.neuron(current + self.back(last))
        self.last = spikes.detach()
        return self.above(spikes)  # type: ignore[no-any-return]


class Depends(Around):
    """Takes another way where many neurons spike."""

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neuron(self.below(x))
        return self.above(spikes if spikes.mean() < 0.5 else spikes * 2)  # type: ignore[no-any-return]


class Centred(Around):
    """Mixes the samples of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        current = self.below(x)
        return self.above(self.neuron(current - current.mean(0)))  # type: ignore[no-any-return]


class Shows(Around):
    """Keeps its last spikes for show."""

    def forward(self, x: Tensor) -> Tensor:
        self.shown = self.neuron(self.below(x))
        return self.above(self.shown)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Remembers, "used again"),
        (lambda: Depends(leaky(0.1)), "reads values"),
        (lambda: Centred(leaky(0.1)), "something else on several steps"),
    ],
    ids=["remembers", "depends", "centred"],
)
def test_what_cannot_run_in_windows_runs_by_step_and_says_why(make: Callable[[], nn.Module], reason: str) -> None:
    x, y = data("leaky")
    torch.manual_seed(1)
    one = make().double()
    stepped = STLLRLearner(one, rule=RULE)
    by_step(one, stepped, x, y, None, None)
    torch.manual_seed(1)
    other = make().double()
    learner = STLLRLearner(other, rule=RULE)
    result = learner.run(other, x, y, functional.cross_entropy)
    assert result.steps_because is not None and reason in result.steps_because
    assert reason in str(learner.report())
    for found, wanted in zip(gradients(other).values(), gradients(one).values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_what_is_kept_for_show_does_not_hinder() -> None:
    x, y = data("leaky")
    torch.manual_seed(1)
    net = Shows(leaky()).double()
    learner = STLLRLearner(net, rule=RULE)
    assert learner.run(net, x, y, functional.cross_entropy).steps_because is None
    assert "in windows of 16 steps" in str(learner.report())


@pytest.mark.parametrize("signal", ["dfa", "drtp", "local_random"])
def test_other_learning_signals_run_by_step(signal: Any) -> None:
    x, y = data("leaky")
    net = network("leaky")
    learner = STLLRLearner(net, rule=RULE, learning_signal=signal, feedback_seed=1)
    if learner.needs_target:
        learner.set_target(y)
    result = learner.run(net, x, y, functional.cross_entropy)
    assert result.steps_because is not None and signal in result.steps_because


def forwards(net: nn.Module) -> list[Any]:
    """What stands in for modules' ``forward``, by identity."""
    return [id(module.__dict__.get("forward")) for module in net.modules()]


def test_the_trial_leaves_nothing_behind() -> None:
    x, y = data("shortcut")
    torch.manual_seed(5)
    drawn = torch.rand(3)
    net = network("shortcut")
    learner = STLLRLearner(net, rule=RULE)
    before = forwards(net)
    reference = network("shortcut")
    by_step(reference, STLLRLearner(reference, rule=RULE), x, y, None, None)
    torch.manual_seed(5)
    learner.run(net, x, y, functional.cross_entropy)
    for name, value in net.state_dict().items():  # running statistics of batch norm
        torch.testing.assert_close(value, reference.state_dict()[name])
    assert forwards(net) == before
    torch.manual_seed(5)
    torch.testing.assert_close(torch.rand(3), drawn)


def test_a_model_that_raises_is_given_back() -> None:
    x, y = data("leaky")
    net = network("leaky")
    learner = STLLRLearner(net, rule=RULE)
    before = forwards(net)

    def fails(output: Tensor, target: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        learner.run(net, x, y, fails)
    assert forwards(net) == before
    assert learner._session.window is None
    result = learner.run(net, x, y, functional.cross_entropy)
    assert result.supervised_steps == STEPS


def test_steps_without_a_loss_are_skipped_and_targets_may_differ() -> None:
    x, _ = data("leaky")
    net = network("leaky")
    learner = STLLRLearner(net, rule=RULE)
    labels = [torch.full((BATCH,), t % CLASSES) if t % 2 else None for t in range(STEPS)]
    result = learner.run(
        net, x, labels, lambda output, y: None if y is None else functional.cross_entropy(output, y), window=4
    )
    assert result.supervised_steps == STEPS // 2
    found = gradients(net)
    twin = network("leaky")
    stepped = STLLRLearner(twin, rule=RULE)
    for output, label in zip(stepped.stream(x), labels, strict=True):
        if label is not None:
            functional.cross_entropy(output, label).backward()
    for name, wanted in gradients(twin).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-9, atol=1e-12)


def test_training_goes_on_with_an_optimizer() -> None:
    x, y = data("leaky")
    net = network("leaky")
    learner = STLLRLearner(net, torch.optim.Adam(net.parameters(), lr=0.02), rule=RULE)
    losses = []
    for _ in range(40):
        losses.append(float(learner.run(net, list(x), y, functional.cross_entropy, window=5).loss))
        learner.step()
        learner.zero_grad()
    assert losses[-1] < 0.7 * losses[0]


class Logs(Around):
    """Keeps a list of its outputs, and what it last saw."""

    def __init__(self) -> None:
        super().__init__(leaky())
        self.log: list[Tensor] = []
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x)
        self.log.append(output)
        self.seen = x
        return output


def test_lists_and_attributes_do_not_show_the_trial() -> None:
    x, y = data("leaky")
    net = Logs().double()
    learner = STLLRLearner(net, rule=RULE)
    learner.run(net, x, y, functional.cross_entropy, window=7)
    assert [len(output) for output in net.log] == [7 * BATCH, 6 * BATCH]
    assert net.seen is not None and not net.seen.isnan().any()


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast(compiled: bool) -> None:
    """Half precision on both ways: as near to one another as bfloat16 allows."""
    x, y = data("leaky")
    found = []
    for window in (None, 5):
        torch.manual_seed(2)
        net = Around(snn.Leaky(0.9, threshold=0.4, init_hidden=True))
        learner = STLLRLearner(net, rule=RULE)
        called = torch.compile(net, backend="eager") if compiled else net
        with torch.autocast("cpu", torch.bfloat16):
            if window is None:
                for step in x.float():
                    functional.cross_entropy(called(step).float(), y).backward()
            else:
                assert learner.run(called, x.float(), y, functional.cross_entropy, window=window).steps_because is None
        found.append(gradients(net))
    for name, wanted in found[0].items():
        assert (found[1][name] - wanted).norm() < 0.1 * wanted.norm(), name


@pytest.mark.parametrize("name", ["recurrent", "norse"])
def test_updates_within_a_sequence(name: str) -> None:
    x, y = data(name)
    one, other = network(name), network(name)
    stepped = STLLRLearner(one, torch.optim.SGD(one.parameters(), lr=0.05), rule=RULE, reset_after_step=False)
    state = None
    for t in range(STEPS):
        output, state = one(x[t], state) if name == "norse" else (one(x[t]), None)
        functional.cross_entropy(output, y).backward()
        if t in (4, 9, STEPS - 1):
            stepped.step()
            stepped.zero_grad()
    learner = STLLRLearner(other, torch.optim.SGD(other.parameters(), lr=0.05), rule=RULE, reset_after_step=False)
    result = None
    for start, stop in ((0, 5), (5, 10), (10, STEPS)):
        result = learner.run(other, x[start:stop], y, functional.cross_entropy, window=3, continue_from=result)
        assert result.steps_because is None
        learner.step()
        learner.zero_grad()
    for found, wanted in zip(other.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"window": 0}, StateError, "window=0"),
        ({"supervise_last": 0}, StateError, "supervise_last=0"),
        ({"inputs": torch.zeros(5)}, SequenceInputError, r"\[time, batch"),
        ({"inputs": []}, SequenceInputError, "at least one time step"),
        ({"inputs": [1, 2]}, SequenceInputError, "list"),
        ({"inputs": [torch.zeros(4, 6), torch.zeros(3, 6)]}, SequenceInputError, "one shape at all time steps"),
        ({"targets": [1, 2]}, SequenceInputError, "2 targets for 13"),
        ({"lengths": torch.tensor([13, 4])}, StateError, "a batch of 4"),
        ({"lengths": torch.tensor([13, 4, 0, 5])}, StateError, "lengths must be"),
        ({"lengths": torch.tensor([13, 4, 99, 5])}, StateError, "longest of the given lengths is 99"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], says: str) -> None:
    x, y = data("leaky")
    net = network("leaky")
    learner = STLLRLearner(net, rule=RULE)
    arguments: dict[str, Any] = {"inputs": x, "targets": y, "loss_fn": functional.cross_entropy, **change}
    with pytest.raises(error, match=says):
        learner.run(net, **arguments)


def test_run_is_for_training() -> None:
    x, y = data("leaky")
    net = network("leaky")
    learner = STLLRLearner(net, rule=RULE)
    net.eval()
    with pytest.raises(StateError, match="run\\(\\) trains"):
        learner.run(net, x, y, functional.cross_entropy)


class InPlace(Around):
    """Changes spikes that the layer above has taken in."""

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neuron(self.below(x))
        output = self.above_neuron(self.above(spikes))
        spikes.mul_(0.5)
        return output  # type: ignore[no-any-return]


def test_inputs_that_are_changed_in_place_are_named() -> None:
    model = InPlace(leaky(0.1)).double()
    model.above_neuron = leaky(0.1).double()
    x, y = data("leaky")
    with STLLRLearner(model, rule=RULE) as learner, pytest.raises(StateError, match="'above' was changed in place"):
        learner.run(model, x, y, functional.cross_entropy, window=3)


def test_a_window_can_be_gone_back_through_twice() -> None:
    """As a loss in two parts needs it."""
    found = []
    for twice in (True, False):
        model = network("recurrent")
        x, y = data("recurrent")

        def backward(loss: Tensor, twice: bool = twice) -> None:
            (0.25 * loss if twice else loss).backward(retain_graph=twice)
            if twice:
                (0.75 * loss).backward()

        with STLLRLearner(model, rule=RULE) as learner:
            learner.run(model, x, y, functional.cross_entropy, window=4, backward=backward)
        found.append(gradients(model))
    torch.testing.assert_close(found[0], found[1])
