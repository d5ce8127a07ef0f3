"""Looks at this machine: what would keep streamer from running well on it, and what rate it can hold.

    examination   versions, cores, device, kernels, models, disk: one finding each, in a second or two
    rehearsal     a detector's messages out of memory, as often as wanted
    capacity      the pipeline on such messages: frames per second, and which stage limits them

Nothing is changed, no port is opened.
"""

from streamer.doctor.capacity import Capacity, measure
from streamer.doctor.examination import Finding, examine

__all__ = ["Capacity", "Finding", "examine", "measure"]
