"""A diagnosis to read: in a terminal, and as one HTML file that needs nothing else."""

from recollect.diagnosis.report.gradient import HOW_TO_READ, figure
from recollect.diagnosis.report.html import to_html
from recollect.diagnosis.report.page import page, table
from recollect.diagnosis.report.text import sparkline, to_text

__all__ = ["HOW_TO_READ", "figure", "page", "sparkline", "table", "to_html", "to_text"]
