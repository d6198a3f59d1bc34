"""How a merge shall be done, and where it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import Literal

import torch

from project.allocation import Budget
from project.errors import ConfigurationError, at_least, one_of
from project.methods import Method
from project.runtime import read_bytes
from project.runtime.saving import check_target
from project.symmetry import Spec

Audit = Literal["stop", "warn", "off"]
Heads = Literal["shared", "domains"]


@dataclass(frozen=True)
class Settings:
    """What to make of the sources.

    Args:
        methods: Merging methods, each of a name of its own.
        budgets: Largest sizes of the students.
        tolerance: Largest relative change of the logits that permuting a group of a source may make.
        without_source: Domains of the data that no source was trained on.
        base: What the sources were fine-tuned from, as the user named it; None where nobody did.
        statistics: File of what calibration leaves behind, read if it exists, else written; None for none.
        memory: Most memory to take beside what the process holds before, such as '16 GB'; None for what is free.
        keep_every: Seconds, at least, between two copies of unfinished statistics.
        audit: What to do where a source's running statistics fit clearly better to another reading of it: ``stop``,
            ``warn``, or do not look (``off``).
        heads: Of shared classes: the one head of all domains (``shared``), or one for each beside it (``domains``).

    Raises:
        ConfigurationError: If a value is impossible, no method is named, or two have one name.
    """

    methods: Sequence[Method]
    budgets: Sequence[Budget]
    tolerance: float = 1e-3
    without_source: Sequence[str] = ()
    base: str | None = None
    statistics: Path | None = None
    memory: str | None = None
    keep_every: float = 60.0
    audit: Audit = "stop"
    heads: Heads = "shared"

    def __post_init__(self) -> None:
        """Refuse what cannot work, before any file is read."""
        if not self.methods:
            raise ConfigurationError("methods is empty; at least one is needed.")
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ConfigurationError(
                f"methods holds the names {', '.join(names)}; give each a name of its own, as its label."
            )
        if self.memory is not None:
            read_bytes(self.memory)
        if self.statistics is not None and not isfile(self.statistics):
            check_target(self.statistics, f"statistics is {self.statistics}")
        one_of(Audit, audit=self.audit)
        one_of(Heads, heads=self.heads)
        at_least(0, tolerance=self.tolerance, keep_every=self.keep_every)

    def needs(self, spec: Spec) -> frozenset[str]:
        """Kinds of moments that the methods need together for sources of a spec, and whether they need the pictures."""
        return frozenset().union(*(method.needed(spec, self.budgets) for method in self.methods))

    @property
    def labelled(self) -> bool:
        """Whether a method reads the labels of the calibration pictures."""
        return any(method.labelled for method in self.methods)


@dataclass(frozen=True)
class Place:
    """Where a merge runs.

    Args:
        folder: The run's folder, in which unfinished work is kept and what does not fit into memory waits; None for
            nowhere.
        device: Where the networks are going to be.
        processes: Processes that share the calibration pictures.
        sharing: Processes that share the memory.
        precision: In which the sources run, as Lightning's trainer names it.
        students: Folder that the students are going to be written to; None for none.
        beside: Processes that share the disk of the folder, at least.
        scored: Most pictures in a batch that networks are scored on; 0 where none are.
    """

    folder: Path | None = None
    device: torch.device | str = "cpu"
    processes: int = 1
    sharing: int = 1
    precision: str = "32-true"
    students: Path | None = None
    beside: int = 1
    scored: int = 0
