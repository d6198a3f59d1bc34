"""One merge from its sources to its students, in plain torch."""

from project.merging.sources import SourceFile

__all__ = ["SourceFile"]
