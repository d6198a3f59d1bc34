"""Tables and figures of a merge, for the terminal, for files and for TensorBoard."""

from project.report.connectivity import connectivity, connectivity_figure
from project.report.figures import accuracy_figure, layer_figure
from project.report.groups import group_table
from project.report.results import Results, Row
from project.report.tensorboard import write_correlations, write_fits, write_results, write_variances

__all__ = [
    "Results", "Row", "accuracy_figure", "connectivity", "connectivity_figure", "group_table", "layer_figure",
    "write_correlations", "write_fits", "write_results", "write_variances",
]  # fmt: skip
