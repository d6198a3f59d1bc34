"""The report of a merge: one HTML file that needs nothing else."""

from project.report.page.document import REPORT, page, write_report

__all__ = ["REPORT", "page", "write_report"]
