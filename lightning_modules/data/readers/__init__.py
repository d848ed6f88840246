"""Readers of the file formats in which event-camera data sets are distributed.

Each returns a structured array of ``EVENT_DTYPE`` and refuses a file that is cut off, damaged or of another format, by
name. Events are returned as recorded: neither the order of the time stamps nor the coordinates are checked.
"""

from .aedat2 import read_dvs128_aedat2
from .aedat3 import read_aedat3
from .aedat4 import read_aedat4
from .atis import read_atis_bin
from .dat import read_dat

__all__ = ["read_aedat3", "read_aedat4", "read_atis_bin", "read_dat", "read_dvs128_aedat2"]
