"""Gradient scaling and bfloat16 autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stllr_plugin import STLLRLearner
from stllr_plugin.errors import RuleError
from tests.contracts.networks import (
    RULE,
    STEPPING,
    Hidden,
    LinearReadout,
    Looping,
    adam,
    assert_close,
    assert_same,
    build,
    gradients,
    labels,
    run_steps,
    spikes,
    trained_gradients,
    values,
)

ALL = pytest.mark.parametrize("kind", STEPPING.values(), ids=STEPPING)


def scaled_sequence(net: nn.Module, scaler: torch.amp.GradScaler, seed: int, spoil: bool = False) -> None:
    state, y = None, labels(seed=seed)
    for step in spikes(4, seed=seed):
        output, state = net(step, state)
        loss = cross_entropy(output, y)
        scaler.scale(loss * (float("inf") if spoil else 1.0)).backward()


def train(
    kind: Any, spoiled: tuple[int, ...] = (), scale: float = 1024.0, clip: bool = False
) -> tuple[dict[str, Tensor], float]:
    net = build(kind)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    for seed in range(4):
        learner.zero_grad()
        scaled_sequence(net, scaler, seed, spoil=seed in spoiled)
        if clip:
            scaler.unscale_(learner)
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        scaler.step(learner)
        scaler.update()
    return values(net), scaler.get_scale()


def train_plainly(kind: Any, seeds: tuple[int, ...], clip: bool = False) -> dict[str, Tensor]:
    net = build(kind)
    learner = STLLRLearner(net, adam(net), rule=RULE)
    for seed in seeds:
        learner.zero_grad()
        run_steps(net, spikes(4, seed=seed), labels(seed=seed))
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        learner.step()
    return values(net)


@ALL
@pytest.mark.parametrize("clip", [False, True], ids=["", "unscale-and-clip"])
def test_a_gradient_scaler_changes_nothing(kind, clip):
    found, _ = train(kind, clip=clip)
    assert_close(found, train_plainly(kind, (0, 1, 2, 3), clip), 1e-5)


@ALL
def test_a_step_that_the_scaler_skips_updates_nothing_and_still_ends_the_sequence(kind):
    found, scale = train(kind, spoiled=(1,))
    assert scale == 512.0
    assert_close(found, train_plainly(kind, (0, 2, 3)), 1e-5)


def test_the_scaler_skips_a_step_after_unscale():
    found, _ = train(Hidden, spoiled=(0, 1, 2, 3))
    assert_same(found, values(build(Hidden)))


def test_online_takes_a_scaler():
    net = build(Hidden)
    looping, y = Looping(net), labels()
    learner = STLLRLearner(looping, adam(net), rule=RULE)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with learner.online(
        net, lambda output, _: cross_entropy(output, y), backward=lambda loss: scaler.scale(loss).backward()
    ) as run:
        looping(spikes(5))
    scaler.unscale_(learner)
    assert_close(gradients(net), trained_gradients(Hidden, spikes(5), y), 1e-5)
    assert run.loss < 100


def clear_margin(net: nn.Module, x: Tensor) -> Tensor:
    """The samples of which no membrane comes near its threshold, so that rounding flips no spike."""
    near = torch.zeros(x.shape[1], dtype=torch.bool)
    with torch.no_grad():
        for step in x:
            net(step)
            for neuron in (net.lif1, net.lif2):
                near |= (neuron.mem - neuron.threshold).abs().lt(0.03).any(1)
    return ~near


def autocast_gradients(kind: Any, x: Tensor, y: Tensor, inside: bool, way: str = "b") -> tuple[nn.Module, STLLRLearner]:
    net = build(kind)
    learner = STLLRLearner(net, rule=RULE)
    state, total = None, torch.zeros(())
    for step in x:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, state = net(step, state)
            loss = cross_entropy(output, y)
            if way == "b" and inside:
                loss.backward()
        if way == "b" and not inside:
            loss.backward()
        total = total + loss
    if way == "a":
        total.backward()
    return net, learner


@pytest.mark.parametrize("kind", [*STEPPING.values(), LinearReadout], ids=[*STEPPING, "linear-readout"])
@pytest.mark.parametrize("inside", [True, False], ids=["backward-inside", "backward-outside"])
def test_under_autocast_traces_and_gradients_stay_float32(kind, inside):
    net, learner = autocast_gradients(kind, spikes(4), labels(), inside)
    tensors = [tensor for edge in learner.traces().values() for tensor in edge.values() if tensor is not None]
    assert tensors and all(tensor.dtype == torch.float32 for tensor in tensors)
    assert all(parameter.grad.dtype == torch.float32 and parameter.grad.any() for parameter in net.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("inside", [True, False], ids=["backward-inside", "backward-outside"])
@pytest.mark.parametrize("way", ["a", "b"])
def test_under_autocast_gradients_are_near_where_no_spike_flips(inside, way):
    x, y = spikes(4, batch=200), labels(200)
    rows = clear_margin(build(Hidden), x)
    assert rows.sum() > 5
    x, y = x[:, rows], y[rows]
    net, _ = autocast_gradients(Hidden, x, y, inside, way)
    assert_close(gradients(net), trained_gradients(Hidden, x, y), 2e-2)


@ALL
def test_backward_inside_of_the_region_does_not_round_the_products(kind):
    inside, _ = autocast_gradients(kind, spikes(4), labels(), True)
    outside, _ = autocast_gradients(kind, spikes(4), labels(), False)
    assert_close(gradients(inside), gradients(outside))


def test_traces_of_bfloat16_spikes_are_summed_in_float32():
    """lambda_pre = 1 counts spikes: 300 ones; bfloat16 would stop at 256."""
    net = build(Hidden)
    learner = STLLRLearner(net, rule="shd", supervise_last=1, num_steps=300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(300):
            net(torch.ones(2, 12, dtype=torch.bfloat16))
    assert (learner.traces()["fc1->lif1"]["pre"] == 300).all()


@ALL
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("fold_steps", [1, 3])
def test_products_in_bfloat16_round_only_the_products(kind, autocast, fold_steps):
    """8 bits of each factor and of each product: the direction stays, and the traces are the same."""
    found = []
    for dtype in (None, torch.bfloat16):
        net = build(kind)
        learner = STLLRLearner(
            net, adam(net), rule=RULE, product_dtype=dtype, fold_steps=fold_steps, num_steps=len(spikes(4))
        )
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            run_steps(net, spikes(4), labels())
        found.append((gradients(net), learner.traces()))
        assert all(parameter.grad.dtype == torch.float32 for parameter in net.parameters())
    rounded = [not torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0] if "weight" in name]
    assert any(rounded)
    for name, wanted in found[0][0].items():
        assert (found[1][0][name] - wanted).norm() <= 0.01 * wanted.norm(), name
    for edge, traces in found[0][1].items():
        for trace, values_ in traces.items():
            assert values_ is None or torch.equal(found[1][1][edge][trace], values_)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, "bfloat16"])
def test_other_dtypes_for_products_are_refused(dtype):
    net = build(Hidden)
    with pytest.raises(RuleError, match="product_dtype"):
        STLLRLearner(net, adam(net), rule=RULE, product_dtype=dtype)
