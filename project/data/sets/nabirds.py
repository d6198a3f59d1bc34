"""NABirds, by the Cornell Lab of Ornithology."""

from pathlib import Path

from project.data.domain import Domain, DomainSet
from project.data.sets.tables import read_tables


class NABirds(DomainSet):
    """The domain ``nabirds``: the 555 visual categories at the leaves of its hierarchy, with the data set's own split.

    Identifiers in ``classes.txt`` run over the whole hierarchy; those that pictures have are the visual categories,
    and they are numbered from zero.

    Args:
        root: Folder ``nabirds`` as unpacked, with ``images.txt`` in it; never downloaded: its terms must be accepted.
    """

    def __init__(self, root: str | Path = "data/nabirds") -> None:
        self.root = Path(root)

    def read(self) -> list[Domain]:
        """List the pictures.

        Raises:
            DataError: Where files are missing or malformed.
        """
        return [read_tables(self.root, "nabirds", "https://dl.allaboutbirds.org/nabirds", str)]
