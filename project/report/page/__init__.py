"""The report of a merge: one HTML file that needs nothing else."""

from project.report.page.document import REPORT, page, write_report
from project.report.page.examples import EXAMPLES, write_examples
from project.report.page.reading import read_merge

__all__ = ["EXAMPLES", "REPORT", "page", "read_merge", "write_examples", "write_report"]
