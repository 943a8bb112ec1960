"""The error surface: the loss over a plane through the present weights, its cliffs, and how training moves on it."""

from recollect.diagnosis.surface.compute import error_surface
from recollect.diagnosis.surface.result import ErrorSurface

__all__ = ["ErrorSurface", "error_surface"]
