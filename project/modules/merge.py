"""The sources of a merge and the students that come of it, as Lightning sees them."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from project.alignment import UnitMap
from project.allocation import Budget, check_budgets, check_growth, source_size
from project.data import DomainDataModule
from project.errors import ConfigurationError
from project.merging import SourceFile
from project.merging.base import load_base
from project.merging.calibration import Gathering
from project.merging.lineage import lineage
from project.merging.memory_plan import Planner
from project.merging.preparation import prepare, progress_of, prove
from project.merging.sources import read_sources
from project.merging.students import fitted
from project.methods import Average, Ensemble, Evidence, Merged, Method, Permutation, PLeaS, Problem, Run
from project.models import LabelSpace, Preprocessing
from project.modules.scored import ScoredNetwork
from project.moments import PICTURES, Lockstep, Statistics, needs_gradients
from project.runtime import Progress, Reduce, World, read_bytes
from project.runtime.spill import Waiting, waiting
from project.student import MaskedStudent, Source, batch_norms, common_spec, reestimation, running_variances
from project.symmetry import Spec


class MergeModule(LightningModule):
    """Owns the frozen sources and the students that methods make of them.

    Its validation step runs the sources on calibration pictures, or the students while their batch norm is
    re-estimated; which of the two, and what is gathered meanwhile, the MergeCallback decides.

    Args:
        sources: Two or more files, each with the domains it was trained on where the file does not say.
        methods: Merging methods; default: the plain average, permutation alone, and PLeaS.
        budgets: Largest sizes of the students: numbers of multiply-accumulates over one source's (1.5), '900 MMAC',
            '2.5 GMAC', '14M params', '1.2x params', or '48 MB' of float32 parameters and buffers (10⁶ bytes); each from
            one source's size, or from 1 to the number of sources.
        tolerance: Largest relative change of the logits that permuting a group of a source may make.
        without_source: Domains of the data that no source was trained on, for shared classes: on their calibration
            pictures merged units follow the mean of all sources, and networks are scored on them too.
        base: What the sources were fine-tuned from, for methods that need it: a file, torchvision's name of weights
            such as IMAGENET1K_V1, or ``mean``, the mean of the sources, where they have none in common.
        statistics: File of what calibration leaves behind. If it exists, it must be of the same sources, pictures and
            transform: what it holds is not gathered again, and what it lacks is gathered and added. Else it is
            written.
        memory: Most memory to take, such as '16 GB'; default: what is free. What takes more is gathered in several
            passes over the pictures, and waits on disk in the run's folder.
        keep_every: Seconds, at least, between two copies of unfinished statistics, from which an interrupted run goes
            on; no more than a twentieth of the time goes into them. 0: after every batch, whatever it takes.
    """

    def __init__(
        self,
        sources: Sequence[SourceFile | Path],
        methods: Sequence[Method] = (),
        budgets: Sequence[float | str] = (1.0,),
        tolerance: float = 1e-3,
        without_source: Sequence[str] = (),
        base: str | None = None,
        statistics: Path | None = None,
        memory: str | None = None,
        keep_every: float = 60.0,
    ) -> None:
        files = [source if isinstance(source, SourceFile) else SourceFile(Path(source)) for source in sources]
        if len(files) < 2:
            raise ConfigurationError(f"sources holds {len(files)} of at least 2 files that a merge needs.")
        super().__init__()
        self.files = files
        self.methods = list(methods) or [Average(), Permutation(), PLeaS()]
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ConfigurationError(
                f"methods holds the names {', '.join(names)}; give each a name of its own, as its label."
            )
        if memory is not None:
            read_bytes(memory)
        self.budgets = [Budget.of(budget) for budget in budgets]
        check_budgets(self.budgets, len(files))
        self.tolerance = tolerance
        self.without_source = list(without_source)
        self.base = base
        self.base_network: nn.Module | None = None
        self.problem: Problem | None = None
        self.merged: list[Merged] = []
        self.statistics = None if statistics is None else Path(statistics)
        self.memory = memory
        if not keep_every >= 0:
            raise ConfigurationError(f"keep_every is {keep_every}; allowed: 0 seconds or more.")
        self.keep_every = keep_every
        self.gathering: Gathering | None = None
        self.progress: Progress | None = None
        self.scratch: Path | None = None
        self.calibration_domains: tuple[str, ...] = ()
        self.pictures: dict[str, Waiting] = {}
        self.picture_labels: dict[str, list[Tensor]] = {}
        self.running = self.keeping = self.kept = False  # the last: whether all pictures are
        self.equivalence: dict[str, float] = {}
        self.loaded: list[Source] = []
        self.spec: Spec | None = None

    @property
    def needs(self) -> frozenset[str]:
        """Kinds of moments that the methods need together."""
        return frozenset().union(*(method.needs for method in self.methods))

    @property
    def labelled(self) -> bool:
        """Whether a method reads the labels of the calibration pictures."""
        return any(method.labelled for method in self.methods)

    @property
    def looks(self) -> bool:
        """Whether anything is to be gathered or kept of the calibration pictures; else statistics are in a file."""
        return PICTURES in self.needs or self.gathering is None or bool(self.gathering.missing)

    def setup(self, stage: str) -> None:
        """Refuse to run on data that nobody has checked."""
        if self.problem is None:
            raise ConfigurationError("MergeModule is not prepared; call its prepare(datamodule) before validate.")

    def read(self, preprocessing: Preprocessing) -> Spec:
        """Load the sources, once; needs no data yet, so that a wrong file is found before anything is downloaded.

        Raises:
            PleasError: If a file is no source, the sources differ in architecture, or no student can have a budget.
        """
        if self.spec is None:
            self.loaded = read_sources(self.files)
            spec = common_spec(self.loaded, (3, preprocessing.image_size, preprocessing.image_size))
            heads = UnitMap.apart(tuple(source.logits for source in self.loaded))
            check_budgets(self.budgets, len(self.loaded), lambda unit: source_size(spec, heads, unit))
            check_growth(spec, {spec.output.name: heads}, self.budgets)
            if self.base not in (None, "mean"):
                self.base_network = load_base(str(self.base), self.loaded[0], spec.picture).requires_grad_(False)
            self.spec = spec
        return self.spec

    def prepare(
        self,
        data: DomainDataModule,
        folder: Path | None = None,
        device: torch.device | str = "cpu",
        processes: int = 1,
        sharing: int = 1,
        precision: str = "32-true",
    ) -> None:
        """Check that sources, methods and data go together, and plan the memory; once, before any long work.

        Args:
            data: The domains.
            folder: The run's folder, in which unfinished work is kept and what does not fit into memory waits; None
                for nowhere.
            device: Where the merge is going to run.
            processes: Processes that share the calibration pictures.
            sharing: Processes that share the memory.
            precision: In which the trainer runs the sources.

        Raises:
            PleasError: If they do not go together, or the memory does not suffice.
        """
        if self.problem is not None:
            return
        spec = self.read(data.preprocessing)
        files = (self.files, self.loaded, spec, data, self.methods, self.budgets)
        base: nn.Module | Literal["mean"] | None = "mean" if self.base == "mean" else self.base_network
        prepared = prepare(*files, self.without_source, base, processes)
        self.problem, self.loaded = prepared.problem, prepared.sources
        given = (self.problem, self.methods, self.budgets, data, prepared.memory)
        self.planner = Planner.of(*given, self.memory, device, processes, sharing)
        self.planner.plan({})  # a fit that has no room is refused before the sources run
        self.equivalence = prove(self.loaded, spec, self.tolerance, data)
        self.calibration_domains = data.calibration_domains
        self.ensemble = Ensemble(self.problem.sources, self.problem.labels, spec.head.name).eval()
        self.lockstep = Lockstep(self.problem.sources)
        self.lockstep.requires_grad_(False)
        if self.memory is not None and folder is None:
            raise ConfigurationError(f"memory is {self.memory!r}, which needs a folder to spill into; use pleas merge.")
        fingerprint = None
        if folder is not None or self.statistics is not None:
            fingerprint = data.calibration_fingerprint(self.problem.sources, spec, self._heads, self.labelled)
            fingerprint = replace(fingerprint, transform={**fingerprint.transform, "precision": precision})
        if folder is not None and fingerprint is not None:
            self.progress = progress_of(self.problem, fingerprint, data, folder, device, processes)
        self.gathering = Gathering(
            spec, self.lockstep, self.needs, self.calibration_domains, self.problem.owners, self.problem.columns,
            fingerprint, self.statistics, self.progress, self.keep_every,
        )  # fmt: skip
        plan = self.planner.plan(self.gathering.missing)
        if folder is None and (plan.shelve or plan.spill):
            raise ConfigurationError(f"{plan}, but there is no folder in which anything could wait; use pleas merge.")
        rank_zero_info(f"{plan}; {self.planner.free}")

    @property
    def _heads(self) -> dict[str, tuple[int, ...]]:
        """Which columns the gradients of each domain's pictures are of; empty where none are gathered."""
        assert self.problem is not None
        if not needs_gradients(self.needs):
            return {}
        found = {domain: self.problem.columns.get(domain) for domain in self.calibration_domains}
        return {domain: () if part is None else (part.start, part.stop) for domain, part in found.items()}

    # ---- calibration, driven by the MergeCallback ------------------------------------------------------------------

    def start_gathering(self, world: World) -> None:
        """From now on, validation steps gather moments of the sources, and keep the pictures where a method asks.

        Args:
            world: The processes that share the pictures.
        """
        assert self.gathering is not None
        if not self.gathering.begun:
            rooms = torch.zeros(world.size, dtype=torch.int64, device=self.device)
            rooms[world.rank] = self.planner.room
            world.reduce(rooms)
            self.planner = self.planner.within(int(rooms.min()))  # all divide the passes as the one with least does
            if self.progress is not None:
                below = self.progress.below(str(world.rank))
                self.progress = replace(below, reduce=world.reduce, device=self.device)
                self.gathering.progress = self.progress
            plan = self.planner.plan(self.gathering.missing)
            self.scratch = self.progress.folder / "waiting" if self.progress is not None and plan.spill else None
            self.gathering.shelved = plan.shelve
        self.gathering.begin(lambda moments: self.planner.plan(moments).shares, self.device)
        self.running = True
        self.keeping = PICTURES in self.needs and not self.kept
        if self.keeping:
            self.pictures = {domain: waiting((), self.scratch) for domain in self.calibration_domains}
            self.picture_labels = {domain: [] for domain in self.calibration_domains}

    def stop_gathering(self, world: World) -> bool:
        """Finish a pass over the pictures.

        Args:
            world: The processes that share them.

        Returns:
            Whether that was the last one.
        """
        assert self.gathering is not None
        self.running, self.keeping, self.kept = False, False, self.kept or self.keeping
        self.gathering.end(world.reduce, world.rank == 0)
        return self.gathering.finished

    def drop_gathering(self) -> None:
        """Forget a pass that did not come to its end."""
        self.running = self.keeping = False
        if self.gathering is not None:
            self.gathering.collector = None

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Run the sources, or the students, on calibration pictures.

        Args:
            batch: domain -> pictures (batch, 3, height, width), or these and their labels (batch,), or None where a
                domain has no more.
            batch_idx: Number of the batch.
        """
        if not isinstance(batch, dict):
            raise ConfigurationError(
                "calibration batches must map domains to pictures; "
                "validate on the data module's calibration_dataloader()."
            )
        pairs = {domain: _with_labels(part) for domain, part in batch.items() if part is not None}
        if self.running:
            assert self.gathering is not None
            self.gathering.gather(batch_idx, pairs)
            for domain, (pictures, labels) in pairs.items() if self.keeping else ():
                self.pictures[domain].append(pictures)
                if labels is not None:
                    self.picture_labels[domain].append(labels)
        else:
            mixed = torch.cat([pictures for pictures, _ in pairs.values()])
            for merged in self.unsettled:
                merged.student(mixed)

    @torch.inference_mode(False)  # students made under it could never be trained
    @torch.no_grad()
    def fit_students(self, world: World) -> list[Merged]:
        """Let every method make its students from what was gathered.

        Args:
            world: The processes, which share the solves.
        """
        assert self.problem is not None
        assert self.gathering is not None
        evidence = Evidence(
            self.gathering.statistics or Statistics(),
            self.pictures if PICTURES in self.needs else {},
            self.picture_labels if PICTURES in self.needs and self.labelled else {},
        )
        run = Run(world, self.progress, self.scratch)
        self.merged = []
        for method, merged in fitted(self.methods, self.problem, evidence, run, self.budgets):
            merged.student.lineage = lineage(method, merged, self.loaded, self.problem.owners, self.base)
            self.merged.append(merged)
        self.students = nn.ModuleList(merged.student for merged in self.merged)
        self.pictures, self.picture_labels = {}, {}
        return self.merged

    @property
    def unsettled(self) -> list[Merged]:
        """Students with batch norms that no longer fit what they read, as far as there are pictures to mend that."""
        if not self.calibration_domains:
            return []
        return [
            one for one in self.merged if not one.settled and batch_norms(one.student.network, one.student.exact_norms)
        ]

    def reestimation(self, reduce: Reduce) -> ExitStack:
        """A context in which validation steps re-estimate the batch norm of every student that needs it.

        Args:
            reduce: Sums a tensor over all processes in place.
        """
        stack = ExitStack()
        for merged in self.unsettled:
            stack.enter_context(reestimation(merged.student.network, merged.student.exact_norms, reduce))
        return stack

    @property
    def layer_names(self) -> list[str]:
        """Names of all layers, in execution order."""
        assert self.problem is not None
        return [layer.name for layer in self.problem.spec.layers]

    @property
    def trunks(self) -> dict[str, nn.Module]:
        """The sources and the students as plain networks, by name; those that are several networks are left out."""
        sources = {source.name: source.network for source in self.loaded}
        single = [merged for merged in self.merged if not isinstance(merged.student, MaskedStudent)]
        return sources | {merged.name: merged.student.network for merged in single}

    def variances(self) -> dict[str, dict[str, float]]:
        """Student -> batch norm -> mean running variance."""
        return {
            merged.name: running_variances(merged.student.network, merged.student.exact_norms)
            for merged in self.unsettled
        }

    # ---- what is scored --------------------------------------------------------------------------------------------

    def unsettled_networks(self) -> list[ScoredNetwork]:
        """The students whose batch norm is about to be re-estimated."""
        return [ScoredNetwork(merged.name, merged.student, merged.student.labels) for merged in self.unsettled]

    def scored_networks(self) -> list[ScoredNetwork]:
        """The sources, their ensemble and the students."""
        assert self.problem is not None
        labels = self.problem.labels
        sources = [
            ScoredNetwork(source.name, source.network, self._source_labels(index))
            for index, source in enumerate(self.loaded)
        ]
        ensemble = ScoredNetwork("ensemble", self.ensemble, labels)
        return [*sources, ensemble, *(ScoredNetwork(merged.name, merged.student, labels) for merged in self.merged)]

    def _source_labels(self, index: int) -> LabelSpace:
        assert self.problem is not None
        labels = self.problem.labels
        if labels.mode == "shared":
            return labels
        mine = [domain for domain, owner in self.problem.owners.items() if owner == index]
        return LabelSpace({domain: labels.classes[domain] for domain in mine}, "different")


def _with_labels(part: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Pictures, and their labels where there are any."""
    return (part, None) if isinstance(part, Tensor) else (part[0], part[1])
