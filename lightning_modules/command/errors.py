"""Errors while a command runs: which of them are told in a few words, and how."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_modules.data import CacheError, DownloadError, EventDataError
from stllr_plugin.errors import STLLRError

TRACEBACK = "STLLR_TRACEBACK"
"""Environment variable that asks for the traceback of every error."""

OURS = ("lightning_modules", "stllr_plugin")
_TRAINER = ("lightning.pytorch.trainer", "lightning.pytorch.accelerators", "lightning.fabric")
_SHAPES = re.compile(
    r"shapes cannot be multiplied|to have \d+ channels|expected input\[|size of tensor a .* must match"
)
_WHERE = "lightning_logs/version_*/checkpoints/*.ckpt"


def plain_words(error: BaseException) -> str | None:
    """What to tell the user in place of a traceback; None for errors that may be a defect of the software."""
    if os.environ.get(TRACEBACK):
        return None
    if isinstance(error, MisconfigurationException) and "backend found" in str(error):
        return f"trainer.accelerator: {error} With auto, or without this option, it is what this computer has."
    if isinstance(error, (EventDataError, DownloadError, CacheError, STLLRError, MisconfigurationException)):
        return str(error)
    if ours := our_error(error, OURS):
        return str(ours)
    place = _raised_in(error)
    if isinstance(error, (ValueError, TypeError)) and place.startswith(_TRAINER):
        return f"trainer: {error}"
    if isinstance(error, ValueError) and place.startswith("torch.optim"):
        return f"optimizer or lr_scheduler: {error}"
    if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
        lines = [line.strip() for line in str(error).splitlines()[1:4]]
        return (
            "The checkpoint is of another network than this configuration's:\n  "
            + "\n  ".join(lines)
            + "\nThe configuration that it was trained with is config.yaml in the folder of its logs."
        )
    if isinstance(error, RuntimeError) and _SHAPES.search(str(error)):
        return (
            f"The frames do not fit the network: {error}\n"
            "Compare the network's options (model.network.init_args: size, in_channels or in_features) with the data."
        )
    return None


def our_error(error: BaseException, packages: tuple[str, ...]) -> BaseException | None:
    """The error at the root of a chain, if it is a ValueError that one of these packages raised on purpose."""
    root = _root(error)
    ours = _raised_in(root).partition(".")[0] in packages
    return root if ours and isinstance(root, (ValueError, FileNotFoundError)) else None


def check_checkpoint(path: str | None, logs: str | None) -> str:
    """What is wrong with a ``--ckpt_path``; nothing if it may be read.

    Args:
        path: The option's value. Words of Lightning ("best", "last") and addresses are left to Lightning.
        logs: Folder of the logs, in which to look for checkpoints to suggest.
    """
    if path is None or path in ("best", "last", "hpc", "registry") or ":" in path[2:] or Path(path).is_dir():
        return ""
    if not Path(path).is_file():
        found = sorted(Path(logs or ".").glob(_WHERE), key=lambda file: file.stat().st_mtime, reverse=True)
        there = f"\nThe newest ones: {', '.join(map(str, found[:3]))}" if found else ""
        return f"There is no checkpoint {path}.{there}"
    if not zipfile.is_zipfile(path):
        return f"{path} is no checkpoint, or only a part of one. Checkpoints are .ckpt files beside the logs: {_WHERE}"
    return ""


def _root(error: BaseException) -> BaseException:
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return error


def _raised_in(error: BaseException) -> str:
    """Name of the module that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""
