"""Event data: the embedded `EventDigits`, real N-MNIST recordings, and what turns events into batches of frames."""

from .augment import Augmentation
from .cache import cache_root, cached_arrays
from .datamodule import EventFrameDataModule
from .digits import DigitSettings, generate_digit_events
from .event_camera import CameraSettings, EventCamera
from .event_digits import EventDigits, EventDigitsDataModule, load_digit_events
from .events import EVENT_DTYPE, EventDataError, check_events, make_events
from .frames import Binning, FrameStore, bin_events
from .loading import Batch, EpochSampler, FrameDataset, pad_collate
from .nmnist_subset import NMNISTSubsetDataModule, read_nmnist_subset, write_nmnist_subset
from .packed import PackedEvents
from .splits import stratified_split

__all__ = [
    "EVENT_DTYPE",
    "Augmentation",
    "Batch",
    "Binning",
    "CameraSettings",
    "DigitSettings",
    "EpochSampler",
    "EventCamera",
    "EventDataError",
    "EventDigits",
    "EventDigitsDataModule",
    "EventFrameDataModule",
    "FrameDataset",
    "FrameStore",
    "NMNISTSubsetDataModule",
    "PackedEvents",
    "bin_events",
    "cache_root",
    "cached_arrays",
    "check_events",
    "generate_digit_events",
    "load_digit_events",
    "make_events",
    "pad_collate",
    "read_nmnist_subset",
    "stratified_split",
    "write_nmnist_subset",
]
