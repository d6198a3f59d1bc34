"""Stanford Dogs."""

from pathlib import Path

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from project.data.domain import Domain, DomainSet, Sample, class_names, listed, require
from project.errors import DataError

SOURCE = "http://vision.stanford.edu/aditya86/ImageNetDogs"


class StanfordDogs(DomainSet):
    """The domain ``dogs``: 120 breeds, with the data set's own split.

    Args:
        root: Folder that holds ``Images/`` and, in ``lists/`` or beside it, ``train_list.mat`` and ``test_list.mat``;
            never downloaded.
    """

    def __init__(self, root: str | Path = "data/stanford_dogs") -> None:
        self.root = Path(root)

    def read(self) -> list[Domain]:
        """List the pictures.

        Raises:
            DataError: Where files are missing or malformed.
        """
        require(self.root / "Images", "Stanford Dogs (images.tar, lists.tar)", SOURCE, self.root)
        train, test = self._samples("train_list.mat"), self._samples("test_list.mat")
        breeds = class_names([*train, *test], lambda path: path.parent.name.partition("-")[2], self.root)
        return [Domain("dogs", breeds, train, test)]

    def _samples(self, file: str) -> list[Sample]:
        path = self.root / file
        if not path.exists():
            path = require(self.root / "lists" / file, "Stanford Dogs (images.tar, lists.tar)", SOURCE, self.root)
        try:
            table = loadmat(path)
            files, labels = table["file_list"].ravel(), table["labels"].ravel()
        except (MatReadError, KeyError, IndexError, ValueError, NotImplementedError, OSError) as error:
            raise DataError(
                f"{path} is not a list of Stanford Dogs ({error}); fetch it again from {SOURCE}."
            ) from error
        pairs = zip(files, labels, strict=True)
        return [(listed(self.root / "Images", str(name.item()), path), int(label) - 1) for name, label in pairs]
