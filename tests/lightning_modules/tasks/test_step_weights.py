"""Which steps carry a loss: counted from the end of each sample, padding excluded, every sample weighs the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.tasks.step_weights import step_weights, valid_steps


def test_last_steps_count_from_each_samples_own_end():
    weights = step_weights(torch.tensor([5, 3, 1]), num_steps=5, last=2)
    expected = torch.tensor([[0, 0, 1], [0, 0.5, 0], [0, 0.5, 0], [0.5, 0, 0], [0.5, 0, 0]])
    assert torch.equal(weights, expected)


def test_all_valid_steps_by_default():
    weights = step_weights(torch.tensor([4, 2]), num_steps=4)
    assert torch.equal(weights, torch.tensor([[0.25, 0.5], [0.25, 0.5], [0.25, 0], [0.25, 0]]))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.one_of(st.none(), st.integers(1, 12)))
def test_each_sample_weighs_one_and_padding_nothing(lengths, last):
    lengths = torch.tensor(lengths)
    weights = step_weights(lengths, 9, last)
    torch.testing.assert_close(weights.sum(0), torch.ones(len(lengths)))
    assert not weights[~valid_steps(lengths, 9)].any()


@pytest.mark.parametrize(("lengths", "last"), [([0, 3], None), ([6], None), ([2], 0)])
def test_impossible_lengths_are_refused(lengths, last):
    with pytest.raises(ValueError, match=r"1\.\.5|At least one"):
        step_weights(torch.tensor(lengths), 5, last)
