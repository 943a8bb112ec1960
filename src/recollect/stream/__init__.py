"""Models on live streams: one step at a time, in microseconds, without torch."""

from recollect.stream.stepper import Stepper

__all__ = ["Stepper"]
