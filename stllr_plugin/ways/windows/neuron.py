"""A neuron in a window: its K steps at once, with the rule grafted onto its outputs for all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stllr_plugin.advance import Groups, group_calls, move_edges, move_posts, regrafted
from stllr_plugin.between import guard
from stllr_plugin.calls import SynapseCall
from stllr_plugin.graft import graft
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.record import GIVEN_UP, Record
from stllr_plugin.responses.base import NeedsStepsError, Response
from stllr_plugin.responses.library import find_knowledge
from stllr_plugin.responses.stepped import scan_steps
from stllr_plugin.sites.neuron import NeuronSite
from stllr_plugin.sites.shortcut import Shortcut
from stllr_plugin.supervision import OpenWindow
from stllr_plugin.traces import NeuronTraces
from stllr_plugin.walk import find_calls


@dataclass(frozen=True)
class Steps:
    """The steps of a window, as a neuron sees them.

    Attributes:
        window: Which they are, and whether they are supervised.
        batch: B.
        calls: Filled with the synapse calls that neurons have taken in.
        synaptic: Ids of the parameters behind synapses' weights.
    """

    window: OpenWindow
    batch: int
    calls: list[SynapseCall]
    synaptic: Collection[int]


def run_neuron(
    site: NeuronSite, steps: Steps, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """One call of a neuron module on a whole window [K * B, ...]; returns what the module would, over the window.

    Raises:
        NeedsStepsError: If the module cannot be run so.
    """
    window = steps.window
    num_steps, supervised = window.num_steps, window.supervised
    current, args, kwargs = _first_states(site.name, steps, args, kwargs)
    response = _response(site, steps, forward, current, args, kwargs)
    calls, boundaries = (
        ([], []) if current.grad_fn is None else find_calls(current.grad_fn, current.shape, site.session.weights)
    )
    groups = group_calls(calls)
    step = window.stop - 1
    traces = _traces_of(site, groups, response)
    traces.sequence, traces.last_step = site.session.sequence.number, step
    traces.model_call = site.session.time.model_calls
    traces.steps += num_steps
    inputs = move_edges(site, traces, groups, response.inner, num_steps, step, supervised)
    steps.calls.extend(synaptic.call for synaptic in inputs)
    spikes = None if response.spikes is None else response.leaves[response.spikes]
    posts, carries = move_posts(site, traces, inputs, response.v, response.gate, spikes, supervised)
    response.forget_distance(carries is not None or not supervised)
    traces.remember(site.adapter.returned_membrane(site.module, response.output) if site.keeps_state else None)
    if not supervised:
        return response.output
    record = Record(
        site.name, site.session, site.session.span(step), response, inputs, posts, carries, boundaries=boundaries
    )
    record.arrivals = guard(current, calls, site.session.doubts)
    leaves, output = response.leaves, response.output
    new = regrafted(graft(record), leaves)
    for inner in response.inner:
        inner.x = GIVEN_UP
    return map_tensors(output, lambda leaf: new[id(leaf)])


def _response(
    site: NeuronSite,
    steps: Steps,
    forward: Callable[..., Any],
    current: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Response:
    num_steps = steps.window.num_steps
    knowledge = find_knowledge(site.module)
    own = forward.plain if isinstance(forward, Shortcut) else forward
    plain = getattr(own, "__func__", None) is type(site.module).forward  # not one that the user has put there
    if knowledge is not None and plain and knowledge.serves(site, current, args, kwargs):
        known = knowledge.scan(site, num_steps, current, args, kwargs)
        if known is not None:
            return known.acts_on(current)
    return scan_steps(site, forward, current, args, kwargs, num_steps, steps.window.supervised, steps.synaptic)


def _traces_of(site: NeuronSite, groups: Groups, response: Response) -> NeuronTraces:
    layers = site.layers.all
    if len(layers) > 1:
        raise NeedsStepsError(f"neuron {site.name!r} serves several layers")
    if not layers:
        layers.append(NeuronTraces())
    (traces,) = layers
    number = len(groups) + len(response.inner)
    fed_by = {members[0][1].site for members in groups.values()} | {inner.call.site for inner in response.inner}
    if number > len(fed_by):
        names = sorted(call.site.name for members in groups.values() for _, call, _ in members)
        raise NeedsStepsError(f"a synapse runs several times within a step ({', '.join(names)})")
    if traces.steps and traces.sequence == site.session.sequence.number and traces.sites != fed_by:
        raise NeedsStepsError(f"neuron {site.name!r} is fed by other synapses than before")
    return traces


def _first_states(
    name: str, steps: Steps, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Splits a neuron's arguments into its input [K * B, ...] and the states of the first step.

    States that come in over a whole window are those which the window before gave out: its last step counts.
    """
    if not args or not isinstance(args[0], Tensor):
        raise NeedsStepsError(f"neuron {name!r} gets its input by keyword")
    current, batch = args[0], steps.batch
    if current.shape[:1] != (steps.window.num_steps * batch,):
        raise NeedsStepsError(
            f"neuron {name!r} gets an input of shape {tuple(current.shape)}, in which the batch of {batch} is not the "
            "first dimension"
        )

    def last(state: Tensor) -> Tensor:
        if state.numel() == 0:
            return state  # snnTorch's states before the first step
        if state.dim() == 0 or state.shape[0] < batch:
            raise NeedsStepsError(f"neuron {name!r} gets a state of shape {tuple(state.shape)}")
        return state.detach()[-batch:]

    return current, map_tensors(args[1:], last), {key: map_tensors(value, last) for key, value in kwargs.items()}
