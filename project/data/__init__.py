"""Domains of pictures: data sets, how they are split, and the loaders a trainer draws from.

The data modules are Lightning's, which is imported when one of them is first asked for and not before.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from project.data.domain import Domain, DomainSet, Sample
from project.data.domains import Domains
from project.data.folders import ImageFolders, PictureFolder
from project.data.opening import open_picture
from project.data.sets.cub import CUB
from project.data.sets.dogs import StanfordDogs
from project.data.sets.domainnet import DomainNet
from project.data.sets.nabirds import NABirds
from project.data.sets.pets import OxfordPets
from project.data.shapes import Shapes
from project.data.transforms import evaluation_transform

if TYPE_CHECKING:
    from project.data.clients import ClientDataModule
    from project.data.datamodule import DomainDataModule
    from project.data.population import PopulationDataModule
    from project.data.unlabelled import UnlabelledDataModule
    from project.data.unsorted import UnsortedDataModule

__all__ = [
    "CUB", "ClientDataModule", "Domain", "DomainDataModule", "DomainNet", "DomainSet", "Domains", "ImageFolders",
    "NABirds", "OxfordPets", "PictureFolder", "PopulationDataModule", "Sample", "Shapes", "StanfordDogs",
    "UnlabelledDataModule", "UnsortedDataModule", "evaluation_transform", "open_picture",
]  # fmt: skip

DATA_MODULES = {
    "ClientDataModule": "clients",
    "DomainDataModule": "datamodule",
    "PopulationDataModule": "population",
    "UnlabelledDataModule": "unlabelled",
    "UnsortedDataModule": "unsorted",
}


def __getattr__(name: str) -> Any:
    """A data module, imported now."""
    if name not in DATA_MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{DATA_MODULES[name]}"), name)
