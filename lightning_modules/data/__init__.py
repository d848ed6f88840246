"""Data: event cameras, spikes of sound, electrocardiograms and images, and what turns them into batches of frames."""

from .augment import Augmentation
from .cache import cache_root, cached_arrays
from .cifar10_dvs import CIFAR10DVSDataModule
from .cochlea import Cochlea
from .datamodule import EventFrameDataModule
from .digits import DigitSettings, generate_digit_events
from .download import DownloadError
from .dvs_gesture import DVSGestureDataModule
from .event_camera import CameraSettings, EventCamera
from .event_digits import EventDigits, EventDigitsDataModule, load_digit_events
from .events import EVENT_DTYPE, EventDataError, check_events, make_events
from .frame_cache import CacheError
from .frames import Binning, FrameStore, bin_events
from .fsdd import FSDDDataModule, SpokenDigits, convert_fsdd, read_fsdd
from .loading import Batch, EpochSampler, FrameDataset, pad_collate
from .ncaltech101 import NCaltech101DataModule
from .ncars import NCARSDataModule
from .nmnist import NMNISTDataModule
from .nmnist_subset import NMNISTSubsetDataModule, read_nmnist_subset, write_nmnist_subset
from .packed import PackedEvents
from .qtdb import QTDBDataModule, read_qtdb, write_qtdb
from .recordings import RecordingsDataModule
from .sequences import SequenceDataModule, pad_collate_steps
from .shd import SHDDataModule, SpikeAudioDataModule, SSCDataModule
from .spike_files import SpikeFile, write_spike_file
from .splits import stratified_split
from .static import CIFAR10DataModule, CIFAR100DataModule

__all__ = [
    "EVENT_DTYPE",
    "Augmentation",
    "Batch",
    "Binning",
    "CIFAR10DVSDataModule",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CacheError",
    "CameraSettings",
    "Cochlea",
    "DVSGestureDataModule",
    "DigitSettings",
    "DownloadError",
    "EpochSampler",
    "EventCamera",
    "EventDataError",
    "EventDigits",
    "EventDigitsDataModule",
    "EventFrameDataModule",
    "FSDDDataModule",
    "FrameDataset",
    "FrameStore",
    "NCARSDataModule",
    "NCaltech101DataModule",
    "NMNISTDataModule",
    "NMNISTSubsetDataModule",
    "PackedEvents",
    "QTDBDataModule",
    "RecordingsDataModule",
    "SHDDataModule",
    "SSCDataModule",
    "SequenceDataModule",
    "SpikeAudioDataModule",
    "SpikeFile",
    "SpokenDigits",
    "bin_events",
    "cache_root",
    "cached_arrays",
    "check_events",
    "convert_fsdd",
    "generate_digit_events",
    "load_digit_events",
    "make_events",
    "pad_collate",
    "pad_collate_steps",
    "read_fsdd",
    "read_nmnist_subset",
    "read_qtdb",
    "stratified_split",
    "write_nmnist_subset",
    "write_qtdb",
    "write_spike_file",
]
