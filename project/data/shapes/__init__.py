"""The data set that comes with the project."""

from project.data.shapes.dataset import Shapes

__all__ = ["Shapes"]
