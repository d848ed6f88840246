"""Event data: the embedded `EventDigits`, real N-MNIST recordings, and what turns events into batches of frames."""

from .augment import Augmentation
from .cache import cache_root, cached_arrays
from .cifar10_dvs import CIFAR10DVSDataModule
from .datamodule import EventFrameDataModule
from .digits import DigitSettings, generate_digit_events
from .download import DownloadError
from .dvs_gesture import DVSGestureDataModule
from .event_camera import CameraSettings, EventCamera
from .event_digits import EventDigits, EventDigitsDataModule, load_digit_events
from .events import EVENT_DTYPE, EventDataError, check_events, make_events
from .frame_cache import CacheError
from .frames import Binning, FrameStore, bin_events
from .loading import Batch, EpochSampler, FrameDataset, pad_collate
from .ncaltech101 import NCaltech101DataModule
from .ncars import NCARSDataModule
from .nmnist import NMNISTDataModule
from .nmnist_subset import NMNISTSubsetDataModule, read_nmnist_subset, write_nmnist_subset
from .packed import PackedEvents
from .recordings import RecordingsDataModule
from .splits import stratified_split

__all__ = [
    "EVENT_DTYPE",
    "Augmentation",
    "Batch",
    "Binning",
    "CIFAR10DVSDataModule",
    "CacheError",
    "CameraSettings",
    "DVSGestureDataModule",
    "DigitSettings",
    "DownloadError",
    "EpochSampler",
    "EventCamera",
    "EventDataError",
    "EventDigits",
    "EventDigitsDataModule",
    "EventFrameDataModule",
    "FrameDataset",
    "FrameStore",
    "NCARSDataModule",
    "NCaltech101DataModule",
    "NMNISTDataModule",
    "NMNISTSubsetDataModule",
    "PackedEvents",
    "RecordingsDataModule",
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
