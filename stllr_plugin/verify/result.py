"""What a verification found, as data and as a table."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Literal

from stllr_plugin.errors import STLLRError

Verdict = Literal["ok", "FAILED", "refused", "not checked", "no gradient"]


class VerificationError(STLLRError, RuntimeError):
    """A verification failed, or could not be made."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        check: What was compared: "forward", "plain" (the rule without traces, against autograd), "rule" (the rule as it
            is, against the rule written out) or "model".
        name: The edges of a weight (``"fc1->lif1"``), or the name of a parameter or module.
        error: Norm of the difference over the norm of what is expected; None where nothing was compared.
        verdict: "ok"; "FAILED"; "refused" (the learner raises an error on this model); "not checked", with the reason;
            "no gradient" (neither side has one, nor would backpropagation through time).
        advice: What it means and what to do; empty if there is nothing to do.
    """

    check: str
    name: str
    error: float | None
    verdict: Verdict
    advice: str = ""


@dataclass(frozen=True)
class Verification:
    """What :meth:`STLLRLearner.verify` found. ``str(verification)`` is a table.

    Attributes:
        rows: All comparisons.
        dtype: What both sides were computed in, ``"float64"`` or ``"float32"``.
        tolerance: Largest relative error that counts as equal.
        steps: Number of time steps; None if it could not be told.
        notes: What else the reader should know.
    """

    rows: tuple[Row, ...]
    dtype: str
    tolerance: float
    steps: int | None
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[Row, ...]:
        """Rows with a difference, and refusals."""
        return tuple(row for row in self.rows if row.verdict in ("FAILED", "refused"))

    @property
    def unchecked(self) -> tuple[Row, ...]:
        """Rows that could not be compared, each with its reason."""
        return tuple(row for row in self.rows if row.verdict == "not checked")

    @property
    def passed(self) -> bool:
        """Whether nothing failed and something was compared. See :attr:`unchecked` for what was not."""
        return not self.failures and any(row.verdict == "ok" and row.check != "forward" for row in self.rows)

    @property
    def largest_error(self) -> float:
        """The largest relative error of all comparisons."""
        return max((row.error for row in self.rows if row.error is not None), default=0.0)

    def raise_if_failed(self) -> Verification:
        """Returns itself, so that it can stand behind the call.

        Raises:
            VerificationError: With the table, if it did not pass.
        """
        if not self.passed:
            raise VerificationError(str(self))
        return self

    def __str__(self) -> str:
        """The table, then one paragraph for each row that needs attention."""
        steps = "an unknown number of steps" if self.steps is None else f"{self.steps} steps"
        lines = [f"Verification in {self.dtype}, {steps}, tolerance {self.tolerance:g}: {self._summary()}"]
        table = [("check", "what", "error", "verdict")]
        table += [
            (row.check, row.name, "-" if row.error is None else f"{row.error:.1e}", row.verdict) for row in self.rows
        ]
        widths = [max(len(line[column]) for line in table) for column in range(3)]
        lines += [
            "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]])
            for line in table
        ]
        by_advice: dict[str, list[str]] = {}
        for row in self.rows:
            if row.advice:
                by_advice.setdefault(f"{row.verdict}: {row.advice}", []).append(row.name)
        for advice, names in by_advice.items():
            lines += textwrap.wrap(
                f"{', '.join(dict.fromkeys(names))}: {advice}", 110, initial_indent="* ", subsequent_indent="  "
            )
        for note in self.notes:
            lines += textwrap.wrap(note, 110, initial_indent="* ", subsequent_indent="  ")
        return "\n".join(lines)

    def _summary(self) -> str:
        if not self.failures:
            left = f", {len(self.unchecked)} not checked" if self.unchecked else ""
            return ("passed" if self.passed else "nothing could be checked") + left
        return f"{len(self.failures)} of {len(self.rows)} FAILED"
