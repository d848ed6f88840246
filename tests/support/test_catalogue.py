"""The catalogue names what the libraries export, refuses what it says, and is what docs/support.md shows."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from stllr_plugin import AttachmentError, STLLRError, STLLRLearner
from tests.support import checks
from tests.support.catalogue import LIBRARIES, TABLES, entries
from tests.support.entry import APPROXIMATE, COLUMNS, EXACT, REFUSED, UNTOUCHED
from tests.support.write import PATH, render

INSTALLED = [name for name in ("snntorch", "norse", "spikingjelly") if importlib.util.find_spec(name)]
ROWS = {name: entry for name, entry in entries().items() if name.split(":")[0] in INSTALLED}


def classes(module: ModuleType) -> dict[str, type]:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, nn.Module) and not name.startswith("_")
    }


def below(package: ModuleType, folders: tuple[str, ...]) -> Iterator[ModuleType]:
    """The modules in some folders of a package that can be imported and are no tests."""
    for folder in folders:
        root = importlib.import_module(f"{package.__name__}.{folder}")
        yield root
        for found in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            if ".test" not in found.name:
                try:
                    yield importlib.import_module(found.name)
                except (ImportError, AttributeError):
                    continue  # needs a package that is not installed, or an older torch


def exported(package: ModuleType, folders: tuple[str, ...]) -> set[str]:
    """Classes by name, and those of the folders that the package itself does not export by their path."""
    top = {name: kind for name, kind in classes(package).items() if kind.__module__.startswith(package.__name__)}
    deeper = {
        f"{module.__name__.removeprefix(package.__name__ + '.')}.{name}"
        for module in below(package, folders)
        for name, kind in classes(module).items()
        if kind.__module__ == module.__name__ and kind not in top.values()
    }
    return set(top) | deeper


def listed(*tables: str) -> list[str]:
    return sorted(entry.name for table in tables for entry in TABLES[table])


def test_snntorch_is_complete() -> None:
    package = pytest.importorskip("snntorch")
    assert listed("snnTorch 1.0") == sorted(exported(package, ("functional",)))


def test_norse_is_complete() -> None:
    package = pytest.importorskip("norse.torch")
    tables = [table for table in TABLES if table.startswith("Norse 1.1")]
    assert listed(*tables) == sorted(exported(package, ("module", "models", "utils")))


def test_spikingjelly_is_complete() -> None:
    pytest.importorskip("spikingjelly")
    package = importlib.import_module("spikingjelly.activation_based.neuron")
    assert listed("SpikingJelly 2.0, `activation_based.neuron`") == sorted(classes(package))


def test_every_row_says_what_its_word_promises() -> None:
    for name, entry in entries().items():
        assert entry.support in (EXACT, APPROXIMATE, REFUSED, UNTOUCHED)
        assert bool(entry.why) == (entry.support != EXACT), name
        assert (entry.build is not None and not entry.runs) == (entry.support in (EXACT, APPROXIMATE)), name
        assert set(entry.without) <= set(COLUMNS), name
        if entry.support == REFUSED:
            assert entry.refused is not None or entry.runs, name


@pytest.mark.parametrize("name", [name for name, entry in ROWS.items() if entry.cases])
def test_the_cases_of_the_oracle_exist_and_are_of_this_class(name: str) -> None:
    """Their tests run over the very tables that are looked up here."""
    entry, library = ROWS[name], name.split(":")[0]
    for case in entry.cases:
        if library == "spikingjelly":
            from tests.spikingjelly.test_nodes import NODES

            kind = NODES[case][0].kind
        else:
            from tests.cases.more_neurons import MORE_READOUTS
            from tests.cases.neurons import MORE_NEURONS, NEURONS, READOUTS

            setups, readouts = NEURONS | MORE_NEURONS, READOUTS | MORE_READOUTS
            kind = setups[case].kind if case in setups else readouts[case][0]
        assert entry.name.startswith("`") or kind == entry.name, case


EXACT_ROWS = [name for name, entry in ROWS.items() if entry.support == EXACT and not entry.name.startswith("`")]


def test_what_is_exact_is_compared_with_something() -> None:
    """With the oracle, or with a network without the class; CubaLIF consists of two that are."""
    alone = [name for name in EXACT_ROWS if not ROWS[name].cases and ROWS[name].twin is None]
    assert alone in ([], ["norse: utils.import_nir.CubaLIF"])


def around(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 4))


@pytest.mark.parametrize("name", [name for name, entry in ROWS.items() if entry.refused and not entry.runs])
def test_refused_when_attaching_with_the_reason_of_the_table(name: str) -> None:
    entry = ROWS[name]
    assert entry.refused is not None
    with pytest.raises(AttachmentError) as caught:
        STLLRLearner(around(entry.refused()), rule=checks.RULE)
    assert (entry.says or entry.why) in str(caught.value)


@pytest.mark.parametrize("name", [name for name, entry in ROWS.items() if entry.runs and entry.build is not None])
def test_refused_when_it_runs_with_the_reason_of_the_table(name: str) -> None:
    entry = ROWS[name]
    assert entry.build is not None
    setup = entry.build(torch.float64)
    learner = STLLRLearner(setup.net, rule=checks.RULE)
    with pytest.raises(STLLRError) as caught:
        checks.train_by_step(setup, setup.net, learner, setup.xs)
    assert entry.why in str(caught.value)


@pytest.mark.parametrize("name", [name for name, entry in ROWS.items() if entry.runs and entry.build is None])
def test_what_fails_in_its_library_itself(name: str) -> None:
    refused = ROWS[name].refused
    assert refused is not None
    with pytest.raises(TypeError, match="tuple"):
        refused()(torch.rand(1, 2, 3, 32, 32))


class Beside(nn.Module):
    """A spiking layer, and a module of another kind beside it."""

    def __init__(self, other: nn.Module) -> None:
        from tests.support.nets import lif

        super().__init__()
        import norse.torch as norse

        self.other, self.layer, self.neuron = other, nn.Linear(4, 4), norse.LIFCell(lif())

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.layer(x))[0]


@pytest.mark.skipif("norse" not in INSTALLED, reason="needs Norse")
@pytest.mark.parametrize("name", [name for name, entry in ROWS.items() if entry.alone])
def test_left_alone(name: str) -> None:
    """It computes what it did, and is in no list of the learner's."""
    alone = ROWS[name].alone
    assert alone is not None
    module, arguments = alone()
    net = Beside(module)

    def call() -> list[Tensor]:
        torch.manual_seed(0)
        return checks.tensors(net.other(*arguments)) if arguments else []

    before = call()
    assert before or not arguments
    with STLLRLearner(net, rule=checks.RULE) as learner:
        net(torch.rand(2, 4)).sum().backward()
        report = learner.report()
        assert not [part for part in (*report.synapses, *report.neurons, *report.other_parameters) if "other" in part]
        after = call()
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif("norse" not in INSTALLED, reason="needs Norse")
def test_norse_s_filter_after_the_time_loop() -> None:
    from norse.torch.module.exp_filter import ExpFilter

    from tests.support.nets import CLASSES, made, sequential_state

    filters, options = [], [{"exclude": ["1"]}, {}, None]
    for option in options:
        setup = made(sequential_state)(torch.float64)
        torch.manual_seed(0)
        net = nn.ModuleList((setup.net, ExpFilter(CLASSES, 2).double()))
        if option is not None:
            STLLRLearner(net, rule=checks.RULE, **option)
        outputs = torch.stack(list(checks.run(setup, setup.net, None, setup.xs)))
        if option == {}:
            with pytest.raises(STLLRError, match="Nothing may flow between time steps"):
                net[1](outputs)
            continue
        net[1](outputs).square().sum().backward()
        filters.append(net[1].linear.weight.grad)
    torch.testing.assert_close(*filters)


