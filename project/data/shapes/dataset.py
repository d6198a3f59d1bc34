"""Shapes, the data set that comes with the project: drawn on demand, kept in DomainNet's layout."""

import json
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from project.data.domain import Domain, DomainSet, alone, choose
from project.data.sets.domainnet import DomainNet
from project.data.shapes.render import render
from project.data.shapes.scene import OBJECTS
from project.data.shapes.styles import STYLES
from project.errors import ConfigurationError, DataError, seeds, whole
from project.models.preprocessing import LARGEST_SIDE
from project.runtime.saving import atomic_path, atomic_text

RECIPE = 1
"""Counts the changes to how pictures are drawn; pictures drawn by another recipe are not mixed in."""


class Shapes(DomainSet):
    """Pictures of twelve kinds of things in four domains, drawn by the computer: nothing to download, small, not easy.

    The domains are ``clipart``, ``painting``, ``photo`` and ``sketch``. A picture depends on the seed, its domain, its
    class and its number alone, so data sets of different extent share pictures. Drawing takes about 3 ms a picture.

    Args:
        root: Folder into which pictures and lists are written.
        size: Side of a picture in pixels.
        train_per_class: Training pictures of each class in each domain.
        test_per_class: Test pictures of each class in each domain.
        seed: Seed of all pictures.
        domains: Which domains, in which order; all, sorted by name, when not given.
    """

    def __init__(
        self,
        root: str | Path = "data/shapes",
        size: int = 40,
        train_per_class: int = 120,
        test_per_class: int = 40,
        seed: int = 0,
        domains: list[str] | None = None,
    ) -> None:
        whole(1, LARGEST_SIDE, size=size)
        whole(1, train_per_class=train_per_class, test_per_class=test_per_class)
        seeds(seed=seed)
        self.root = Path(root)
        self.size = size
        self.train_per_class = train_per_class
        self.test_per_class = test_per_class
        self.seed = seed
        self.domains = choose(domains, list(STYLES))

    def prepare(self) -> None:
        """Draw the domains that are not there yet; one that was interrupted is drawn anew.

        Raises:
            ConfigurationError: Where the root holds pictures drawn with other parameters.
            DataError: Where the root holds list files that Shapes did not write, or cannot be locked.
        """
        if all([self._is_drawn(domain) for domain in self.domains]):  # every marker is looked at
            return
        with alone(self.root):
            self._draw_missing()

    def _draw_missing(self) -> None:
        """Draw what nobody has drawn meanwhile."""
        missing = [domain for domain in self.domains if not self._is_drawn(domain)]
        total = len(missing) * len(OBJECTS) * (self.train_per_class + self.test_per_class)
        with tqdm(
            total=total, desc=f"Drawing Shapes into {self.root}", unit="picture", disable=None if total else True
        ) as progress:
            for domain in missing:
                for _ in self._draw(domain):
                    progress.update()

    def read(self) -> list[Domain]:
        """List the pictures of every domain.

        Raises:
            ConfigurationError: Where the root holds pictures drawn with other parameters.
            DataError: Where pictures have not been drawn yet.
        """
        for domain in self.domains:
            if not self._is_drawn(domain):
                raise DataError(f"{self.root} holds no complete domain {domain} of Shapes; call prepare() to draw it.")
        return DomainNet(self.root, self.domains).read()

    @property
    def _parameters(self) -> dict[str, int]:
        names = ("size", "train_per_class", "test_per_class", "seed")
        return {"recipe": RECIPE, **{name: getattr(self, name) for name in names}}

    def _marker(self, domain: str) -> Path:
        return self.root / f"{domain}_shapes.json"

    def _is_drawn(self, domain: str) -> bool:
        """Whether a domain is there, complete and drawn with the same parameters."""
        marker = self._marker(domain)
        if not marker.exists():
            foreign = self.root / f"{domain}_train.txt"
            if foreign.exists():
                raise DataError(f"{foreign} was not written by Shapes and would be replaced; choose another root.")
            return False
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
            complete, parameters = found["complete"], found["parameters"]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{marker} was not written by Shapes; remove it, or choose another root.") from error
        if not complete:
            return False
        if parameters != self._parameters:
            raise ConfigurationError(
                f"root is {str(self.root)!r}, which holds {domain} drawn with {parameters}, but "
                f"{self._parameters} are asked for; choose another root or remove that one."
            )
        return True

    def _draw(self, domain: str) -> Iterator[Path]:
        """Write pictures, then lists, then the mark that all is there."""
        self._mark(domain, complete=False)
        lists: dict[str, list[str]] = {"train": [], "test": []}
        for label, name in enumerate(OBJECTS):
            for index in range(self.train_per_class + self.test_per_class):
                picture = f"{domain}/{name}/{name}_{index:06d}.png"
                with atomic_path(self.root / picture, lasting=False) as draft:
                    render(domain, name, index, self.size, self.seed).save(draft, format="PNG")
                lists["train" if index < self.train_per_class else "test"].append(f"{picture} {label}\n")
                yield self.root / picture
        for split, lines in lists.items():
            atomic_text("".join(lines), self.root / f"{domain}_{split}.txt")
        self._mark(domain, complete=True)

    def _mark(self, domain: str, complete: bool) -> None:
        atomic_text(json.dumps({"parameters": self._parameters, "complete": complete}), self._marker(domain))
