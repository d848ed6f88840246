"""Seeded stratified splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def stratified_split(labels: npt.ArrayLike, sizes: Sequence[int], seed: int) -> list[npt.NDArray[np.int64]]:
    """Draws disjoint parts of given sizes in which the classes are as frequent as in the whole.

    Args:
        labels: Class of every sample.
        sizes: Number of samples of each part; together at most ``len(labels)``.
        seed: Decides the draw, together with the labels and sizes.

    Returns:
        Sorted indices of each part.
    """
    labels = np.asarray(labels)
    if min(sizes, default=0) < 0 or sum(sizes) > len(labels):
        raise ValueError(f"cannot draw parts of {list(sizes)} samples from {len(labels)}")
    random = np.random.default_rng(seed)
    # Each class is spread evenly over 0 to 1 in a random order; any interval then holds every class in proportion.
    key = np.empty(len(labels))
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        key[members] = (np.arange(len(members)) + random.random()) / len(members)
    order = np.argsort(key, kind="stable")
    ends = np.cumsum([0, *sizes])
    return [np.sort(order[low:high]) for low, high in zip(ends[:-1], ends[1:], strict=True)]
