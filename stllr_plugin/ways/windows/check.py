"""Whether a model gives the same on several time steps at once as on one after the other.

Tried out once per kind of input, and again now and then. What cannot run in windows runs step by step, which is slower
and never wrong, so every doubt counts against the windows: a counter, a queue, a value that is read, a function of the
user's own around the model.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from stllr_plugin.errors import STLLRWarning
from stllr_plugin.network import Network
from stllr_plugin.neurons import find_keeper
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.nn import SequenceDropout
from stllr_plugin.responses.base import NeedsStepsError
from stllr_plugin.supervision import OpenWindow
from stllr_plugin.synapses import find_synapse
from stllr_plugin.ways.snapshot import Snapshot
from stllr_plugin.ways.windows.attributes import Attributes, counters, settings_of, what_moved
from stllr_plugin.ways.windows.takeover import Takeover
from stllr_plugin.ways.windows.window import Window

_Place = tuple[nn.Module, str, str]  # a module, its name, and an attribute

_WINDOW = 3  # steps of each of the two windows that are tried
_AGAIN = 16  # runs after which it is tried again
_ANSWERS = 64  # that are kept


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

    The answer is kept by kind of input and by what the modules' attributes say, and tried out again now and then.

    Args:
        network: The attached network.
        model: The network.
        inputs: A sequence, [T, B, ...].
    """
    reason = _known_reason(network) or _reason_of_callable(network, model.net)
    if reason is not None:
        return reason
    x, checks = inputs[0], network.window_checks
    modes = tuple(module.training for module in network.model.modules())
    code = getattr(getattr(model.net, "__func__", None), "__code__", type(model.net))
    autocast = torch.is_autocast_enabled(x.device.type)
    key = (code, tuple(x.shape[1:]), x.dtype, x.device, modes, autocast, settings_of(network.model))
    network.windowed_runs += 1
    again = network.windowed_runs % _AGAIN == 0 and checks.get(key, "") is None
    if key not in checks or again:
        if len(checks) >= _ANSWERS:
            checks.clear()
        wrapped = isinstance(model.net, DistributedDataParallel)
        trial = Model(network, network.model) if wrapped else model  # without what processes exchange in forward
        checks[key] = _tried(network, trial, inputs)
        if again and checks[key] is not None:
            warnings.warn(
                f"run() went through several steps at once so far, and that is not the same any more: {checks[key]}. "
                "From here on it goes step by step. If the model was never the same on several steps at once, the "
                "earlier batches were not trained as step by step.",
                STLLRWarning,
                stacklevel=5,
            )
    return checks[key]


def _reason_of_callable(network: Network, net: Callable[..., Any]) -> str | None:
    """What is to be said against what is called."""
    if isinstance(net, nn.Module):
        return None
    if getattr(net, "__self__", None) is network.model:
        return None
    return "net is a function of your own, which may keep or mix anything; pass the attached model itself"


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
    """Runs a few steps both ways and compares what comes out, without a trace left.

    The first steps of a recording are often empty and show nothing, so the fullest ones and noise are tried as well.
    """
    count = min(len(inputs), 2 * _WINDOW)
    saved = Snapshot(network)
    attributes = Attributes(network.model)
    dropped = [m for m in network.model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.training]
    network.session.trial = True
    try:
        for module in dropped:  # draws its numbers in another order
            module.eval()
        for probe in _probes(inputs, count):
            reason = _parted(network, model, probe, saved, attributes)
            if reason is not None:
                return reason
        return None
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


def _probes(inputs: Tensor | Sequence[Tensor], count: int) -> Iterator[Sequence[Tensor]]:
    """Sequences to try: the first steps, the fullest ones, and noise as large as these."""
    yield [inputs[t] for t in range(count)]
    if not inputs[0].is_floating_point():
        return
    sizes = torch.stack([x.abs().amax() if x.numel() else x.new_zeros(()) for x in inputs])
    first = min(int(sizes.argmax()), len(inputs) - count)
    yield [inputs[t] for t in range(first, first + count)]
    generator = torch.Generator().manual_seed(0)
    scale = 2.0 * max(float(sizes.max()), 1.0)
    like = inputs[0]
    yield [(scale * torch.rand(like.shape, generator=generator)).to(like.device, like.dtype) for _ in range(count)]


def _parted(
    network: Network, model: Model, inputs: Sequence[Tensor], saved: Snapshot, attributes: Attributes
) -> str | None:
    """Why the steps and the windows of one sequence part; None if they do not."""
    neurons = {id(part) for site in network.neurons for part in site.module.modules()}
    saved.restore()
    attributes.restore()
    network.begin_sequence(None, None, keep_target=True)
    model.state = None
    before, counted = _kept(network.model, neurons), counters(network.model, neurons)
    watch = _Watch()
    with torch.no_grad(), watch.of_neurons(network), watch:
        single = [model(x) for x in inputs]
        moved = what_moved(counted, counters(network.model, neurons))
        changed = _changed(before, _kept(network.model, neurons))
        keeper = None if moved else _reader_of_kept(model, inputs[0], changed, watch)
    if moved:
        return f"what is kept from step to step ({moved}) may be used again"
    if keeper is not None:
        return keeper
    if watch.scalars:
        return "the model reads values of tensors, on which its course may depend"
    saved.restore()
    attributes.restore()
    network.begin_sequence(None, None, keep_target=True)
    model.state = None
    windowed: list[Any] = []
    for start in range(0, len(inputs), _WINDOW):
        stop = min(start + _WINDOW, len(inputs))
        with Window(network, OpenWindow(start, stop, supervised=False), inputs[0].shape[0]):
            windowed.append((stop - start, model(torch.stack(list(inputs[start:stop])).flatten(0, 1))))
    return _difference(single, windowed, inputs[0].shape[0])


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
