"""Writes docs/support.md from the catalogue: ``python -m tests.support.write``, from the root of a checkout."""

from __future__ import annotations

from pathlib import Path

from tests.support.catalogue import TABLES
from tests.support.entry import COLUMNS, EXACT, Entry

PATH = Path(__file__).parents[2] / "docs" / "support.md"

HEAD = """\
# What is supported

Written by `python -m tests.support.write` from the catalogue in `tests/support/`; do not edit it here. The tests in
that folder check every mark below on a small network around the class, that the rows are all of what the installed
libraries export, that what is refused is refused for that reason, and that this page is up to date.

- **exact**: the gradients are those of the [rule](rule.md) as it is defined, within rounding. Cells, sequence modules
  and nodes are compared with an oracle that shares no code with the package (the cases named last in a row, in
  `tests/cases` and `tests/spikingjelly`); containers with a network of the same parameters that does without them.
- **approximate**: it has parameters that are no synapses of the rule. They get the gradient of the same time step,
  without a trace. All else in the network is exact.
- **refused**: attaching, or running it, raises an error that says why. Such a module can be left to ordinary
  gradients with `exclude=`.
- **left alone**: no part of what is trained.

What recurs in the notes:

- *two time constants*: exact for the rule as it is defined, with one trace that decays by `lambda_pre`. How an input
  acts on the membrane of such a neuron has a second time constant, that of its synaptic current.
- *run by `learner.stream`*: the module takes whole sequences; the stream feeds it one time step at a time.
- *same-step gradient*: that of plain autograd within the time step.

| column | what the mark stands for |
|---|---|
| per-step backward | the graph is that of one step and does not grow; the gradient is that of one backward pass |
| one backward | the gradient is that of a backward pass at each step |
| DDP | two processes on half a batch each, one exchange a sequence: the gradient of the whole batch |
| autocast | bfloat16 on the CPU: gradients and traces are finite and float32 |
| torch.compile | compiled after attaching (backend "aot_eager"), the gradient of eager mode |
| deepcopy | a copy evaluates equally, refuses to train, and after `remove_hooks` trains as one never attached |

`✓` is checked by the default tests, `✓*` by `make slow` only. `–` is not claimed, for the reason in the notes.
"""


def cell(entry: Entry, column: str) -> str:
    """The mark of one cell."""
    if entry.build is None or entry.runs or column in entry.without:
        return "–"
    return "✓*" if column == "torch.compile" and not entry.quick else "✓"


def notes(entry: Entry) -> str:
    """The last column: reason, remarks, columns that are not claimed, cases of the oracle."""
    parts = [entry.why, entry.note]
    parts += [f"{column}: {reason}" for column, reason in entry.without.items()]
    if entry.cases:
        parts.append("oracle: " + ", ".join(f"`{case}`" for case in entry.cases))
    if entry.twin is not None:
        parts.append("compared with a network that does without it")
    return ". ".join(part for part in parts if part).replace("|", "\\|")


def row(entry: Entry) -> str:
    """One line of a table."""
    name = entry.name if not entry.name[0].isalpha() or " " in entry.name else f"`{entry.name}`"
    marks = " | ".join(cell(entry, column) for column in COLUMNS)
    support = entry.support if entry.support == EXACT else f"**{entry.support}**"
    return f"| {name} | {support} | {marks} | {notes(entry)} |"


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, entries in TABLES.items():
        first = "option" if title.startswith("Options") else "class"
        parts.append(f"## {title}\n")
        parts.append(f"| {first} | support | {' | '.join(COLUMNS)} | notes |")
        parts.append("|---|---|" + "---|" * len(COLUMNS) + "---|")
        parts += [row(entry) for entry in entries]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
