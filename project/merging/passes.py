"""What is done with each batch of a pass over the calibration pictures, whoever brings the batches.

A pass is started, stepped through its batches, and ended; one that broke off is abandoned and may be started again.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from project.errors import ConfigurationError
from project.merging.calibration import Gathering
from project.merging.memory_plan import Planner
from project.merging.own_heads import Lesson, teach_heads
from project.methods import Merged
from project.models import MultiHead
from project.runtime import World, tell, waiting
from project.runtime.spill import Waiting
from project.student import Reestimation, mixed

Batch = Mapping[str, tuple[Tensor, Tensor | None]]
"""Domain -> pictures (batch, channels, height, width) and, where there are any, their labels (batch,)."""


def read_batch(batch: object, domains: Collection[str], labelled: bool = False) -> Batch:
    """The pictures and labels of a batch, domains that have no more left out.

    Args:
        batch: domain -> pictures, or these and their labels, or None.
        domains: The calibration domains.
        labelled: Whether labels are read.

    Raises:
        ConfigurationError: If it maps no domains, or others, or lacks labels that are read.
    """
    if not isinstance(batch, Mapping):
        raise ConfigurationError(
            "calibration batches must map domains to pictures; validate on the data module's calibration_dataloader()."
        )
    parts = {domain: part for domain, part in batch.items() if part is not None}
    if unknown := [domain for domain in parts if domain not in domains]:
        raise ConfigurationError(
            f"a calibration batch holds pictures of {unknown[0]!r}; allowed: {', '.join(domains) or 'none'}."
        )
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    for domain, part in parts.items():
        pictures, labels = (part, None) if isinstance(part, Tensor) else part if _is_pair(part) else (None, None)
        if pictures is None:
            raise ConfigurationError(
                f"a calibration batch holds a {type(part).__name__} for {domain!r}; allowed: pictures, or a pair of "
                f"these and their labels."
            )
        found[domain] = pictures, labels
        if labelled and (labels is None or labels.shape != (len(pictures),) or labels.is_floating_point()):
            what = "without labels" if labels is None else f"with labels of shape {tuple(labels.shape)}, {labels.dtype}"
            raise ConfigurationError(
                f"a calibration batch holds {len(pictures)} pictures of {domain!r} {what}, but a method reads the "
                f"class of each; validate on the data module's calibration_dataloader(module.labelled)."
            )
    return found


def _is_pair(part: object) -> bool:
    """Whether something is pictures and their labels."""
    return isinstance(part, list | tuple) and len(part) == 2 and all(isinstance(one, Tensor) for one in part)


@dataclass(frozen=True)
class Site:
    """What a run has, once all of its processes are there.

    Args:
        world: The processes that share the pictures.
        device: Where the networks are.
        planner: Divides what is gathered into passes, alike in all processes.
        scratch: Folder for what does not fit into memory; None where all does.
    """

    world: World
    device: torch.device
    planner: Planner
    scratch: Path | None


class Pass(ABC):
    """One pass over the calibration pictures."""

    name: str
    """Of its phase, in the table of what a run costs."""

    words: str
    """What it does, for a progress bar."""

    @abstractmethod
    def start(self, site: Site) -> None:
        """Make ready for the first batch."""

    @abstractmethod
    def step(self, number: int, batch: Batch) -> None:
        """Run networks on a batch."""

    @abstractmethod
    def end(self, world: World) -> None:
        """Put together what all batches of all processes have left behind."""

    @abstractmethod
    def abandon(self, error: BaseException | None = None) -> None:
        """Leave everything as it was before the start."""


class KeptPictures:
    """Pictures that methods look at again.

    Args:
        domains: Names of the calibration domains.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        self.domains = domains
        self.pictures: dict[str, Waiting] = {}
        self.labels: dict[str, list[Tensor]] = {}
        self.complete = False

    def start(self, scratch: Path | None) -> None:
        """Begin with none.

        Args:
            scratch: Folder in which they wait; None for memory.
        """
        self.pictures = {domain: waiting((), scratch) for domain in self.domains}
        self.labels = {domain: [] for domain in self.domains}

    def add(self, batch: Batch) -> None:
        """Keep the pictures of a batch, and their labels where there are any."""
        for domain, (pictures, labels) in batch.items():
            self.pictures[domain].append(pictures)
            if labels is not None:
                self.labels[domain].append(labels)


