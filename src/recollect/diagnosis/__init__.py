"""The gradient through time: what it does on its way back, what is wrong, and what helps."""

from recollect.diagnosis.diagnosis import Diagnosis, diagnose
from recollect.diagnosis.findings import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
