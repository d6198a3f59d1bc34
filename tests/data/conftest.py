"""Small trees of pictures in the layouts of real data sets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from project.data import ImageFolders

Draw = Callable[..., Path]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Write a small picture of noise, told apart by its number, at a path below ``tmp_path``."""
    count = iter(range(10**6))

    def write(name: str | Path, width: int = 9, height: int = 8) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(next(count)).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
        return path

    return write


@pytest.fixture
def folders(draw: Draw, tmp_path: Path) -> Callable[..., ImageFolders]:
    """Make domains in folders: for every domain, its classes and how many pictures each has."""

    def make(trees: dict[str, dict[str, int]], **options: object) -> ImageFolders:
        for domain, classes in trees.items():
            for name, count in classes.items():
                for index in range(count):
                    draw(f"folders/{domain}/{name}/{index}.png")
        return ImageFolders(tmp_path / "folders", **options)  # type: ignore[arg-type]

    return make
