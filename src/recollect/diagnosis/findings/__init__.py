"""What can be wrong with a recurrent network: a rule for each fault, with its evidence and its remedy.

A rule is a function that takes a `Case` and returns the findings that it makes. `catalogue` lists them all.
"""

from recollect.diagnosis.findings.case import Case
from recollect.diagnosis.findings.catalogue import judge
from recollect.diagnosis.findings.finding import SEVERITIES, Finding

__all__ = ["SEVERITIES", "Case", "Finding", "judge"]
