"""Data sets whose parts are named sequences: what a checkpoint remembers of them, the folder they lie in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning_modules.data.download import DownloadError, data_root
from lightning_modules.data.events import EventDataError

from .datamodule import FlowDataModule


class SequencesDataModule(FlowDataModule):
    """Named sequences for training, validation and test, in files that lie in a folder.

    One sequence alone can be tested with a checkpoint that was made for the test of several. There is a warning where a
    checkpoint has seen what it is tested on.

    Args:
        path: Folder with the files; None: the set's own folder in ``STLLR_DATA``, else in the cache directory.
        sequences: Names of the sequences of "train", "val" and "test"; only "test" must be there. Validation sequences
            may be training sequences: parts of them.
        **kwargs: See `FlowDataModule`.
    """

    set_name: ClassVar[str]
    folder_name: ClassVar[str]
    layout: ClassVar[str]
    """What a folder with the files looks like, for messages."""
    steps: ClassVar[str]
    """How to get the files by hand."""

    def __init__(self, path: str | Path | None, sequences: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        empty = [part for part, names in sequences.items() if not names]
        if empty:
            raise ValueError(f"name at least one sequence of {empty}; train: null leaves training out")
        seen = {name for part in ("train", "val") for name in sequences.get(part, ())}
        both = sorted(seen & set(sequences["test"]))
        if both:
            raise ValueError(f"sequences {both} are for training or validation, and for the test; take different ones")
        self.path = path
        self.sequences = {part: list(names) for part, names in sequences.items()}

    def folder(self) -> Path:
        """Where the files are.

        Raises:
            EventDataError: There is no such folder.
            DownloadError: None was given, and the files are not where they would be looked for.
        """
        if self.path is not None:
            folder = Path(self.path).expanduser()
            if not folder.is_dir():
                raise EventDataError(f"{folder}: no such folder. {self.layout}")
            return folder
        folder = data_root() / self.folder_name
        if not folder.is_dir():
            raise DownloadError(f"{self.set_name} is not in {folder}, and a program cannot fetch it.\n{self.steps}")
        return folder

    def incomplete(self, missing: Sequence[str], there: Sequence[str]) -> EventDataError:
        """The error for sequences whose files are missing."""
        options = ", ".join(f"--data.{part}" for part in self.sequences)
        return EventDataError(
            f"{self.folder()}: no files of {list(missing)} in this folder; it has {list(there)[:10]}. {self.layout}\n"
            f"Or name the sequences that you have: {options}"
        )

    def report(self) -> dict[str, Any]:
        """Facts to print beside a result: names of data and split, windows of each part, resolution of the test."""
        windows = {part: sum(one.length for one in lanes.sections) for part, lanes in self._datasets.items()}
        size = self.dataset("test").size
        return {"dataset": self.dataset_name, "split": self.split_name, **windows, "resolution": size}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: names of data and split, and the sequences that it has seen."""
        names = super().state_dict()
        return {**names, "seen": ", ".join(self._seen())} if names else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warns where the checkpoint has seen what is tested now, or where a fit goes on with other sequences."""
        seen = set(str(state_dict.get("seen", "")).split(", ")) - {""}
        both = sorted(seen & set(self.sequences["test"]))
        if both:
            warnings.warn(f"the checkpoint was trained or chosen on {both}, which are tested now", stacklevel=2)
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if fitting and seen and seen != set(self._seen()):
            warnings.warn(
                f"the checkpoint was trained on {sorted(seen)}; training goes on with {self._seen()}", stacklevel=2
            )

    def _seen(self) -> list[str]:
        return sorted({name for part in ("train", "val") for name in self.sequences.get(part, ())})
