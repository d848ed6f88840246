"""report(), traces(), memory_usage(): what is trained how, and what it costs."""

from __future__ import annotations

import norse.torch as norse
import snntorch as snn
import torch
from torch import Tensor, nn

from stllr_plugin import Report, STLLRLearner, STLLRRule
from stllr_plugin.activations import Triangle
from stllr_plugin.nn import weight_standardize
from stllr_plugin.report import Edge

B = 3


class Net(nn.Module):
    """Every kind of thing that a report tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.fc1 = weight_standardize(nn.Linear(6, 5))
        self.norm = nn.BatchNorm1d(5)
        self.lif1 = snn.RLeaky(0.9, linear_features=5, init_hidden=True, learn_threshold=True)
        self.fc2 = nn.Linear(5, 4)
        self.lif2 = snn.Leaky(0.9, init_hidden=True)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.aside = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.lif2(self.fc2(self.lif1(self.norm(self.fc1(self.scale * x)))))
        return self.head(self.frozen(spikes) + self.aside(spikes))


RULE = STLLRRule(psi=Triangle(0.5))


def attached(**options) -> tuple[nn.Module, STLLRLearner]:
    torch.manual_seed(0)
    net = Net()
    return net, STLLRLearner(net, rule=RULE, layer_rules={"fc2": "shd"}, exclude=["aside"], **options)


def test_before_the_first_step_it_lists_modules():
    _, learner = attached()
    report = learner.report()
    assert isinstance(report, Report)
    assert report.edges == () and report.readouts == ()
    assert set(report.synapses) == {"fc1", "lif1.recurrent", "fc2", "frozen", "head"}
    assert "Linear" in report.synapses["fc2"]
    assert report.neurons == {"lif1": "RLeaky", "lif2": "Leaky"}
    text = str(report)
    assert "none seen yet" in text and "synapse fc1" in text and "neuron lif2 (Leaky)" in text


def test_after_a_step_it_lists_edges_and_readouts():
    net, learner = attached(supervise_last=2, num_steps=4)
    net(torch.ones(B, 6))
    report = learner.report()
    shd = STLLRRule.preset("shd").describe()
    by_name = {edge.name: edge for edge in report.edges}
    assert set(by_name) == {"fc1->lif1", "lif1.recurrent->lif1", "fc2->lif2"}
    assert by_name["fc2->lif2"] == Edge("fc2->lif2", "fc2", "lif2", shd)
    assert by_name["fc1->lif1"].rule == RULE.describe()
    assert report.readouts == ("head",)
    assert report.excluded == ("aside",)
    assert report.settings["supervise_last"] == 2 and report.settings["num_steps"] == 4


def test_parameters_that_belong_to_no_synapse_are_listed():
    _, learner = attached()
    expected = {"scale", "norm.weight", "norm.bias", "lif1.threshold"}  # those of "aside" are listed with that, once
    assert set(learner.report().other_parameters) == expected


def test_every_trainable_parameter_is_in_the_report():
    net, learner = attached()
    net(torch.ones(B, 6))
    report = learner.report()
    told = set(report.other_parameters)
    for name, parameter in net.named_parameters():
        owner = name.rpartition(".")[0].split(".parametrizations")[0]
        listed = name in told or owner in report.synapses or owner in report.excluded
        assert not parameter.requires_grad or listed, name


def test_it_prints_as_a_table():
    net, learner = attached()
    net(torch.ones(B, 6))
    lines = str(learner.report()).splitlines()
    assert lines[0].startswith("S-TLLR: learning_signal=bp")
    header = next(line for line in lines if "alpha_pre" in line)
    row = next(line for line in lines if "fc2->lif2" in line)
    assert row.split() == ["fc2->lif2", "1", "1", "1", "0.5", "inverse_square", "-"]
    assert header.index("psi") == row.index("inverse_square")
    assert "triangle(height=0.5, width=1)" in next(line for line in lines if "fc1->lif1" in line)
    assert any("ordinary gradient (readouts): head" in line for line in lines)
    assert any("left alone (excluded): aside" in line for line in lines)
    assert "own surrogate" in str(Report(edges=(Edge("a->b", "a", "b", STLLRRule(psi=None).describe()),)))


def test_it_can_be_asked_for_at_any_time():
    net, learner = attached()
    net(torch.ones(B, 6))
    learner.reset()
    assert len(learner.report().edges) == 3  # connections are known from then on
    learner.disable()
    assert learner.report().settings["enabled"] is False
    learner.detach()
    assert str(learner.report())


def test_weights_that_a_neuron_holds():
    net = nn.ModuleList([norse.LIFRecurrentCell(6, 5), norse.LILinearCell(5, 4)])
    learner = STLLRLearner(net, rule=RULE)
    net[1](net[0](torch.ones(B, 6))[0])
    report = learner.report()
    assert {edge.name for edge in report.edges} == {
        "0.input_weights->0",
        "0.recurrent_weights->0",
        "1.input_weights->1",
    }
    assert report.other_parameters == () and report.readouts == ()


def test_traces_by_edge():
    net, learner = attached()
    assert learner.traces() == {}
    for _ in range(3):
        net(torch.ones(B, 6))
    traces = learner.traces()
    assert {name: (tuple(t["pre"].shape), tuple(t["post"].shape)) for name, t in traces.items()} == {
        "fc1->lif1": ((B, 6), (B, 5)), "lif1.recurrent->lif1": ((B, 5), (B, 5)), "fc2->lif2": ((B, 5), (B, 4)),
    }  # fmt: skip
    torch.testing.assert_close(traces["fc1->lif1"]["pre"], torch.full((B, 6), 1 + 0.8 + 0.64))
    assert not any(trace.requires_grad for both in traces.values() for trace in both.values())


def test_two_rules_in_one_neuron_have_their_own_postsynaptic_traces():
    """fc1 and the recurrent weights feed lif1 with different psi: each edge shows its own trace."""
    torch.manual_seed(0)
    net = Net()
    other = STLLRRule(psi="sigmoid", lambda_post=0.9)
    learner = STLLRLearner(net, rule=RULE, layer_rules={"lif1.recurrent": other})
    for _ in range(3):
        net(torch.ones(B, 6))
    alone = STLLRLearner(same := Net(), rule=other)
    same.load_state_dict(net.state_dict())
    for _ in range(3):
        same(torch.ones(B, 6))
    torch.testing.assert_close(learner.traces()["lif1.recurrent->lif1"]["post"], alone.traces()["fc1->lif1"]["post"])
    assert not torch.equal(learner.traces()["lif1.recurrent->lif1"]["post"], learner.traces()["fc1->lif1"]["post"])


def test_memory_usage_counts_bytes():
    net, learner = attached()
    assert learner.memory_usage()["total"] == 0
    net(torch.ones(B, 6))
    pre, post = 4 * B * (6 + 5 + 5), 4 * B * (5 + 4)
    assert learner.memory_usage() == {"pre": pre, "post": post, "feedback": 0, "total": pre + post}
    learner.reset()
    assert learner.memory_usage()["total"] == 0


def test_without_the_noncausal_term_there_is_no_postsynaptic_trace():
    net = Net()
    learner = STLLRLearner(net, rule=STLLRRule(alpha_post=0.0))
    net(torch.ones(B, 6))
    assert learner.memory_usage()["post"] == 0
    assert learner.traces()["fc1->lif1"]["post"] is None


def test_memory_usage_counts_feedback_matrices():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), snn.Leaky(0.9, init_hidden=True), nn.Linear(5, 4))
    learner = STLLRLearner(net, rule=RULE, learning_signal="dfa")
    net(torch.ones(B, 6)).sum().backward()
    assert learner.memory_usage()["feedback"] == 4 * 4 * 5