# Limits of the libraries that the table names: with another release they may be gone, and the table wrong.


@pytest.mark.skipif("norse" not in INSTALLED, reason="needs Norse")
def test_norse_fails_without_a_learner_too() -> None:
    import copy

    import norse.torch as norse

    from tests.support.nets import fields

    field = norse.SpatialReceptiveField2d(2, 3, fields())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        field(torch.rand(1, 2, 4, 4)).sum().backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            field(torch.rand(1, 2, 4, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(field)
    cell = norse.LIFRecurrentCell(2, 2)
    gradients = []
    for one in (cell, copy.deepcopy(cell)):
        _, state = one(torch.ones(1, 2))
        one(torch.ones(1, 2), state._replace(z=torch.ones(1, 2)))[1].i.sum().backward()
        gradients.append(one.recurrent_weights.grad.diagonal().abs().sum().item())
    assert gradients[0] == 0 < gradients[1]


def test_spikingjelly_s_simple_node_fails_without_a_learner_too() -> None:
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import neuron

    with pytest.raises((TypeError, AssertionError)):
        neuron.SimpleLIFNode(2.0, True, v_reset=None)(torch.rand(1, 2))


def test_the_document_is_what_the_generator_writes() -> None:
    assert Path(PATH).read_text(encoding="utf-8") == render(), "run: python -m tests.support.write"


def test_all_tables_belong_to_a_library() -> None:
    assert set(LIBRARIES) == set(TABLES)
