"""``learner.stream``: a model that takes whole sequences, run one time step at a time."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from torch import Tensor, nn

from stllr_plugin.errors import SequenceInputError, StateError
from stllr_plugin.network import Network
from stllr_plugin.neurons.base import map_tensors
from stllr_plugin.supervision import checked_lengths
from stllr_plugin.ways.within import refuse_other_network


class Stream:
    """Iterates over the time steps of a sequence; see ``STLLRLearner.stream``.

    Attributes:
        state: What the model returned as its state at the last step; None for models that keep theirs.
    """

    def __init__(
        self,
        network: Network,
        data: Tensor | Iterable[Tensor],
        state: Any,
        lengths: Tensor | None,
        model: Callable[..., Any],
        last: int | None,
    ) -> None:
        """See the class."""
        self.state = _copied(state)
        self._network = network
        self._data = data
        self._lengths = lengths
        self._model = model
        self._last = last
        self._initial = _copied(state)
        self._passes_state = "state" in inspect.signature(network.model.forward).parameters
        self._memories: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        """Number of time steps.

        Raises:
            TypeError: If the data is an iterable without a length.
        """
        if not isinstance(self._data, Sized):
            raise TypeError(f"a stream over a {type(self._data).__name__} has no length")
        return len(self._data)

    def __iter__(self) -> Iterator[Any]:
        """Runs the model on one time step after the other; yields its output at each, without the time dimension."""
        self.restart()
        self._begin()
        mine = self._network.carrier = weakref.ref(self)
        try:
            for x in self._data:
                yield self._step(x)
            self._network.complete()  # the caller's last backward pass has been
        finally:
            if self._network.carrier is mine:
                self._network.carrier = None

    def _begin(self) -> None:
        network = self._network
        num_steps = len(self._data) if isinstance(self._data, Sized) else None
        if self._initial is not None:
            network.session.supervision.extend(num_steps)
        elif network.session.is_recording:
            network.begin_sequence(num_steps, self._lengths, keep_target=True, last=self._last)
        else:  # an evaluation leaves the traces alone
            network.reset_kept_states()

    def restart(self) -> None:
        """Goes back to the states of the beginning, as ``learner.reset()`` does for those that neurons keep."""
        self.state = _copied(self._initial)
        self._memories.clear()

    def refuse_single_samples(self) -> None:
        """Raises StateError if the stream carries Norse's states, of which single samples cannot be reset."""
        carried: list[Tensor] = []
        map_tensors((self.state, [memory.get("state") for memory in self._memories.values()]), _into(carried))
        if carried:
            raise StateError(
                "reset(mask) cannot reset single samples of the Norse states that stream() carries. Carry the states "
                "yourself (`output, state = model(x[t : t + 1], state)`), and change them there."
            )

    def reset_samples(self, mask: Tensor) -> None:
        """Resets the membranes that are kept here for neurons without a state, for the samples in ``mask`` [B]."""
        for memory in self._memories.values():
            for key, value in memory.items():
                batch_first = value.transpose(0, 1) if value.dim() == 3 else value
                rows = mask.to(value.device).view(-1, *[1] * (value.dim() - 1))
                cleared = batch_first.masked_fill(rows, 0.0)
                memory[key] = cleared.transpose(0, 1) if value.dim() == 3 else cleared

    def _step(self, x: Tensor) -> Any:
        network = self._network
        supervision = network.session.supervision
        if not isinstance(x, Tensor):
            raise SequenceInputError(
                f"stream() takes a tensor [time, batch, ...] or an iterable of one tensor [batch, ...] per time step; "
                f"found {type(x).__name__}."
            )
        keeps_time = network.keeps_time
        before = supervision.steps_run
        handles: list[Any] = []
        for site in network.neurons:
            memory = self._memories.setdefault(site.name, {})
            handles += site.adapter.stream_hooks(site.module, memory)
            site.tap.streaming = True
        try:
            step = x.unsqueeze(0) if keeps_time else x
            output = self._model(step, self.state) if self._passes_state else self._model(step)
        finally:
            for handle in handles:
                handle.remove()
            for site in network.neurons:
                site.tap.streaming = False
        if supervision.steps_run - before > 1:
            raise SequenceInputError(
                f"stream(): the model ran {supervision.steps_run - before} time steps when it was given one, "
                "so its loop over time is inside forward. Use learner.online(...), which needs no change to the model."
            )
        if self._passes_state:
            output, self.state = output
        batch = x.shape[0]

        def without_time(tensor: Tensor) -> Tensor:
            return tensor[0] if tensor.dim() > 1 and tensor.shape[:2] == (1, batch) else tensor

        return map_tensors(output, without_time) if keeps_time else output


def _copied(state: Any) -> Any:
    """The same tensors in new containers, since Norse's SequentialState changes the list that it is given."""
    return map_tensors(state, lambda tensor: tensor)


def _into(tensors: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def collect(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    return collect


def make_stream(
    network: Network,
    data: Tensor | Iterable[Tensor],
    state: Any,
    lengths: Tensor | None,
    model: Callable[..., Any] | None,
    last: int | None = None,
) -> Stream:
    """Checks the arguments and returns the stream of ``STLLRLearner.stream``."""
    if isinstance(data, Tensor) and data.dim() < 2:
        raise SequenceInputError(
            "stream() takes a tensor [time, batch, ...] or an iterable of one tensor [batch, ...] per time step; found "
            f"a tensor of shape {tuple(data.shape)}."
        )
    if isinstance(data, nn.Module) or not isinstance(data, Iterable):
        raise SequenceInputError(
            f"stream() takes the data, [time, batch, ...], and runs the attached model on it; found a "
            f"{type(data).__name__}."
        )
    if model is not None:
        refuse_other_network(network, model, "stream()")
    lengths = None if lengths is None else checked_lengths(lengths)
    if state is not None and lengths is not None:
        raise SequenceInputError("stream(): lengths belong to a new sequence; with a state the running one goes on.")
    if network.single_step_neurons:
        raise SequenceInputError(
            f"stream(): neurons {network.single_step_neurons} take one time step per call, but other modules of this "
            "model take whole sequences. Use one kind throughout, or put these neurons into norse.torch.Lift."
        )
    return Stream(network, data, state, lengths, network.model if model is None else model, last)
