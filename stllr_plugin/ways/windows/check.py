"""Whether a model gives the same on several time steps at once as on one after the other.

Tried out once per kind of input, on the first steps of a sequence. What cannot run in windows runs step by step, which
is slower and never wrong, so every doubt counts against the windows.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from stllr_plugin.network import Network
from stllr_plugin.neurons import find_keeper
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.nn import SequenceDropout
from stllr_plugin.responses.base import NeedsStepsError
from stllr_plugin.session import several_processes
from stllr_plugin.supervision import OpenWindow
from stllr_plugin.synapses import find_synapse
from stllr_plugin.ways.snapshot import Snapshot
from stllr_plugin.ways.windows.takeover import Takeover
from stllr_plugin.ways.windows.window import Window

_Place = tuple[nn.Module, str, str]  # a module, its name, and an attribute

_WINDOW = 3  # steps of each of the two windows that are tried


class Model:
    """The network as a function of one input, its state (Norse) carried along."""

    def __init__(self, network: Network, net: Callable[..., Any]) -> None:
        """See the class."""
        self.net = net
        self.passes_state = "state" in inspect.signature(network.model.forward).parameters
        self.state: Any = None

    def __call__(self, x: Tensor) -> Any:
        """What the network returns, without its state."""
        if not self.passes_state:
            return self.net(x)
        # Norse's SequentialState changes the list that it is given.
        output, self.state = self.net(x, map_tensors(self.state, lambda tensor: tensor))
        return output


def why_steps(network: Network, model: Model, inputs: Tensor | Sequence[Tensor]) -> str | None:
    """The reason why a model must run step by step; None if it can run in windows.

    Args:
        network: The attached network.
        model: The network.
        inputs: A sequence, [T, B, ...].
    """
    reason = _known_reason(network)
    if reason is not None:
        return reason
    x = inputs[0]
    modes = tuple(module.training for module in network.model.modules())
    key = (id(model.net), tuple(x.shape[1:]), x.dtype, x.device, modes, torch.is_autocast_enabled(x.device.type))
    if key not in network.window_checks:  # the network is kept with the answer, so that its id stays its own
        wrapped = isinstance(model.net, DistributedDataParallel)
        trial = Model(network, network.model) if wrapped else model  # without what processes exchange in forward
        network.window_checks[key] = (model.net, _agreed(_tried(network, trial, inputs), x.device))
    return network.window_checks[key][1]


def _agreed(reason: str | None, device: torch.device) -> str | None:
    """The same answer in all processes, since they must call the network equally often."""
    if not several_processes():
        return reason
    flag = torch.tensor(float(reason is not None), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return "another process must run step by step" if reason is None and bool(flag) else reason


def _known_reason(network: Network) -> str | None:
    """What needs no trying out."""
    if network.signal.at_each_step:
        return f'the learning signal "{network.signal.name}" is made at each step'
    if network.session.supervision.random is not None:
        return "supervise_random supervises single steps"
    for site in network.neurons:
        if site.adapter.delayed or site.adapter.is_sequence(site.module):
            return f"neuron {site.name!r} ({type(site.module).__name__}) is known step by step only"
    if network.keeps_time or network.has_kept_states:
        return "a module other than a neuron keeps a state, or takes whole sequences"
    return None


def _tried(network: Network, model: Model, inputs: Tensor | Sequence[Tensor]) -> str | None:
    """Runs a few steps both ways and compares what comes out, without a trace left."""
    count = min(len(inputs), 2 * _WINDOW)
    saved = Snapshot(network)
    attributes = _Attributes(network.model)
    neurons = {id(part) for site in network.neurons for part in site.module.modules()}
    dropped = [m for m in network.model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    network.session.trial = True
    try:
        for module in dropped:  # draws its numbers in another order
            module.eval()
        network.begin_sequence(None, None, keep_target=True)
        before = _kept(network.model, neurons)
        watch = _Watch()
        with torch.no_grad(), watch.of_neurons(network), watch:
            single = [model(inputs[t]) for t in range(count)]
            changed = _changed(before, _kept(network.model, neurons))
            keeper = _reader_of_kept(model, inputs[0], changed, watch)
        if keeper is not None:
            return keeper
        if watch.scalars:
            return "the model reads values of tensors, on which its course may depend"
        saved.restore()
        network.begin_sequence(None, None, keep_target=True)
        model.state = None
        windowed: list[Any] = []
        for start in range(0, count, _WINDOW):
            stop = min(start + _WINDOW, count)
            with Window(network, OpenWindow(start, stop, supervised=False), inputs[0].shape[0]):
                part = inputs[start:stop]
                steps = part if isinstance(part, Tensor) else torch.stack(list(part))
                windowed.append((stop - start, model(steps.flatten(0, 1))))
        return _difference(single, windowed, inputs[0].shape[0])
    except (NeedsStepsError, RuntimeError) as error:
        return str(error).partition("\n")[0]
    finally:
        network.session.trial = False
        for module in dropped:
            module.train()
        model.state = None
        saved.restore()
        attributes.restore()
        network.begin_sequence(None, None, keep_target=True)


class _Attributes:
    """What modules hold in plain attributes: tensors kept for show, lists to which something is appended."""

    def __init__(self, model: nn.Module) -> None:
        self.held = [
            (module, {name: (value, copy.copy(value)) for name, value in _own_attributes(module)})
            for module in model.modules()
        ]

    def restore(self) -> None:
        """Puts them back; attributes that are new go."""
        for module, before in self.held:
            for name in [name for name, _ in _own_attributes(module) if name not in before]:
                del module.__dict__[name]
            for name, (value, contents) in before.items():
                if isinstance(value, list):
                    value[:] = contents
                elif isinstance(value, dict):
                    value.clear()
                    value.update(contents)
                module.__dict__[name] = value


def _own_attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """Attributes that hold tensors, or may come to do so."""
    kinds = (Tensor, list, tuple, dict, type(None))
    return [(n, v) for n, v in module.__dict__.items() if not n.startswith("_") and isinstance(v, kinds)]


def _difference(single: list[Any], windowed: list[tuple[int, Any]], batch: int) -> str | None:
    one = [leaves_of(output) for output in single]
    together: list[list[Tensor]] = []
    for count, output in windowed:
        leaves = leaves_of(output)
        if any(leaf.shape[:1] != (count * batch,) for leaf in leaves):
            return "the model returns a tensor whose first dimension is not the batch"
        together += [[leaf[t * batch : (t + 1) * batch] for leaf in leaves] for t in range(count)]
    if [len(leaves) for leaves in one] != [len(leaves) for leaves in together]:
        return "the model returns something else on several steps at once"
    for t, (left, right) in enumerate(zip(one, together, strict=True)):
        for a, b in zip(left, right, strict=True):
            if a.shape != b.shape:
                return "the model returns tensors of another shape on several steps at once"
            # Sums of another order may tip a single membrane over its threshold, in half precision several.
            half = a.dtype in (torch.float16, torch.bfloat16) or torch.is_autocast_enabled(a.device.type)
            tolerance, share = (5e-2, 0.9) if half else (1e-3, 0.98)
            scale = float(a.abs().amax().clamp(min=1e-3))
            close = torch.isclose(a.float(), b.float(), rtol=tolerance, atol=0.1 * tolerance * scale)
            if close.float().mean() < share:
                return f"the model gives something else on several steps at once (from step {t} on)"
    return None


def leaves_of(values: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(values, collect)
    return found


def _kept(model: nn.Module, neurons: set[int]) -> dict[_Place, list[tuple[Tensor, int]]]:
    """Tensors that modules hold, other than neurons, norms and what is known to keep a state; each with its version."""
    found: dict[_Place, list[tuple[Tensor, int]]] = {}
    for name, module in model.named_modules():
        own = (nn.modules.batchnorm._NormBase, SequenceDropout)
        if id(module) in neurons or isinstance(module, own) or find_keeper(module) is not None:
            continue
        synapse = find_synapse(module)
        for attribute, value in {**module.__dict__, **module._buffers}.items():
            if synapse is None or attribute != synapse.weight_name:  # pruning computes the weight anew at each call
                found[module, name, attribute] = [(tensor, tensor._version) for tensor in leaves_of(value)]
    return found


def _changed(
    before: Mapping[_Place, list[tuple[Tensor, int]]], after: Mapping[_Place, list[tuple[Tensor, int]]]
) -> list[_Place]:
    """Where tensors have been replaced or changed."""
    return [
        place
        for place, tensors in after.items()
        if len(known := before.get(place, [])) != len(tensors)
        or any(
            one is not other or version != newer for (one, version), (other, newer) in zip(known, tensors, strict=True)
        )
    ]


def _reader_of_kept(model: Model, x: Tensor, changed: list[_Place], watch: _Watch) -> str | None:
    """Whether a step makes use of what modules kept of the step before: runs one with NaN in its place.

    Many models keep their last outputs for show; only those that read them need to run step by step.
    """
    if not changed:
        return None
    for module, _, attribute in changed:
        holder = module._buffers if attribute in module._buffers else module.__dict__
        holder[attribute] = map_tensors(holder[attribute], _poisoned)
    watch.nan = False
    watch.look_for_nan(model(x))
    names = ", ".join(f"{attribute!r} of {name or 'the model'}" for _, name, attribute in changed)
    return f"what is kept from step to step ({names}) is used again" if watch.nan else None


def _poisoned(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise NeedsStepsError("a module counts, or keeps a tensor of whole numbers, from step to step")
    return torch.full_like(tensor, float("nan"))


class _Watch(TorchDispatchMode):
    """Notices values that leave the tensors (``if spikes.sum() > 0``, ``.item()``), and NaN that reaches a neuron."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scalars = False
        self.nan = False
        self._within = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and not self._within:
            self.scalars = True
        return func(*args, **(kwargs or {}))

    def look_for_nan(self, values: Any) -> None:
        """Notes NaN in nested tensors."""
        self._within += 1
        self.nan = self.nan or any(bool(leaf.isnan().any()) for leaf in leaves_of(values))
        self._within -= 1

    def of_neurons(self, network: Network) -> Takeover:
        """Looks at what goes into neurons, and not at what happens within, which is step by step in a window too."""

        def watched(forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                self.look_for_nan(args[:1])
                self._within += 1
                try:
                    return forward(*args, **kwargs)
                finally:
                    self._within -= 1

            return run

        return Takeover([(site.module, watched) for site in network.neurons])
