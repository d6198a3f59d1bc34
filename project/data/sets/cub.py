"""Caltech-UCSD Birds-200-2011."""

from pathlib import Path

from project.data.domain import Domain, DomainSet
from project.data.sets.tables import read_tables


class CUB(DomainSet):
    """The domain ``cub``: 200 species of birds, with the data set's own split.

    Args:
        root: Folder ``CUB_200_2011`` as unpacked, with ``images.txt`` in it; never downloaded.
    """

    def __init__(self, root: str | Path = "data/CUB_200_2011") -> None:
        self.root = Path(root)

    def read(self) -> list[Domain]:
        """List the pictures.

        Raises:
            DataError: Where files are missing or malformed.
        """
        source = "https://www.vision.caltech.edu/datasets/cub_200_2011"
        return [read_tables(self.root, "cub", source, lambda name: name.partition(".")[2] or name)]
