"""The ways of use as methods of the learner, each described where users read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from stllr_plugin.attachment import Attachment
from stllr_plugin.errors import StateError
from stllr_plugin.ways.online import OnlineRun, run_online
from stllr_plugin.ways.run import RunResult
from stllr_plugin.ways.run import run as run_windows
from stllr_plugin.ways.stream import Stream, make_stream
from stllr_plugin.ways.two_pass import run_two_pass


class WaysOfUse(Attachment):
    """Sequences that are run for the user: as a stream, in windows, from within the model, or in two passes."""

    def stream(
        self,
        data: Tensor | Iterable[Tensor],
        state: Any = None,
        *,
        lengths: Tensor | None = None,
        model: Callable[..., Any] | None = None,
    ) -> Stream:
        """Runs a model that takes whole sequences one time step at a time, as an online rule needs it.

        For models with Norse's sequence modules (``LIF``, ``LIFRecurrent``, ``Lift``, ...) or snnTorch's ``StateLeaky``
        and ``LinearLeaky``; works with all others as well. The outputs equal those of one call on the whole sequence::

            for output in learner.stream(x):  # x: [time, batch, ...]
                loss_t = cross_entropy(output, labels) / len(x)
                loss_t.backward()
            learner.step()

        A stream begins a new sequence, unless a state is given, which it goes on from. In ``eval()`` mode or under
        ``no_grad()`` it runs the model and leaves the traces alone.

        Args:
            data: [time, batch, ...], or an iterable of one tensor [batch, ...] per time step.
            state: What the model takes as its state; ``stream.state`` holds it afterwards.
            lengths: Integer [B], the length of each sample; see :meth:`reset`.
            model: Called in place of the attached model: its DistributedDataParallel wrapper or compiled form.

        Returns:
            An iterable over the outputs, without the time dimension. Norse's state is carried along.

        Raises:
            SequenceInputError: If the data has neither form.
        """
        self._require_attached()
        return make_stream(self._network, data, state, lengths, model)

    def run(
        self,
        net: Callable[..., Any],
        inputs: Tensor | Sequence[Tensor],
        targets: Any,
        loss_fn: Callable[[Any, Any], Tensor | None],
        *,
        window: int = 16,
        supervise_last: int | None = None,
        lengths: Tensor | None = None,
        backward: Callable[[Tensor], Any] | None = None,
        keep_outputs: bool = True,
        continue_from: RunResult | None = None,
        before_window: Callable[[int, int], Any] | None = None,
    ) -> RunResult:
        """Trains on a whole sequence, several time steps at once: the fast path.

        Layers without a state run once per window of K steps, on [K * B, ...]; neurons run through their K steps; each
        weight gets its gradient for the whole window in one product. The gradients are those of one step after the
        other::

            result = learner.run(net, x, labels, cross_entropy, window=20, supervise_last=10)
            learner.step()

        Memory grows with the window, not with the sequence. A model that cannot run in windows runs step by step, with
        the same gradients; ``result.steps_because`` and :meth:`report` then say why. Whether it can is tried out once
        per kind of input, on the first steps.

        Args:
            net: The attached model, its DistributedDataParallel wrapper or compiled form; one call is one time step.
            inputs: [time, batch, ...], or a list of one tensor [batch, ...] per time step.
            targets: What ``loss_fn`` gets beside the output; a list has one item per time step. A tensor is the same
                at all steps, [batch, ...].
            loss_fn: Called with the output [batch, ...] and the target of each supervised step; returns the step's
                loss, or None to skip the step.
            window: Time steps of a window.
            supervise_last: Number of supervised steps at the end; by default as the learner was told.
            lengths: Integer [B], the length of each sample; see :meth:`reset`.
            backward: Called with the loss of each window instead of ``loss.backward()``, e.g. ``lambda loss:
                scaler.scale(loss).backward()``.
            keep_outputs: Whether the result holds the outputs of all steps.
            continue_from: The result of a run that this one goes on from, for updates within a sequence (build the
                learner with ``reset_after_step=False``). By default a new sequence begins.
            before_window: Called before each window (or step) with its first step and the one after its last.

        Returns:
            The summed loss and the outputs.

        Raises:
            SequenceInputError: If the inputs or targets do not have this form.
            StateError: If the learner is disabled or the model in ``eval()`` mode, or an argument is not valid.
        """
        self._require_attached()
        return run_windows(
            self._network,
            net,
            inputs,
            targets,
            loss_fn,
            window=window,
            supervise_last=supervise_last,
            lengths=lengths,
            backward=backward,
            keep_outputs=keep_outputs,
            continue_from=continue_from,
            before_window=before_window,
        )

    def online(
        self,
        output: nn.Module | str,
        loss_fn: Callable[..., Tensor | None],
        *,
        num_steps: int | None = None,
        backward: Callable[[Tensor], Any] | None = None,
    ) -> AbstractContextManager[OnlineRun]:
        """Constant memory for a model whose time loop is inside ``forward``: a backward pass at each step, from within.

        ::

            with learner.online(net.lif2, lambda spk, mem: cross_entropy(mem, labels)) as run:
                net(data)
            optimizer.step()
            print(run.loss)

        Args:
            output: The module (or its name) whose outputs the loss of a step needs.
            loss_fn: Called at each supervised step with what the module returned; returns the step's loss, or None to
                skip the step.
            num_steps: Number of steps; needed with ``supervise_last`` unless the learner knows it.
            backward: Called with each step's loss instead of ``loss.backward()``, e.g. ``lambda loss:
                scaler.scale(loss).backward()``.

        Returns:
            A context manager giving an :class:`~stllr_plugin.ways.online.OnlineRun`. Within it the module's outputs
            come back detached.

        Raises:
            StateError: If ``supervise_last`` is set and the number of steps is not known, or several processes train
                together.
        """
        self._require_attached()
        return run_online(self._network, self._module(output), loss_fn, num_steps, backward)

    def two_pass(
        self,
        output: nn.Module | str | Sequence[nn.Module | str] | None,
        loss_fn: Callable[[Any], Tensor],
        forward: Callable[[], Any],
    ) -> Tensor:
        """Exact gradients at constant memory for a loss that is not a sum over time steps, e.g. on spike counts.

        A first pass without a graph records the outputs and yields dL/d(output) of each step; a second pass, equal to
        the first, delivers them step by step::

            loss = learner.two_pass(net.lif2, lambda spikes: count_loss(spikes, labels), lambda: net(data))
            optimizer.step()

        Args:
            output: The module (or its name) from whose outputs the loss is computed; a list where it depends on
                several, each of which runs once per step; None for all neurons.
            loss_fn: Maps what ``forward`` returns to the loss. Parameters that it uses itself, such as a penalty on
                weights, get their ordinary gradient.
            forward: Runs the whole sequence, states included, and returns what ``loss_fn`` takes. It is called twice.

        Returns:
            The loss, detached.

        Raises:
            StateError: If the loss depends on outputs of other modules, or the two passes differ, e.g. through
                randomness outside of torch's generators.
        """
        self._require_attached()
        if output is None:
            modules = [neuron.module for neuron in self._network.neurons]
        else:
            named: list[Any] = list(output) if isinstance(output, (list, tuple)) else [output]
            modules = list(dict.fromkeys(self._module(module) for module in named))
        return run_two_pass(self._network, modules, loss_fn, forward)

    def _module(self, module: nn.Module | str) -> nn.Module:
        if isinstance(module, str):
            found = self._network.find_module(module)
            if found is None:
                raise StateError(
                    f"The model has no module named {module!r}; it has "
                    f"{[n for n, _ in self.model.named_modules() if n]}."
                )
            return found
        if not any(module is child for child in self.model.modules()):
            raise StateError(
                f"The given {type(module).__name__} is not part of the attached model; pass one of its own modules or "
                "a name."
            )
        return module
