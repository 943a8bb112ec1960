"""The gradient through time: what it does on its way back, what is wrong, and what helps."""

from recollect.diagnosis.comparison import Comparison, compare
from recollect.diagnosis.diagnosis import Diagnosis, diagnose
from recollect.diagnosis.findings import Finding
from recollect.diagnosis.proof import Proof, Trial, prove

__all__ = ["Comparison", "Diagnosis", "Finding", "Proof", "Trial", "compare", "diagnose", "prove"]
