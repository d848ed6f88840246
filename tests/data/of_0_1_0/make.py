"""Writes learner.pt; to be run with stllr-plugin 0.1.0 installed.

The Lightning checkpoint beside it was written by 0.1.0's `stllr fit` with task.yaml.
"""

import snntorch
import torch
from torch import nn

from stllr_plugin import STLLRLearner

torch.manual_seed(0)
net = nn.Sequential(
    nn.Linear(6, 5), snntorch.Leaky(0.9, init_hidden=True), nn.Linear(5, 3), snntorch.Leaky(0.9, init_hidden=True)
)
learner = STLLRLearner(
    net,
    torch.optim.Adam(net.parameters(), lr=0.01),
    rule="shd",
    layer_rules={"2": "dvs_gesture"},
    learning_signal="dfa",
)
for _ in range(2):
    learner.zero_grad()
    for _ in range(4):
        nn.functional.cross_entropy(net((torch.rand(2, 6) < 0.5).float()), torch.tensor([0, 2])).backward()
    learner.step()
torch.save({"model": net.state_dict(), "optimizer": learner.state_dict()}, "learner.pt")
