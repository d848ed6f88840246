"""The benchmark of optical flow's memory trains with both algorithms; S-TLLR keeps no graph from window to window."""

import pytest
import torch

from benchmarks.flow_memory import prepare


def saved(algorithm, windows):
    """Bytes that autograd keeps at the most during a batch: tensors are counted until their graph is gone."""
    work = prepare(algorithm, windows)
    alive, most = 0, 0

    class Kept:
        def __init__(self, tensor):
            nonlocal alive, most
            self.tensor = tensor.detach()
            alive += tensor.nbytes
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= self.tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        work()
    return most


@pytest.mark.parametrize(("algorithm", "growth"), [("stllr", 1.1), ("bptt", None)])
def test_the_graph_grows_with_the_windows_in_bptt_only(algorithm, growth):
    two, six = saved(algorithm, 2), saved(algorithm, 6)
    assert two > 0
    assert six > 2.5 * two if growth is None else six <= growth * two
