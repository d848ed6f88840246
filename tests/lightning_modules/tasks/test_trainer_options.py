"""The trainer's options act in both loops: accumulation, clipping, mixed precision with every learning signal."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision

from tests.lightning_modules.helpers import (
    assert_same,
    make_loader,
    make_network,
    make_task,
    make_trainer,
    weights,
)

LOOPS = ("online", "automatic")


def trained(loader, trainer_options=None, **options):
    task = make_task(**options)
    trainer = make_trainer(**(trainer_options or {}))
    trainer.fit(task, loader)
    return task, trainer


@pytest.mark.parametrize(
    ("loop", "options"),
    [
        ("online", {}),
        ("automatic", {}),
        ("online", {"algorithm": "bptt"}),
        ("online", {"learning_signal": "local"}),
        ("automatic", {"algorithm": "tess"}),
        pytest.param("online", {"learning_signal": "dfa"}, marks=pytest.mark.slow),
        pytest.param("automatic", {"learning_signal": "local"}, marks=pytest.mark.slow),
    ],
)
def test_accumulated_batches_equal_the_joint_batch(loop, options):
    options = {"loop": loop, "supervise_last": 2, **options}
    joint, _ = trained(make_loader(batch_size=8), **options)
    parts, trainer = trained(make_loader(batch_size=4), {"accumulate_grad_batches": 2}, **options)
    assert trainer.global_step == 1
    assert_same(weights(joint), weights(parts), 1e-6)
    assert any((weights(joint)[name] != weight).any() for name, weight in weights(make_task()).items())


def test_accumulation_ends_with_the_epoch_and_steps_the_schedule_once_per_update():
    results = []
    for loop in LOOPS:
        task, trainer = trained(
            make_loader(samples=12, batch_size=4),  # three batches: an update after two, one after the last
            {"accumulate_grad_batches": 2, "max_epochs": 2},
            loop=loop,
            lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
            lr_interval="step",
        )
        assert trainer.global_step == 4
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.3 / 16)
        results.append(weights(task))
    assert_same(*results, 1e-6)


@pytest.mark.parametrize("algorithm", ["norm", pytest.param("value", marks=pytest.mark.slow)])
def test_the_trainers_clipping_acts_in_both_loops(algorithm):
    options = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm}
    online, _ = trained(make_loader(), options, loop="online")
    automatic, _ = trained(make_loader(), options, loop="automatic")
    free, _ = trained(make_loader())
    assert_same(weights(online), weights(automatic), 1e-7)
    start = weights(make_task())
    moved = {k: float((v - start[k]).abs().max()) for k, v in weights(online).items()}
    far = {k: float((v - start[k]).abs().max()) for k, v in weights(free).items()}
    assert 0 < max(moved.values()) <= 2 * 0.3 * 1e-3 * 1.01 < max(far.values())  # two steps with this learning rate


def test_the_trainer_keeps_its_options():
    class Fail(Callback):
        def on_train_batch_start(self, *args):
            raise RuntimeError("stop here")

    trainer = make_trainer(accumulate_grad_batches=2, gradient_clip_val=0.5, callbacks=[Fail()])
    task = make_task()
    with pytest.raises(RuntimeError, match="stop here"):
        trainer.fit(task, make_loader())
    assert (trainer.accumulate_grad_batches, trainer.gradient_clip_val) == (2, 0.5)


def test_both_ways_to_change_the_number_of_updates_at_once_are_refused():
    with pytest.raises(ValueError, match="update_every=3 makes several updates per batch"):
        trained(make_loader(), {"accumulate_grad_batches": 2}, update_every=3)


class Scaled(MixedPrecision):
    """Float16 autocast with a gradient scaler, on a CPU; Lightning's flag "16-mixed" turns into bfloat16 there."""

    def __init__(self, scale=2.0**10):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        super().__init__("16-mixed", "cpu", scaler)


@pytest.mark.parametrize(
    ("loop", "options"),
    [
        ("online", {}),
        pytest.param("automatic", {}, marks=pytest.mark.slow),
        ("online", {"algorithm": "tess"}),
        ("automatic", {"learning_signal": "local"}),
        pytest.param("online", {"algorithm": "bptt"}, marks=pytest.mark.slow),
        pytest.param("online", {"learning_signal": "dfa"}, marks=pytest.mark.slow),
        pytest.param("online", {"learning_signal": "local"}, marks=pytest.mark.slow),
        pytest.param("automatic", {"learning_signal": "drtp"}, marks=pytest.mark.slow),
    ],
)
def test_the_scale_of_float16_does_not_show_in_the_weights(loop, options):
    """All layers get the same gradients at any scale: those from the loss, and those made from the target."""
    results = []
    for scale in (1.0, 2.0**10):
        options = {"loop": loop, "supervise_last": 2, "gradient_clip": 10.0, **options}
        torch.manual_seed(0)
        task, trainer = trained(make_loader(), {"plugins": [Scaled(scale)]}, network=make_network(gain=1.0), **options)
        assert trainer.precision_plugin.scaler.get_scale() == scale  # no step was skipped
        results.append(weights(task))
    for name, weight in results[0].items():
        assert weight.dtype == torch.float32
        torch.testing.assert_close(results[1][name], weight, rtol=0, atol=2e-3)
    moved = [(results[0][n] - w).abs().max() for n, w in weights(make_task(make_network(gain=1.0))).items()]
    assert min(moved) > 0


@pytest.mark.parametrize("loop", LOOPS)
def test_a_step_that_the_scaler_skips_changes_nothing(loop):
    """An infinite gradient: no update, a smaller scale, and training goes on."""

    class Explode(Callback):
        def on_after_backward(self, trainer, task):
            if trainer.fit_loop.batch_idx == 0:
                seen[:] = [weights(task)]
                next(p for p in task.parameters() if p.grad is not None).grad.fill_(torch.inf)

        def on_train_batch_end(self, trainer, task, *args):
            seen.append(weights(task))

    seen = []
    task, trainer = trained(make_loader(), {"plugins": [Scaled(8.0)], "callbacks": [Explode()]}, loop=loop)
    before, skipped, after = seen
    assert_same(before, skipped)
    assert any((skipped[name] != after[name]).any() for name in after)
    assert trainer.precision_plugin.scaler.get_scale() == 4.0


@pytest.mark.parametrize("algorithm", ["stllr", pytest.param("tess", marks=pytest.mark.slow)])
def test_loops_agree_in_bfloat16(algorithm):
    results = [
        weights(trained(make_loader(), {"precision": "bf16-mixed"}, loop=loop, algorithm=algorithm)[0])
        for loop in LOOPS
    ]
    assert_same(*results, 5e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_products_in_bfloat16(precision):
    """The task hands it to the learner: nearly the same weights, and not the very same."""
    loader = make_loader(batch_size=8)
    one, _ = trained(loader, {"precision": precision})
    other, _ = trained(loader, {"precision": precision}, products="bfloat16")
    start = weights(make_network())
    moved = {name: value - start[name] for name, value in weights(one.network).items()}
    differences = {name: value - start[name] - moved[name] for name, value in weights(other.network).items()}
    assert any(difference.abs().max() > 0 for difference in differences.values())
    for name, difference in differences.items():
        assert difference.norm() <= 0.1 * moved[name].norm(), name


def test_other_products_are_refused():
    with pytest.raises(ValueError, match="products='float16'"):
        make_task(products="float16")
