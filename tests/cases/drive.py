"""Run an attached network and compare its gradients with the oracle's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from stllr_plugin import STLLRLearner, STLLRRule
from tests.cases.case import Case
from tests.cases.modules import CaseNet
from tests.oracles.stllr import Oracle, Result, Rule

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass
class Measured:
    grads: dict[str, Tensor]
    outputs: dict[str, Tensor]


def learner_rule(rule: Rule) -> STLLRRule:
    return STLLRRule(**{f.name: getattr(rule, f.name) for f in fields(rule)})


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def attach(model: nn.Module, rule: Rule, layer_rules: Mapping[str, Rule] | None = None, **options: Any) -> STLLRLearner:
    rules = {name: learner_rule(value) for name, value in (layer_rules or {}).items()}
    return STLLRLearner(model, rule=learner_rule(rule), layer_rules=rules, **options)


def measure(
    case: Case,
    rule: Rule,
    *,
    way: str = "b",
    dtype: torch.dtype = torch.float64,
    supervise_last: int | None = None,
    tell_num_steps: bool = True,
    layer_rules: Mapping[str, Rule] | None = None,
    stream: bool = False,
    **options: Any,
) -> Measured:
    """The gradients of an attached network after one sequence.

    Ways: ``"a"`` one backward of the summed loss at the end, ``"b"`` a backward at every supervised step. ``stream``
    has ``learner.stream`` run the steps, as neurons that forget between calls need it.
    """
    model = CaseNet(case.net, dtype=dtype, hidden=case.hidden)
    steps = len(case.xs)
    if supervise_last is not None:
        options |= {"supervise_last": supervise_last}
        options |= {"num_steps": steps} if tell_num_steps else {}
    with attach(model, rule, layer_rules, **options) as learner:
        runner = learner if stream or needs_stream(case) else None
        outputs = run_steps(model, case.xs.to(dtype), case.loss, way, steps - (supervise_last or steps), runner)
        return Measured(gradients(model), outputs)


def needs_stream(case: Case) -> bool:
    return any(node.kind in ("StateLeaky", "LinearLeaky") for node in case.net.nodes)


def one_by_one(model: nn.Module, xs: Tensor) -> Iterator[dict[str, Tensor]]:
    state: Any = None
    for x in xs:
        outputs, state = model(x, state)
        yield outputs


def run_steps(
    model: nn.Module,
    xs: Tensor,
    loss: Callable[[Mapping[str, Tensor], int], Tensor],
    way: str = "b",
    first: int = 0,
    learner: STLLRLearner | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """One sequence; the loss of steps before ``first`` is left out in way (b), and in way (a) left to the learner.

    With a learner the sequence is its stream, which gets the options.
    """
    total: Tensor | float = 0.0
    record: dict[str, list[Tensor]] = {}
    for t, outputs in enumerate(one_by_one(model, xs) if learner is None else learner.stream(xs, **options)):
        for name, value in outputs.items():
            record.setdefault(name, []).append(value.detach())
        if way == "a":
            total = total + loss(outputs, t)
        elif t >= first:
            loss(outputs, t).backward()
    if way == "a":
        assert isinstance(total, Tensor)
        total.backward()
    return {name: torch.stack(values) for name, values in record.items()}


def reference(
    case: Case,
    rule: Rule,
    *,
    supervised: Sequence[Any] | None = None,
    layer_rules: Mapping[str, Rule] | None = None,
    **options: Any,
) -> Result:
    return Oracle(case.net, rule, layer_rules=layer_rules, **options).run(case.xs, case.loss, supervised)


def relative_errors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Norm of the difference over the norm of what is expected, for every parameter."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    errors = {}
    for name, value in expected.items():
        difference = (found[name].double() - value).norm().item()
        size = value.norm().item()
        errors[name] = difference / size if size > 0 else (0.0 if difference == 0 else float("inf"))
    return errors


def assert_equal(found: Measured, expected: Result, tolerance: float, what: str = "") -> float:
    """Outputs first: a flipped spike would make everything after it meaningless."""
    for name, value in expected.outputs.items():
        torch.testing.assert_close(
            found.outputs[name].double(),
            value,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m: f"{what}: {name}: {m}",  # noqa: B023
        )
    errors = relative_errors(found.grads, expected.grads)
    bad = {name: f"{error:.2e}" for name, error in errors.items() if not error <= tolerance}
    assert not bad, f"{what}: relative errors above {tolerance}: {bad}"
    return max(errors.values())
