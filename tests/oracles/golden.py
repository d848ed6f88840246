"""The golden files as networks for the oracle."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracles.spec import Net, Node
from tests.oracles.stllr import Loss, Oracle, Rule

DATA = Path(__file__).parent.parent / "data" / "golden"
NAMES = tuple(sorted(path.stem for path in DATA.glob("*.npz")))
PSI = {"inverse_square_100": "inverse_square", "triangle_0.3": "triangle", "sigmoid_4": "sigmoid"}


def load(name: str, folder: Path = DATA) -> dict[str, Any]:
    """Arrays as tensors, scalars as Python values."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        return {k: file[k].item() if file[k].ndim == 0 else torch.from_numpy(file[k]) for k in file.files}


def rule_of(data: dict[str, Any]) -> Rule:
    constants = {k: data[k] for k in ("alpha_pre", "lambda_pre", "alpha_post", "lambda_post")}
    return Rule(**constants, psi=PSI[data["psi"]], propagate="psi", convention="code")


def family(data: dict[str, Any]) -> str:
    if "w_rec" in data:
        return "recurrent"
    return "conv" if "stride" in data else "dense"


def weight_standardised(weight: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Rows with mean 0 and (nearly) unit norm, times a gain per row."""
    mean, var = weight.mean(1, keepdim=True), weight.var(1, keepdim=True)
    return gain * (weight - mean) / torch.sqrt(var * weight.shape[1] + eps)


# golden name -> parameter name
PARAMETERS = {
    "dense": {
        "w1": "fc1.weight",
        "b1": "fc1.bias",
        "w2": "fc2.weight",
        "b2": "fc2.bias",
        "w3": "fc3.weight",
        "b3": "fc3.bias",
    },
    "conv": {
        "w1": "conv1.weight",
        "b1": "conv1.bias",
        "w2": "conv2.weight",
        "b2": "conv2.bias",
        "w3": "fc3.weight",
        "b3": "fc3.bias",
    },
    "recurrent": {
        "w": "fc1.weight",
        "b": "fc1.bias",
        "w_rec": "lif1.recurrent.weight",
        "w_out": "fc2.weight",
        "b_out": "fc2.bias",
    },
}


def _lif(data: dict[str, Any], name: str, source: str, kind: str = "Leaky", **options: Any) -> Node:
    reset = "zero" if data.get("reset") == "hard" else "subtract"
    common = {"beta": data["gamma"], "threshold": data["threshold"], "reset_mechanism": reset, "reset_delay": False}
    return Node(name, kind, (source,), {**common, **options})


def net_of(data: dict[str, Any]) -> Net:
    kind = family(data)
    params = {parameter: data[name] for name, parameter in PARAMETERS[kind].items()}
    if kind == "dense":
        nodes = [
            Node("fc1", "Linear", ("x",)),
            _lif(data, "lif1", "fc1"),
            Node("fc2", "Linear", ("lif1",)),
            _lif(data, "lif2", "fc2"),
            Node("fc3", "Linear", ("lif2",)),
        ]
        return Net(tuple(nodes), params, ("fc3",))
    if kind == "conv":
        nodes = [
            Node("conv1", "Conv2d", ("x",), {"padding": 1, "stride": data["stride"]}),
            _lif(data, "lif1", "conv1"),
            Node("pool", "MaxPool2d", ("lif1",), {"size": 2}),
            Node("conv2", "Conv2d", ("pool",), {"padding": 1, "groups": data["groups"]}),
            _lif(data, "lif2", "conv2"),
            Node("mean", "MeanHW", ("lif2",)),
            Node("fc3", "Linear", ("mean",)),
        ]
        return Net(tuple(nodes), params, ("fc3",))
    nodes = [
        Node("fc1", "Linear", ("x",)),
        _lif(data, "lif1", "fc1", "RLeaky", recurrent="linear"),
        Node("fc2", "Linear", ("lif1",)),
        Node("readout", "Leaky", ("fc2",), {"beta": data["readout_gamma"], "reset_mechanism": "none"}),
    ]
    return Net(tuple(nodes), params, ("readout.mem",))


def standardised(net: Net, data: dict[str, Any]) -> Net:
    """``net`` whose first two weights are computed from raw ones and gains."""
    params, computed = dict(net.params), {}
    for i in "12":
        params |= {f"raw{i}": params.pop(f"fc{i}.weight"), f"gain{i}": data[f"gain{i}"]}
        computed[f"fc{i}.weight"] = (partial(weight_standardised, eps=data["eps"]), (f"raw{i}", f"gain{i}"))
    return replace(net, params=params, computed=computed)


def loss_of(data: dict[str, Any], output: str) -> Loss:
    return lambda outputs, t: F.cross_entropy(outputs[output], data["y"])


def supervised_of(data: dict[str, Any]) -> list[bool]:
    steps = len(data["x"])
    return [t >= steps - data["supervise_last"] for t in range(steps)]


def signal_of(data: dict[str, Any]) -> str:
    return {"DFA": "dfa", "sDFA": "sign_dfa"}.get(data.get("learning_signal", ""), "bp")


def feedback_of(data: dict[str, Any]) -> Tensor:
    """The feedback matrix for an error of the batch-mean loss: the authors project each sample's own error, not divided
    by the batch size. The sign of an error needs no such factor.
    """
    return data["feedback"] * (data["x"].shape[1] if signal_of(data) == "dfa" else 1)


def oracle_of(data: dict[str, Any]) -> Oracle:
    net, rule = net_of(data), rule_of(data)
    options: dict[str, Any] = {}
    if "readout_lambda_pre" in data:
        options["layer_rules"] = {"fc2": Rule(lambda_pre=data["readout_lambda_pre"])}
    if "feedback" in data:
        options |= {"signal": signal_of(data), "feedback": {"lif1": feedback_of(data)}}
    if "gain1" in data:
        net = standardised(net, data)
    return Oracle(net, rule, **options)


def gradients(data: dict[str, Any], grads: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parameter gradients by golden name."""
    named = {name: grads[parameter] for name, parameter in PARAMETERS[family(data)].items() if parameter in grads}
    if "gain1" in data:
        for i in "12":
            named |= {f"w{i}": grads[f"raw{i}"], f"gain{i}": grads[f"gain{i}"]}
    return named
