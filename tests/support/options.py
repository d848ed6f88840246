"""Options of the supported neurons that change their step."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.support import nets
from tests.support.entry import APPROXIMATE, EXACT, REFUSED, Entry
from tests.support.nets import jelly_case, made, oracle_case

WITHOUT = {"DDP": "not run for options", "torch.compile": "not run for options"}
LEARNED = "the constant gets the gradient of the same step, without a trace"


def option(name: str, *cases: str, support: str = EXACT, why: str = "", note: str = "") -> Entry:
    build = oracle_case(cases[0])
    return Entry(name, support, why, note, build, cases, without=WITHOUT)


def jelly_option(name: str, *cases: str, note: str = "") -> Entry:
    return Entry(name, EXACT, "", note, jelly_case(cases[0]), cases, without=WITHOUT)


def refused(name: str, why: str, library: str, kind: str, *args: Any, **options: Any) -> Entry:
    def build() -> nn.Module:
        import importlib

        values = {key: value() if callable(value) else value for key, value in options.items()}
        return getattr(importlib.import_module(library), kind)(*args, **values)

    return Entry(name, REFUSED, why, refused=build)


def adjoint() -> Any:
    import norse.torch as norse

    return norse.LIFParameters(method="adjoint")


def not_spiking() -> Any:
    from spikingjelly.activation_based import surrogate

    return surrogate.ATan(spiking=False)


SNNTORCH_OPTIONS: tuple[Entry, ...] = (
    option("`reset_mechanism`: subtract, zero, none", "Leaky-zero-late", "Leaky-subtract-late", "Leaky-none-late"),
    option("`reset_delay=False`", "Leaky-subtract-now", "Leaky-zero-now", "Synaptic-subtract-now"),
    refused(
        "`reset_delay=False` of RSynaptic",
        "reset_delay=False is ignored or raises in snnTorch's RSynaptic; use reset_delay=True",
        "snntorch",
        "RSynaptic",
        0.9,
        0.8,
        linear_features=4,
        reset_delay=False,
    ),
    option("`init_hidden=True`", "Leaky-hidden", "RLeaky-hidden", "Synaptic-hidden", "RSynaptic-hidden"),
    option("`init_hidden=True`, spikes only", "Leaky-hidden-spikes-only", "RLeaky-hidden-spikes-only"),
    option(
        "`inhibition=True`",
        "Leaky-inhibition-subtract-now",
        "RLeaky-inhibition-zero-now",
        "Lapicque-inhibition-subtract",
        note="psi is 0 for all units but the winner; inputs [batch, units]",
    ),
    option(
        "`state_quant`",
        "Leaky-uniform-subtract-late",
        "Leaky-geometric-zero-now",
        "Synaptic-geometric-subtract-now",
        note="u is the quantised value that is compared",
    ),
    option("`graded_spikes_factor`", "Leaky-graded-subtract-now", "Leaky-graded-hidden"),
    option("`learn_graded_spikes_factor`", "Leaky-graded-learned-zero-late", support=APPROXIMATE, why=LEARNED),
    option(
        "`learn_beta`, `learn_threshold`",
        "Leaky-subtract-now-learned",
        "Lapicque-learned",
        support=APPROXIMATE,
        why=LEARNED,
    ),
    option("`learn_alpha`", "Synaptic-subtract-now-learned", support=APPROXIMATE, why=LEARNED),
    option(
        "`learn_beta` of StateLeaky and LinearLeaky",
        "LinearLeaky-learned",
        "StateLeaky-graded-learned",
        support=APPROXIMATE,
        why=LEARNED,
        note="snnTorch learns tau",
    ),
    option("`all_to_all=False`, `conv2d_channels`", "RLeaky-zero-now-scalar", "RLeaky-zero-now-conv"),
    refused(
        "`kernel_truncation_steps` of StateLeaky",
        "kernel_truncation_steps forgets inputs of long ago, which a running membrane cannot; use "
        "kernel_truncation_steps=None",
        "snntorch",
        "StateLeaky",
        0.9,
        4,
        kernel_truncation_steps=3,
    ),
    option("`output=False` of StateLeaky: a readout", "StateLeaky-membrane", "LinearLeaky-membrane"),
)

NORSE_OPTIONS: tuple[Entry, ...] = (
    *(
        option(f'`method="{method}"`', f"LIFCell-{method}")
        for method in ("super", "triangle", "tanh", "circ", "heavi_erfc")
    ),
    refused(
        '`method="adjoint"`',
        'method="adjoint" replaces the whole step by its own backward; use another method, e.g. "super"',
        "norse.torch",
        "LIFCell",
        p=adjoint,
    ),
    option("`autapses=True`", "LIFRecurrentCell-autapses", "LIFAdExRecurrentCell-constants"),
    option(
        "`autapses=False`",
        "LIFRecurrentCell-default",
        note="Norse masks the diagonal by a gradient hook, which `copy.deepcopy` loses, attached or not",
    ),
    option("`reset_method` of LIFBoxCell", "LIFBoxCell-subtract", "LIFBoxCell-value"),
    option("`dt`", "LIFCell-dt"),
    refused(
        "`record_states=True`",
        "record_states=True changes the shape of the state that comes back; use record_states=False",
        "norse.torch",
        "LIF",
        record_states=True,
    ),
    Entry(
        "sparse inputs",
        REFUSED,
        "received a sparse tensor; pass x.to_dense()",
        build=made(nets.sparse_input("sparse")),
        runs=True,
    ),
)

JELLY_OPTIONS: tuple[Entry, ...] = (
    jelly_option("`v_reset`: a number, None", "LIFNode-low-attached-full", "LIFNode-soft-attached-full"),
    jelly_option("`detach_reset=True`", "LIFNode-hard-detached-full", "IFNode-soft-detached"),
    jelly_option("`decay_input=False`, `True`", "LIFNode-hard-attached-full", "LIFNode-hard-attached-decayed"),
    refused(
        '`step_mode="m"`',
        "runs all time steps in one call, and an online rule needs one at a time",
        "spikingjelly.activation_based.neuron",
        "LIFNode",
        step_mode="m",
    ),
    refused(
        "`store_v_seq=True`",
        "store_v_seq=True keeps the graph of every step; set it to False and read `v` at each step",
        "spikingjelly.activation_based.neuron",
        "LIFNode",
        store_v_seq=True,
    ),
    refused(
        "surrogates with `spiking=False`",
        "its surrogate has spiking=False, so that it gives out no spikes; use spiking=True",
        "spikingjelly.activation_based.neuron",
        "LIFNode",
        surrogate_function=not_spiking,
    ),
)
