"""PNG pictures: true flow with 16 bits per channel, and grey pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_modules.data.events import EventDataError

_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601


def read_png16(path: Path) -> npt.NDArray[np.uint16]:
    """Reads a picture with three channels of 16 bits: [H, W, 3].

    Raises:
        FileNotFoundError: There is no such file.
        EventDataError: It is no such picture, or is cut off or damaged. The message names the file.
    """
    picture = _decoded(path)
    if picture.dtype != np.uint16 or picture.ndim != 3 or picture.shape[2] != 3:
        raise EventDataError(
            f"{path}: expected a PNG of three channels with 16 bits, found {picture.dtype} {picture.shape}"
        )
    return picture


def read_grey_png(path: Path) -> npt.NDArray[np.float32]:
    """Reads a picture of 8 bits as grey levels [H, W] in [0, 1]; colours are weighted as usual.

    Raises:
        FileNotFoundError: There is no such file.
        EventDataError: It is no such picture, or is cut off or damaged. The message names the file.
    """
    picture = _decoded(path)
    if picture.dtype != np.uint8:
        raise EventDataError(f"{path}: expected a PNG of 8 bits, found {picture.dtype}")
    if picture.ndim == 3:
        picture = picture[..., :3] @ _GREY if picture.shape[2] >= 3 else picture[..., 0]
    return np.asarray(picture / np.float32(255), np.float32)


def _decoded(path: Path) -> npt.NDArray[Any]:
    try:
        import imagecodecs  # Pillow has no colours of 16 bits
    except ImportError as error:
        raise ImportError(f'{path}: PNG files need imagecodecs: pip install "stllr-plugin[data]"') from error
    try:
        return np.asarray(imagecodecs.png_decode(path.read_bytes()))
    except (RuntimeError, ValueError) as error:
        raise EventDataError(f"{path}: no PNG picture, or cut off or damaged ({error})") from error
