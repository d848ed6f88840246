"""Grey textures for simulated scenes: noise, and the pictures that ship inside scikit-image."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

FloatArray = npt.NDArray[np.float32]

PICTURES = {
    "train": ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "immunohistochemistry", "rocket"),
    "val": ("coins", "text"),
    "test": ("gravel", "hubble_deep_field", "page", "retina"),
}
"""Names of scikit-image's pictures of each part; none of them is downloaded."""

_PLACES = 4  # of which the one with the most contrast is taken
_LUMINANCE = np.array([0.2125, 0.7154, 0.0721])


def noise_texture(random: np.random.Generator, side: int) -> FloatArray:
    """A square of noise with values in [0, 1]: clouds of a random roughness, or patches with soft edges of them.

    It repeats without a seam.
    """
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1.0
    sigma = random.uniform(0.6, 1.0)  # pixels; keeps what a pixel cannot show out
    white = np.fft.rfft2(random.standard_normal((side, side)))
    slope, patches = random.uniform(0.8, 1.5), random.random() < 0.5
    scale = 1 / random.uniform(10, 30)  # clouds much larger than this hardly vary within a picture
    spectrum = white * (frequency**2 + scale**2) ** (-slope / 2) * np.exp(-2 * (np.pi * sigma * frequency) ** 2)
    spectrum[0, 0] = 0
    clouds = np.fft.irfft2(spectrum, (side, side))
    clouds /= clouds.std()
    if patches:
        levels = random.uniform(1.0, 2.5) * clouds
        clouds = np.floor(levels) + 1 / (1 + np.exp(-12 * (levels - np.floor(levels) - 0.5)))
        clouds = (clouds - clouds.mean()) / clouds.std()
    return np.clip(0.5 + 0.25 * clouds, 0, 1).astype(np.float32)


def picture_texture(random: np.random.Generator, side: int, part: str) -> FloatArray:
    """A square of a picture of one part of `PICTURES`, at a random place and scale, turned and mirrored at random.

    Raises:
        ImportError: scikit-image is not installed.
    """
    picture = _picture(PICTURES[part][int(random.integers(len(PICTURES[part])))])
    squares = [_random_square(random, picture, side) for _ in range(_PLACES)]
    square = max(squares, key=_contrast)  # not the sky: nothing can be seen moving there
    square = np.rot90(square, int(random.integers(4)))
    if random.random() < 0.5:
        square = square[:, ::-1]
    return np.ascontiguousarray(square)


def _random_square(random: np.random.Generator, picture: FloatArray, side: int) -> FloatArray:
    largest = min(picture.shape) / side
    wide = int(random.uniform(min(1.0, largest), min(2.0, largest)) * side)
    top, left = (int(random.integers(0, length - wide + 1)) for length in picture.shape)
    image = torch.from_numpy(picture[top : top + wide, left : left + wide])[None, None]
    square = functional.interpolate(image, (side, side), mode="bilinear", antialias=True)[0, 0].numpy()
    low, high = np.quantile(square, (0.01, 0.99))
    stretched: FloatArray = np.clip((square - low) / max(high - low, 0.1), 0, 1).astype(np.float32)
    return stretched


def _contrast(square: FloatArray) -> float:
    """Median slope: high where there is something to see everywhere."""
    return float(np.median(np.hypot(*np.gradient(square))))


@functools.cache
def _picture(name: str) -> FloatArray:
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(
            "the pictures of the simulated scenes come with scikit-image, which is not installed: "
            "pip install 'stllr-plugin[data]', or take noise alone (pictures=False)"
        ) from error
    picture: npt.NDArray[np.uint8] = getattr(data, name)()
    grey = picture @ _LUMINANCE if picture.ndim == 3 else picture
    return np.asarray(grey / 255, np.float32)
