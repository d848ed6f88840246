"""snnTorch's and Norse's neurons from the nodes of tests.oracles.spec."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from tests.cases.surrogates import exact_spike_grad, exact_state_quant, snntorch_spike_grad
from tests.oracles.neurons import IZHIKEVICH_DEFAULTS
from tests.oracles.spec import NORSE_SPIKING, SNNTORCH, Net, Node

# Norse's parameters that lie one level deeper, and under which name
_NESTED = {"LIFRefrac": "lif", "LIFAdExRefrac": "lif_adex"}


def make_neuron(node: Node, net: Net, dtype: torch.dtype, hidden: bool) -> nn.Module:
    """The module of a neuron node; ``hidden`` gives those of snnTorch ``init_hidden=True``."""
    if node.cell not in SNNTORCH:
        return _norse(node, net)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Inhibition is an unstable feature")
        return _snntorch(node, net, dtype, hidden)


def _snntorch(node: Node, net: Net, dtype: torch.dtype, hidden: bool) -> nn.Module:
    import snntorch
    from snntorch.functional import quant

    options, name = node.options, node.name
    kwargs: dict[str, Any] = {}
    for key in ("beta", "alpha", "threshold", "graded_spikes_factor", "R", "C", "time_step"):
        learned = net.params.get(f"{name}.{key}")
        if learned is not None:
            kwargs[key] = learned.to(dtype).clone()
            kwargs[f"learn_{key}"] = True
        elif key in options:
            kwargs[key] = torch.as_tensor(options[key], dtype=dtype)
    for key in ("reset_mechanism", "reset_delay", "inhibition", "delta_threshold"):
        if key in options:
            kwargs[key] = options[key]
    if "state_quant" in options:
        library = quant.state_quant(**options["state_quant"])
        kwargs["state_quant"] = exact_state_quant(library) if dtype == torch.float64 else library
    if node.kind in ("StateLeaky", "LinearLeaky"):
        if node.kind == "StateLeaky":
            kwargs["channels"] = options["channels"]
        else:
            shape = net.params[f"{name}.linear.weight"].shape
            bias = f"{name}.linear.bias" in net.params
            kwargs |= {"in_features": shape[1], "out_features": shape[0], "bias": bias}
        kwargs["output"] = options.get("output", True)
    elif hidden:
        kwargs |= {"init_hidden": True, "output": options.get("output", True)}
    if options.get("output", True) or hidden:
        exact, constants = dtype == torch.float64, options.get("surrogate", ("atan", 2.0))
        kwargs["spike_grad"] = exact_spike_grad(*constants) if exact else snntorch_spike_grad(*constants)
    recurrent = options.get("recurrent")
    if recurrent == "linear":
        kwargs["linear_features"] = net.params[f"{name}.recurrent.weight"].shape[0]
    elif recurrent == "conv":
        shape = net.params[f"{name}.recurrent.weight"].shape
        kwargs |= {"conv2d_channels": shape[0], "kernel_size": tuple(shape[2:])}
    elif recurrent == "one_to_one":
        kwargs |= {"all_to_all": False, "V": net.params[f"{name}.V"].to(dtype).clone()}
    neuron = getattr(snntorch, node.kind)(**kwargs)
    if recurrent in ("linear", "conv") and f"{name}.recurrent.bias" not in net.params:
        neuron.recurrent.register_parameter("bias", None)
    return neuron


def _norse(node: Node, net: Net) -> nn.Module:
    import norse.torch as norse

    options, cell = node.options, getattr(norse, node.kind)
    kwargs: dict[str, Any] = {"dt": options.get("dt", 0.001)}
    sizes: tuple[int, ...] = ()
    if node.own_input:
        sizes = tuple(reversed(net.params[f"{node.name}.input_weights"].shape))
    if node.has_norse_recurrence:
        kwargs["autapses"] = options.get("autapses", False)
    family = node.cell.removesuffix("Cell").removesuffix("Recurrent")
    if family == "Izhikevich":
        kwargs["spiking_method"] = _izhikevich_behaviour(node)
    else:
        kwargs["p"] = _norse_parameters(node, family)
    return cell(*sizes, **kwargs)


def _norse_parameters(node: Node, family: str) -> Any:
    import norse.torch as norse
    from norse.torch.functional import lif_adex_refrac, lif_box, lif_ex, lif_refrac, lsnn, reset

    options = node.options
    if family in _NESTED:
        outer = {"LIFRefrac": lif_refrac.LIFRefracParameters, "LIFAdExRefrac": lif_adex_refrac.LIFAdExRefracParameters}
        inner = _norse_parameters(node, family.removesuffix("Refrac"))
        rho = torch.as_tensor(options.get("rho_reset", 5.0), dtype=torch.float64)
        return outer[family](inner, rho_reset=rho)
    parameters = {
        "LIF": norse.LIFParameters,
        "LIFEx": lif_ex.LIFExParameters,
        "LIFAdEx": norse.LIFAdExParameters,
        "LIFBox": lif_box.LIFBoxParameters,
        "IAF": norse.IAFParameters,
        "LSNN": lsnn.LSNNParameters,
        "LI": norse.LIParameters,
        "LILinear": norse.LIParameters,
        "LIBox": norse.LIBoxParameters,
    }[family]
    # 0-dim float64 constants: they keep a float64 network exact and do not promote a float32 one
    constants: dict[str, Any] = {
        key: torch.as_tensor(options.get(key, default), dtype=torch.float64).detach().clone()  # IAF marks its default
        for key, default in parameters._field_defaults.items()
        if isinstance(default, Tensor)
    }
    if node.cell in NORSE_SPIKING:
        method, alpha = options.get("surrogate", ("super", 100.0))
        constants |= {"method": method, "alpha": torch.as_tensor(alpha, dtype=torch.float64)}
    if family == "LIFBox" and options.get("reset_method") == "subtract":
        constants["reset_method"] = reset.reset_subtract
    return parameters(**constants)


def _izhikevich_behaviour(node: Node) -> Any:
    from norse.torch.functional import izhikevich

    constants = {key: node.options.get(key, default) for key, default in IZHIKEVICH_DEFAULTS.items() if key != "dt"}
    v, recovery = (torch.tensor(constants.pop(key), dtype=torch.float64) for key in ("v_rest", "u_rest"))
    method, alpha = node.options.get("surrogate", ("super", 100.0))
    p = izhikevich.IzhikevichParameters(**constants, method=method, alpha=alpha)
    return izhikevich.IzhikevichSpikingBehavior(p=p, s=izhikevich.IzhikevichState(v=v, u=recovery))
