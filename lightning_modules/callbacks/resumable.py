"""Random numbers go on after a checkpoint as if nothing had happened."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.processes import from_all_processes
from lightning_modules.tasks.random_state import random_state, set_random_state


class ResumeRandomness(Callback):
    """Keeps the states of the random number generators in checkpoints and puts them back when a fit resumes.

    Without it dropout, random encodings and the order of a plain shuffling loader differ after a resume. Each process
    of a distributed run gets its own states back.

    Validation during a fit leaves the generators as they were, since a resumed run may validate once more or less.
    Training therefore does not depend on how often one validates.
    """

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] = []
        self._kept: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The generators' states, one entry per process."""
        return {"processes": from_all_processes(random_state())}  # all pass here when a checkpoint is written

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take in the states of a checkpoint, until the fit begins."""
        self._loaded = state_dict["processes"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the states back."""
        states, self._loaded = self._loaded, []
        if len(states) == trainer.world_size:  # with other processes than before there is nothing to go on with
            set_random_state(states[trainer.global_rank])
        self._kept = random_state()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the states, should validation follow (its loader draws numbers before any hook of validation runs)."""
        self._kept = random_state()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the states of the last training batch back."""
        if self._kept is not None and not trainer.sanity_checking:
            set_random_state(self._kept)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget them."""
        self._kept = None
