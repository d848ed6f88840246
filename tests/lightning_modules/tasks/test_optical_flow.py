"""The optical flow task: states that outlast batches, samples that begin anew, windows without anything in them."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_modules import FSFN, OpticalFlowEstimator, SpikingFireNet
from lightning_modules.flow.batch import FlowBatch
from lightning_modules.flow.supervised import EndpointErrorLoss
from lightning_modules.tasks.states import detach_states
from stllr_plugin import STLLRLearner
from tests.lightning_modules.helpers import assert_same, make_trainer, weights

SIZE, BINS = (8, 12), 3
SGD = partial(torch.optim.SGD, lr=0.3)


@pytest.fixture(autouse=True)
def no_garbage_collection(monkeypatch):
    """The meter of peak memory collects garbage at each fit, which takes longer than these fits."""
    monkeypatch.setattr("lightning_modules.memory._return_free_memory", lambda: None)


def make_batches(number, lanes=2, windows=2, seed=0, new=(0,)):
    """Batches of random events with a random constant flow each; all lanes begin anew in the batches of ``new``."""
    generator = torch.Generator().manual_seed(seed)

    def batch(index):
        counts = (torch.rand(lanes, windows, BINS, 2, *SIZE, generator=generator) < 0.2).float()
        flow = torch.randn(lanes, windows, 2, 1, 1, generator=generator).expand(-1, -1, -1, *SIZE).clone()
        return FlowBatch(
            counts=counts,
            present=torch.ones(lanes, windows, dtype=torch.bool),
            new_recording=torch.full((lanes,), index in new),
            flow=flow,
            valid=torch.ones(lanes, windows, *SIZE, dtype=torch.bool),
            names=["a"] * lanes,
        )

    return [batch(index) for index in range(number)]


def loader(batches):
    return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


def make_network(kind=SpikingFireNet, **options):
    torch.manual_seed(0)
    return kind(**{"channels": 4, "blocks": 1, **options}) if kind is SpikingFireNet else kind(**options)


def make_task(network=None, **options):
    settings = {"optimizer": SGD, "rule": "mvsec"}
    return OpticalFlowEstimator(network or make_network(), EndpointErrorLoss(), **{**settings, **options})


def trained(batches, network=None, validated=None, trainer=(), **options):
    task = make_task(network, **options)
    fit = make_trainer(**dict(trainer))
    fit.fit(task, loader(batches), None if validated is None else loader(validated))
    return task, fit


def by_hand(batches, attach=None, every_window=False, supervise_last=1):
    """The same training without Lightning: one loop over all windows, each learning at its last steps."""
    network, loss = make_network(), EndpointErrorLoss()
    optimizer = SGD(network.parameters())
    if attach is not None:
        optimizer = STLLRLearner(network, optimizer, rule=attach, reset_after_step=False)
    for batch in batches:
        losses = []
        for w in range(batch.num_windows):
            window = batch.window(w)
            for t in range(BINS):
                flows = network(window.counts[:, t])
                if t >= BINS - supervise_last:
                    losses.append(loss(flows, window).mean() / supervise_last)
            if every_window or w == batch.num_windows - 1:
                (sum(losses) / (1 if every_window else batch.num_windows)).backward()
                optimizer.step()
                optimizer.zero_grad()
                losses = []
                if attach is None:
                    detach_states(network)
    return weights(network)


@pytest.mark.parametrize(
    ("algorithm", "every_window"),
    [("stllr", False), ("stllr", True), ("sltt", False), ("bptt", False), ("bptt", True)],
)
def test_states_go_on_from_window_to_window_and_batch_to_batch(algorithm, every_window):
    batches = make_batches(3)
    rule = {"stllr": "mvsec", "sltt": "sltt", "bptt": None}[algorithm]
    expected = by_hand(batches, rule, every_window, supervise_last=2)
    task, trainer = trained(batches, algorithm=algorithm, update_every_window=every_window, supervise_last=2)
    assert_same(weights(task.network), expected, 1e-5)
    assert trainer.global_step == (6 if every_window else 3)


def test_ottt_trains_with_the_leaks_of_the_layers():
    task, _ = trained(make_batches(1), algorithm="ottt")
    assert any((weights(task.network)[name] != value).any() for name, value in weights(make_network()).items())


@pytest.mark.parametrize(("algorithm", "neuron"), [("stllr", "snntorch"), ("stllr", "norse"), ("bptt", "snntorch")])
def test_a_sample_that_begins_a_recording_is_as_if_it_were_alone(algorithm, neuron):
    """Lane 0 begins anew in the second batch, lane 1 goes on; each trains like a lane of its own would."""
    network = partial(make_network, neuron=neuron)
    both = make_batches(2)
    both[1] = replace(both[1], new_recording=torch.tensor([True, False]))
    together, _ = trained(both, network(), algorithm=algorithm, optimizer=partial(torch.optim.SGD, lr=0.0))
    gradients = {name: weight.grad for name, weight in together.network.named_parameters()}

    def lane(batch, index, **changes):
        parts = {name: getattr(batch, name)[index : index + 1] for name in ("counts", "present", "flow", "valid")}
        return FlowBatch(**{**parts, "new_recording": batch.new_recording[index : index + 1], **changes})

    alone = [[lane(both[1], 0)], [lane(batch, 1) for batch in both]]
    expected = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    for batches in alone:
        task, _ = trained(batches, network(), algorithm=algorithm, optimizer=partial(torch.optim.SGD, lr=0.0))
        for name, weight in task.network.named_parameters():
            expected[name] += weight.grad / 2
    assert_same(gradients, expected, 1e-5)


@pytest.mark.parametrize(("algorithm", "neuron"), [("stllr", "snntorch"), ("stllr", "norse"), ("bptt", "snntorch")])
def test_validation_between_two_batches_changes_nothing(algorithm, neuron):
    batches = make_batches(3)
    quiet, _ = trained(batches, make_network(neuron=neuron), algorithm=algorithm)
    validated, trainer = trained(
        batches,
        make_network(neuron=neuron),
        validated=make_batches(2, lanes=3, seed=1),
        trainer={"val_check_interval": 1},
        algorithm=algorithm,
    )
    assert "val_aee" in trainer.callback_metrics and trainer.callback_metrics["samples_per_second"] > 0
    assert_same(weights(validated.network), weights(quiet.network))


class Saved:
    """Counts the bytes that autograd keeps for backward passes."""

    def __init__(self):
        self.now = self.peak = 0

    def keep(self, tensor):
        kept = _Kept(self, tensor)
        self.now += kept.size
        self.peak = max(self.peak, self.now)
        return kept


class _Kept:
    def __init__(self, count, tensor):
        self.count, self.tensor, self.size = (
            count,
            tensor.detach(),
            tensor.nbytes,
        )  # with its graph it would keep itself

    def __del__(self):
        self.count.now -= self.size


@pytest.mark.parametrize(
    ("algorithm", "every_window", "grows"), [("stllr", False, False), ("bptt", False, True), ("bptt", True, False)]
)
def test_memory_grows_with_the_windows_of_a_batch_for_bptt_alone(algorithm, every_window, grows):
    peaks = []
    for windows in (2, 8):
        saved = Saved()
        with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda kept: kept.tensor):
            trained(make_batches(1, windows=windows), algorithm=algorithm, update_every_window=every_window)
        peaks.append(saved.peak)
    assert peaks[0] > 10_000
    assert peaks[1] > 3 * peaks[0] if grows else peaks[1] < 1.1 * peaks[0]


def test_every_epoch_begins_at_rest():
    batches = make_batches(2, new=())  # nobody says so
    task, _ = trained(batches, trainer={"max_epochs": 2}, optimizer=partial(torch.optim.SGD, lr=0.0))
    twice = {name: weight.grad for name, weight in task.network.named_parameters()}
    task, _ = trained(batches, optimizer=partial(torch.optim.SGD, lr=0.0))
    assert_same(twice, {name: weight.grad for name, weight in task.network.named_parameters()})


@pytest.mark.parametrize("algorithm", ["stllr", "bptt"])
def test_samples_whose_recording_is_over_are_inert(algorithm):
    batches = make_batches(2, lanes=1)
    expected, _ = trained(batches, algorithm=algorithm)

    def with_ended(batch):
        def more(values):
            return torch.cat((values, torch.zeros_like(values)))

        names = ("counts", "present", "flow", "valid", "new_recording")
        return FlowBatch(**{name: more(getattr(batch, name)) for name in names})

    found, _ = trained([with_ended(batch) for batch in batches], algorithm=algorithm)
    assert_same(weights(found.network), weights(expected.network), 1e-6)


@pytest.mark.parametrize(("algorithm", "every_window"), [("stllr", False), ("stllr", True), ("bptt", False)])
def test_nobody_present_updates_nothing(algorithm, every_window):
    (batch,) = make_batches(1)
    batch.present[:] = False
    before = weights(make_network())
    options = {"optimizer": partial(torch.optim.Adam, lr=0.1), "update_every_window": every_window}
    task, trainer = trained([batch], algorithm=algorithm, **options)
    assert_same(weights(task.network), before)
    assert "train_loss" not in trainer.callback_metrics


@pytest.mark.parametrize(
    ("what", "algorithm"),
    [
        ("no event at all", "stllr"),
        ("no event at all", "bptt"),
        ("one polarity", "stllr"),
        ("one window without events", "stllr"),
        ("no valid pixel", "stllr"),
    ],
)
def test_odd_windows_leave_finite_weights(what, algorithm):
    batches = make_batches(2)
    for batch in batches:
        if what == "no event at all":
            batch.counts.zero_()
        elif what == "one polarity":
            batch.counts[:, :, :, 0] = 0
        elif what == "one window without events":
            batch.counts[:, 0] = 0
        else:
            batch.valid.zero_()
    task, trainer = trained(batches, algorithm=algorithm, optimizer=partial(torch.optim.Adam, lr=0.01))
    assert all(weight.isfinite().all() for weight in task.network.parameters())
    assert trainer.global_step == 2 and trainer.callback_metrics["train_loss"].isfinite()


def test_metrics_stand_beside_those_of_zero_flow():
    batches = make_batches(2)
    task = make_task()
    trainer = make_trainer()
    trainer.fit(task, loader(batches), loader(batches))
    (tested,) = trainer.test(task, loader(batches), verbose=False)
    zero = torch.stack([batch.flow.norm(dim=2).mean() for batch in batches]).mean()
    for phase in ("train", "val", "test"):
        assert trainer.callback_metrics.get(f"{phase}_aee_zero", zero) == pytest.approx(float(zero), rel=1e-5)
    assert tested["test_aee_ratio"] == pytest.approx(tested["test_aee"] / tested["test_aee_zero"], rel=1e-5)
    flows = torch.cat([predicted for predicted in trainer.predict(task, loader(batches))])
    error = (flows - torch.cat([batch.flow for batch in batches])).norm(dim=2).mean()
    assert tested["test_aee"] == pytest.approx(float(error), rel=1e-5)


def test_where_a_mask_leaves_pixels_out_the_error_over_all_of_them_stands_beside():
    batches = make_batches(2)
    for batch in batches:
        batch.flow *= 10 * batch.counts.sum((2, 3)).unsqueeze(2)  # no flow where no event is
    masked, whole = make_task(metric_mask="both"), make_task()
    (at_events,) = make_trainer().test(masked, loader(batches), verbose=False)
    (everywhere,) = make_trainer().test(whole, loader(batches), verbose=False)
    for name in ("aee", "aee_zero", "aee_ratio", "outliers_1px"):
        assert at_events[f"test_dense_{name}"] == pytest.approx(everywhere[f"test_{name}"], rel=1e-5)
    assert at_events["test_aee"] != pytest.approx(at_events["test_dense_aee"], rel=1e-3)
    assert not any("dense" in name for name in everywhere)


@pytest.mark.parametrize("every_window", [False, True])
def test_logged_loss_is_the_mean_over_windows_and_not_over_batches(every_window):
    batches = make_batches(2)
    batches[0].present[1] = batches[0].valid[1] = False
    task, trainer = trained(batches, validated=batches, update_every_window=every_window)
    assert trainer.callback_metrics["val_loss"] == pytest.approx(float(trainer.callback_metrics["val_aee"]), rel=1e-4)
    assert trainer.callback_metrics["train_loss"] == pytest.approx(
        float(trainer.callback_metrics["train_aee"]), rel=1e-4
    )


def test_prediction_goes_on_from_batch_to_batch_and_forward_does_not():
    one, two = make_batches(2)
    task = make_task()
    first, second = make_trainer().predict(task, loader([one, two]))
    assert first.shape == second.shape == (2, 2, 2, *SIZE)
    whole = FlowBatch(
        **{name: torch.cat((getattr(one, name), getattr(two, name)), 1) for name in ("counts", "present")},
        new_recording=one.new_recording,
    )
    torch.testing.assert_close(task(whole), torch.cat((first, second), 1))
    assert not torch.equal(task(two), second)


def test_without_true_flow_there_is_a_loss_alone():
    batches = [replace(batch, flow=None, valid=None) for batch in make_batches(1)]

    class Quiet(nn.Module):
        def forward(self, flows, window):
            return flows[-1].square().flatten(1).mean(1)

    task = OpticalFlowEstimator(make_network(), Quiet(), optimizer=SGD, rule="mvsec")
    trainer = make_trainer()
    trainer.fit(task, loader(batches), loader(batches))
    assert "val_loss" in trainer.callback_metrics
    assert not [name for name in trainer.callback_metrics if "aee" in name]


def test_nothing_is_left_in_the_network():
    task, _ = trained(make_batches(2), make_network(FSFN, base_channels=2, levels=2, recurrent="encoder"))
    assert all(not state.any() and not state.requires_grad for state in task.network.buffers() if state.dim() > 1)


def test_module_that_cannot_reset_single_samples_is_named():
    class Memory(nn.Module):
        def reset_states(self):
            pass

        def forward(self, counts):
            return counts

    network = nn.Sequential(Memory(), make_network())
    batches = make_batches(2)
    batches[1] = replace(batches[1], new_recording=torch.tensor([True, False]))
    with pytest.raises(TypeError, match=r"Module '0' \(Memory\).*reset_samples\(mask\)"):
        trained(batches, network)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"supervise_last": 0}, "supervise_last=0"),
        ({"window": 4}, "window=4 runs time steps at once"),
        ({"update_every": 3}, "update_every counts time steps"),
        ({"algorithm": "tess", "rule": None}, "'tess' feeds the error of a few classes"),
        ({"learning_signal": "drtp"}, "'drtp' feeds the error"),
        ({"loop": "automatic"}, 'loop="automatic" would keep the graph of all windows'),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_task(**options)
