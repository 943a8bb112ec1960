"""The gradient through time: what it does on its way back, what is wrong, and what helps."""

from recollect.diagnosis.activity import GateActivity
from recollect.diagnosis.comparison import Comparison, compare
from recollect.diagnosis.description.page import Description, describe
from recollect.diagnosis.diagnosis import Diagnosis, diagnose
from recollect.diagnosis.findings import Finding
from recollect.diagnosis.jacobians.lyapunov import LyapunovSpectrum, lyapunov_spectrum
from recollect.diagnosis.jacobians.spectrum import JacobianSpectrum, jacobian_spectrum
from recollect.diagnosis.memory.horizon import MemoryHorizon, Reach, memory_horizon
from recollect.diagnosis.probe.observer import NonFinite, Probe
from recollect.diagnosis.probe.probed import ProbedGate, ProbedLayer, ProbedStep
from recollect.diagnosis.proof import Proof, Trial, prove
from recollect.diagnosis.surface import ErrorSurface, error_surface

__all__ = [
    "Comparison",
    "Description",
    "Diagnosis",
    "ErrorSurface",
    "Finding",
    "GateActivity",
    "JacobianSpectrum",
    "LyapunovSpectrum",
    "MemoryHorizon",
    "NonFinite",
    "Probe",
    "ProbedGate",
    "ProbedLayer",
    "ProbedStep",
    "Proof",
    "Reach",
    "Trial",
    "compare",
    "describe",
    "diagnose",
    "error_surface",
    "jacobian_spectrum",
    "lyapunov_spectrum",
    "memory_horizon",
    "prove",
]