class GatheringPass(Pass):
    """Runs the sources and gathers moments of what they do; the first one keeps the pictures where a method asks.

    Args:
        gathering: What is to be gathered.
        kept: Where pictures are kept; None for nowhere.
    """

    name, words = "gather", "gathering"

    def __init__(self, gathering: Gathering, kept: KeptPictures | None) -> None:
        self.gathering, self.kept = gathering, kept

    @property
    def looks(self) -> bool:
        """Whether anything is gathered or kept; else all is in a file already, and no picture need be opened."""
        return self.kept is not None or bool(self.gathering.missing)

    def start(self, site: Site) -> None:
        """Take up the next share of the moments."""
        with site.world.together("could not write statistics"):
            if site.world.rank == 0:
                self.gathering.claim()
        self.gathering.begin(lambda moments: site.planner.plan(moments).shares, site.device)
        if self.kept is not None:
            self.kept.start(site.scratch)

    def step(self, number: int, batch: Batch) -> None:
        """Run the sources."""
        self.gathering.gather(number, batch)
        if self.kept is not None:
            self.kept.add(batch)

    def end(self, world: World) -> None:
        """Sum the moments over the processes."""
        self.gathering.end(world.reduce, world.rank == 0)
        if self.kept is not None:
            self.kept.complete = True

    def abandon(self, error: BaseException | None = None) -> None:
        """Forget what this pass has gathered."""
        self.gathering.drop()


class GatePass(Pass):
    """Learns, for networks with several heads, to tell from a picture whose head it is for; classes are not read.

    Where the pictures do not come from the domains of all heads, no gate can be learnt, and none is set.

    Args:
        networks: In eval mode, of one label space.
    """

    name, words = "gate", "learning gates"

    def __init__(self, networks: Sequence[MultiHead]) -> None:
        self.networks, self.heads = networks, networks[0].labels.heads
        self._features: list[dict[str, list[Tensor]]] = []

    def start(self, site: Site) -> None:
        """Start from nothing."""
        self._features = [{head: [] for head in self.heads} for _ in self.networks]

    def step(self, number: int, batch: Batch) -> None:
        """Keep what the heads read on pictures of their domains."""
        for network, features in zip(self.networks, self._features, strict=True):
            for head, batches in features.items():
                if head in batch:
                    batches.append(network.outputs(batch[head][0])[1].float())

    def end(self, world: World) -> None:
        """Fit the gates, in every process alike."""
        kept, self._features = self._features, []
        if not all(kept[0].values()):
            tell("no gate: the calibration pictures do not come from the domains of all heads")
            return
        for network, features in zip(self.networks, kept, strict=True):
            network.fit_gate([world.gather_rows(batches) for batches in features.values()])

    def abandon(self, error: BaseException | None = None) -> None:
        """Forget what was kept."""
        self._features = []


