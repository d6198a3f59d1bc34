"""Domains of pictures: data sets, how they are split, and the loaders a trainer draws from."""

from project.data.clients import ClientDataModule
from project.data.cub import CUB
from project.data.datamodule import DomainDataModule
from project.data.dogs import StanfordDogs
from project.data.domain import Domain, DomainSet, Sample
from project.data.domainnet import DomainNet
from project.data.folders import ImageFolders, PictureFolder
from project.data.nabirds import NABirds
from project.data.pets import OxfordPets
from project.data.pictures import open_picture
from project.data.shapes import Shapes
from project.data.transforms import evaluation_transform
from project.data.unlabelled import UnlabelledDataModule
from project.data.unsorted import UnsortedDataModule

__all__ = [
    "CUB", "ClientDataModule", "Domain", "DomainDataModule", "DomainNet", "DomainSet", "ImageFolders", "NABirds",
    "OxfordPets", "PictureFolder", "Sample", "Shapes", "StanfordDogs", "UnlabelledDataModule", "UnsortedDataModule",
    "evaluation_transform", "open_picture",
]  # fmt: skip
