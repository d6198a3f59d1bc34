"""Oxford-IIIT Pets."""

from pathlib import Path

from torchvision.datasets import OxfordIIITPet

from project.data.domain import Domain, DomainSet, Sample, alone, class_names, is_label, listed, read_list, require
from project.errors import DataError

SOURCE = "https://www.robots.ox.ac.uk/~vgg/data/pets"


class OxfordPets(DomainSet):
    """The domain ``pets``: 37 breeds of cats and dogs, with the data set's own split.

    Args:
        root: Folder in which ``oxford-iiit-pet`` lies, or is put by the download.
        download: Fetch the data set, 800 MB, where it is missing.
    """

    def __init__(self, root: str | Path = "data", download: bool = False) -> None:
        self.root = Path(root)
        self.download = download

    def prepare(self) -> None:
        """Download what is missing, if that was asked for.

        Raises:
            DataError: Where the download fails.
        """
        parts = (self.root / "oxford-iiit-pet" / part for part in ("images", "annotations"))
        if not self.download or all(part.is_dir() for part in parts):
            return
        try:
            with alone(self.root):
                OxfordIIITPet(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"Oxford-IIIT Pets could not be downloaded into {self.root} from {SOURCE}: {error}."
            ) from error

    def read(self) -> list[Domain]:
        """List the pictures.

        Raises:
            DataError: Where files are missing or malformed.
        """
        folder = self.root / "oxford-iiit-pet"
        require(folder / "images", "Oxford-IIIT Pets (or set download: true)", SOURCE, folder)
        train, test = (_samples(folder, split) for split in ("trainval", "test"))
        breeds = class_names([*train, *test], lambda path: path.stem.rpartition("_")[0], folder / "annotations")
        return [Domain("pets", breeds, train, test)]


def _samples(folder: Path, split: str) -> list[Sample]:
    path = require(folder / "annotations" / f"{split}.txt", "Oxford-IIIT Pets (or set download: true)", SOURCE, folder)
    samples = []
    for number, line in read_list(path):
        fields = line.split()
        if len(fields) != 4 or not is_label(fields[1]):
            raise DataError(
                f"{path}, line {number}: {line!r} is not of the form '<picture> <class> <species> <breed>'."
            )
        picture = listed(folder / "images", f"{fields[0]}.jpg", f"{path}, line {number}")
        samples.append((picture, int(fields[1]) - 1))
    return samples