class HeadsPass(Pass):
    """Gives students of one head a head for each domain beside it, and a gate between them; classes are not read.

    Args:
        students: In eval mode, of shared classes.
        sources: The sources.
        head: Name of the layer that puts out the logits.
        owners: domain -> number of its source, of those that get a head.
    """

    name, words = "heads", "learning heads of domains"

    def __init__(
        self, students: Sequence[Merged], sources: Sequence[nn.Module], head: str, owners: Mapping[str, int]
    ) -> None:
        self.students, self.sources, self.head, self.owners = students, sources, head, owners
        self._features: list[dict[str, list[Tensor]]] = []
        self._logits: dict[str, list[Tensor]] = {}

    def start(self, site: Site) -> None:
        """Start from nothing."""
        self._features = [{domain: [] for domain in self.owners} for _ in self.students]
        self._logits = {domain: [] for domain in self.owners}

    def step(self, number: int, batch: Batch) -> None:
        """Keep what heads read on pictures of the domains, and what their own sources say of them."""
        for domain, owner in self.owners.items():
            if domain not in batch:
                continue
            pictures = batch[domain][0]
            self._logits[domain].append(self.sources[owner](pictures).float())
            for merged, features in zip(self.students, self._features, strict=True):
                features[domain].append(merged.student.outputs(pictures)[1].float())

    def end(self, world: World) -> None:
        """Fit heads and gates, in every process alike."""
        kept, self._features = self._features, []
        logits = {domain: world.gather_rows(batches) for domain, batches in self._logits.items()}
        self._logits = {}
        heads = [source.get_submodule(self.head) for source in self.sources]
        for merged, features in zip(self.students, kept, strict=True):
            lessons = {
                domain: Lesson(owner, heads[owner], world.gather_rows(features[domain]), logits[domain])
                for domain, owner in self.owners.items()
            }
            shares = teach_heads(merged.student, lessons)
            for name, tensor in merged.student.named_parameters():
                if name.startswith(("gate.", "own_heads.")):
                    world.broadcast(tensor.data, 0)  # machines may differ in the last bit
            better = "the head of the guessed domain" if merged.student.guesses else "the shared head"
            tell(
                f"{merged.name}: where no domain is named, {better} answers: heads of guessed domains see what the "
                f"pictures' own sources do on {shares['guessed']:.1%}, a shared head on {shares['shared']:.1%}"
            )

    def abandon(self, error: BaseException | None = None) -> None:
        """Forget what was kept."""
        self._features, self._logits = [], {}


class ReestimationPass(Pass):
    """Re-estimates the batch norms of students: averaged units vary less than their sources'.

    One pass keeps the pictures, and its end brings the students through them, one after the other. Where the pictures
    themselves have no room, or not in every process, nothing is kept, and there is a pass for every norm.

    Args:
        students: Whose batch norms no longer fit what they read.
        room: Bytes that pictures, and what students compute of them, may take.
    """

    name, words = "re-estimate", "re-estimating batch norm"

    def __init__(self, students: Sequence[Merged], room: int) -> None:
        self.room, self.keeping = room, True
        self._unsettled = [Reestimation(merged.student.network, merged.student.exact_norms) for merged in students]
        self._scratch: Path | None = None
        self._kept = waiting((), None)
        self._taken = 0

    @property
    def finished(self) -> bool:
        """Whether no further pass is needed."""
        return all(one.finished for one in self._unsettled)

    def start(self, site: Site) -> None:
        """Begin with no picture."""
        self._scratch = site.scratch
        self._forget()

    def step(self, number: int, batch: Batch) -> None:
        """Keep the pictures of all domains, or else let the students' next norms read them."""
        pictures = mixed({domain: part for domain, (part, _) in batch.items()})
        if not self.keeping:
            self._add(pictures)
            return
        self._kept.append(pictures)
        if self._scratch is None:
            self._taken += pictures.numel() * pictures.element_size()
            if self._taken > self.room // 2:
                self._let_go()

    def end(self, world: World) -> None:
        """Settle all norms, or one of every student, with the pictures of all processes."""
        failed = torch.tensor(int(not self.keeping))
        world.reduce(failed)
        if not failed:
            for one in tqdm(self._unsettled, self.words, unit="student", leave=False, disable=None):
                one.finish(lambda: self._kept, world, self.room - self._taken)
        else:
            if self.keeping:
                self._let_go()
            for one in self._unsettled:
                if not one.finished:
                    one.settle(world)
        self._forget()

    def abandon(self, error: BaseException | None = None) -> None:
        """Forget the pictures of this pass."""
        self._forget()

    def _let_go(self) -> None:
        """Keep no pictures from now on, and let the students' next norms read those that were kept."""
        kept, self.keeping, self._taken = self._kept, False, 0
        self._kept = waiting((), None)
        for pictures in kept:
            self._add(pictures)

    def _add(self, pictures: Tensor) -> None:
        for one in self._unsettled:
            if not one.finished:
                one.add(pictures)

    def _forget(self) -> None:
        self._kept, self._taken = waiting((), self._scratch), 0
        for one in self._unsettled:
            one.forget()
