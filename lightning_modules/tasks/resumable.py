"""A loader of training batches that a checkpoint can hold in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from lightning_modules.tasks.random_state import random_state, set_random_state


class ResumableLoader(DataLoader[Any]):
    """A ``DataLoader`` with ``state_dict`` and ``load_state_dict``, which Lightning saves and loads with a checkpoint.

    A plain loader starts the epoch from its beginning when a fit resumes: the first batches are trained on twice, the
    last ones not at all. This one begins the epoch with the random numbers of the first time, reads the batches that
    were trained on, drops them, and goes on with the next one. Reading them again costs time but no training, and
    leaves samplers, augmentation and worker processes as they were.

    It works for loaders of known length and for any sampler whose order follows from the random number generators or
    from ``set_epoch``. With ``persistent_workers`` a data set that draws random numbers in its workers is not resumed
    exactly after the first epoch; one that derives them from seed, epoch and sample is.

    Arguments are those of ``DataLoader``.
    """

    _served = 0
    _began: dict[str, Any] | None = None
    _resume: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Number of batches served in this epoch, and the random numbers at its beginning and now."""
        return {"served": self._served, "began": self._began, "now": random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next epoch after the batches that the state says were served."""
        self._resume = dict(state_dict)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches of an epoch; after ``load_state_dict`` the remaining ones.

        A generator, so that an iterator that nobody reads from (Lightning may make one) draws no random numbers.
        """
        resume, self._resume = self._resume, None
        if resume is not None and resume["began"] is not None and resume["served"] < len(self):
            self._began, self._served = resume["began"], int(resume["served"])
            set_random_state(resume["began"])
        else:
            if resume is not None:  # the state was taken after the last batch of an epoch: the next one begins
                set_random_state(resume["now"])
            self._began, self._served = random_state(), 0
        batches: Iterator[Any] = super().__iter__()
        if self._served:
            for _ in range(self._served):
                next(batches)
            assert resume is not None
            set_random_state(resume["now"])
        for batch in batches:
            self._served += 1
            yield batch
