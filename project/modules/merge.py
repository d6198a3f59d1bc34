"""The sources of a merge and the students that come of it, as Lightning sees them."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from project.data import DomainDataModule
from project.errors import ConfigurationError
from project.methods import Average, Ensemble, Merged, Method, Permutation, PLeaS, Problem, check_budgets
from project.models import LabelSpace
from project.modules.evaluation import Contender, EvaluationModule, check_classes, data_labels, own_labels
from project.moments import LAYERS, PICTURES, UNITS, Collector, Lockstep
from project.student import Source, common_spec, load_source, reestimation, running_variances
from project.symmetry import check_equivalence


@dataclass
class SourceFile:
    """Where a source comes from.

    Args:
        path: Lightning checkpoint, state dict, safetensors file or student.
        domains: Domains it was trained on; default: what its file says, else the domain in its own place in the list.
        name: Name in tables; default: its domains.
        architecture: Name of the network; default: what the file says, else what its shapes tell.
    """

    path: Path
    domains: list[str] | None = None
    name: str | None = None
    architecture: str | None = None


class MergeModule(EvaluationModule):
    """Owns the frozen sources and the students that methods make of them.

    Its validation step runs the sources on calibration pictures, or the students while their batch norm is
    re-estimated; which of the two, and what is gathered meanwhile, the MergeCallback decides.

    Args:
        sources: Two or more files, each with the domains it was trained on where the file does not say.
        methods: Merging methods; default: the plain average, permutation alone, and PLeaS.
        budgets: Sizes of the students, in multiply-accumulates over one source's: from 1 to the number of sources.
        tolerance: Largest relative change of the logits that permuting a group of a source may make.
    """

    def __init__(
        self,
        sources: Sequence[SourceFile | Path],
        methods: Sequence[Method] = (),
        budgets: Sequence[float] = (1.0,),
        tolerance: float = 1e-3,
    ) -> None:
        files = [source if isinstance(source, SourceFile) else SourceFile(Path(source)) for source in sources]
        super().__init__([file.path for file in files])
        if len(files) < 2:
            raise ConfigurationError(f"sources holds {len(files)} file; at least 2 are needed to merge.")
        self.files = files
        self.methods = list(methods) or [Average(), Permutation(), PLeaS()]
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"methods holds the names {', '.join(names)}; give each a name of its own.")
        self.budgets = sorted(budgets)
        check_budgets(self.budgets, len(files))
        self.tolerance = tolerance
        self.problem: Problem | None = None
        self.merged: list[Merged] = []
        self.collector: Collector | None = None
        self.pictures: dict[str, list[Tensor]] = {}
        self.gathering = False
        self.equivalence: dict[str, float] = {}
        self.loaded: list[Source] = []

    @property
    def needs(self) -> frozenset[str]:
        """Kinds of moments that the methods need together."""
        return frozenset().union(*(method.needs for method in self.methods))

    def setup(self, stage: str) -> None:
        """Load and check the sources where that has not been done."""
        data_labels(self)
        self.prepare(self.trainer.datamodule)  # type: ignore[attr-defined]

    def prepare(self, data: DomainDataModule) -> None:
        """Load the sources and check that they, the methods and the data go together; once, before any long work.

        Args:
            data: The domains.

        Raises:
            PleasError: If they do not.
        """
        if self.problem is not None:
            return
        labels, preprocessing = data.label_space, data.preprocessing
        loaded = [load_source(file.path, file.name, file.architecture) for file in self.files]
        spec = common_spec(loaded, (3, preprocessing.image_size, preprocessing.image_size))
        owned = own_domains(self.files, loaded, labels)
        self.loaded = [
            replace(source, name=file.name or "+".join(domains))
            for file, source, domains in zip(self.files, loaded, owned, strict=True)
        ]
        self._check(labels, owned)
        claimed = [domain for domains in owned for domain in domains]
        for source in self.loaded:
            if source.description.preprocessing not in (None, preprocessing):
                rank_zero_warn(
                    f"{source.path} was trained on {source.description.preprocessing}, but data gives {preprocessing}."
                )
            differences = check_equivalence(source.network, spec, tolerance=self.tolerance)
            self.equivalence[source.name] = max(differences.values())
            rank_zero_info(
                f"{source.name}: permuting each of {len(differences)} groups changes the logits by at most "
                f"{self.equivalence[source.name]:.1e} (relative)"
            )
        ordered = {domain: labels.classes[domain] for domains in owned for domain in domains}
        student_labels = LabelSpace(ordered, "different") if labels.mode == "different" else labels
        self.problem = Problem(
            tuple(source.network for source in self.loaded),
            {d: index for index, domains in enumerate(owned) for d in domains if claimed.count(d) == 1},
            spec,
            student_labels,
            self.loaded[0].architecture,
            preprocessing,
        )
        pictures = sum(len(data.samples(domain, "calibration")) for domain in labels.domains)
        for domain in labels.domains:
            data.samples(domain, "test")  # an unreadable one is found now and not after the fit
        for method in self.methods:
            method.check(self.problem, pictures)
        self.lockstep = Lockstep(self.problem.sources)
        self.lockstep.requires_grad_(False)

    def _check(self, labels: LabelSpace, owned: list[list[str]]) -> None:
        """Refuse sources whose heads or names cannot go together."""
        names = [source.name for source in self.loaded]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"sources have the names {', '.join(names)}; give each a name of its own.")
        for source, domains in zip(self.loaded, owned, strict=True):
            known = source.description.label_space
            if known is not None:
                check_classes(str(source.path), own_labels(source.description, labels, str(source.path)), labels)
            counts = [len(labels.classes[domain]) for domain in domains]
            width = counts[0] if labels.mode == "shared" else sum(counts)
            head = source.logits
            if head != width:
                raise ConfigurationError(
                    f"source {source.path} has {head} logits, "
                    f"but its domains {', '.join(domains)} have {width} classes."
                )

    # ---- calibration, driven by the MergeCallback ------------------------------------------------------------------

    def start_gathering(self) -> None:
        """From now on, validation steps gather moments of the sources, and keep the pictures where a method asks."""
        assert self.problem is not None
        self.gathering = True
        domains = data_labels(self).domains
        self.pictures = {domain: [] for domain in domains}
        if self.needs & {LAYERS, UNITS}:
            self.collector = Collector(self.problem.spec, self.lockstep, self.needs, domains)

    def stop_gathering(self) -> Collector | None:
        """Stop, and hand over what was gathered."""
        collector, self.collector, self.gathering = self.collector, None, False
        return collector

    def validation_step(self, batch: dict[str, Tensor | None], batch_idx: int) -> None:  # type: ignore[override]
        """Run the sources, or the students, on calibration pictures.

        Args:
            batch: domain -> pictures (batch, 3, height, width), or None where a domain has no more.
            batch_idx: Number of the batch.
        """
        if not isinstance(batch, dict):
            raise ConfigurationError(
                "calibration batches must map domains to pictures; "
                "validate on the data module's calibration_dataloader()."
            )
        present = {domain: pictures for domain, pictures in batch.items() if pictures is not None}
        if self.gathering:
            for domain, pictures in present.items():
                if self.collector is not None:
                    self.collector.gather(domain, pictures)
                if PICTURES in self.needs:
                    self.pictures[domain].append(pictures)
        else:
            mixed = torch.cat(list(present.values()))
            for merged in self.unsettled:
                merged.student(mixed)

    def on_validation_start(self) -> None:
        """Calibration scores nothing."""

    def on_validation_epoch_end(self) -> None:
        """Calibration scores nothing."""

    @torch.no_grad()
    def fit_students(self, collector: Collector | None, reduce: Callable[[Tensor], object]) -> list[Merged]:
        """Let every method make its students from what was gathered.

        Args:
            collector: What was gathered, summed over processes.
            reduce: Sums a tensor over all processes in place.
        """
        assert self.problem is not None
        problem = replace(
            self.problem,
            statistics=collector.statistics if collector else None,
            pictures=self.pictures if PICTURES in self.needs else None,
            reduce=reduce,
        )
        self.merged = []
        for method in self.methods:
            for merged in method.merge(problem, self.budgets):
                rank_zero_info(f"fitted {merged.name}")
                self.merged.append(merged)
        self.students = nn.ModuleList(merged.student for merged in self.merged)
        self.pictures = {}
        return self.merged

    @property
    def unsettled(self) -> list[Merged]:
        """Students whose batch norm is still that of their sources."""
        return [merged for merged in self.merged if not merged.settled]

    def reestimation(self) -> ExitStack:
        """A context in which validation steps re-estimate the batch norm of every student that needs it."""
        stack = ExitStack()
        for merged in self.unsettled:
            stack.enter_context(reestimation(merged.student))
        return stack

    def variances(self) -> dict[str, dict[str, float]]:
        """Student -> batch norm -> mean running variance."""
        return {merged.name: running_variances(merged.student) for merged in self.unsettled}

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def enter_unsettled(self) -> None:
        """Score the students whose batch norm is about to be re-estimated."""
        self.enter([Contender(merged.name, merged.student, merged.student.labels) for merged in self.unsettled])

    def enter_all(self) -> None:
        """Score the sources, their ensemble and the students."""
        assert self.problem is not None
        labels, mode = self.problem.labels, self.problem.labels.mode
        sources = [
            Contender(source.name, source.network, self._source_labels(index))
            for index, source in enumerate(self.loaded)
        ]
        ensemble = Contender("ensemble", Ensemble(self.problem.sources, mode).eval(), labels)
        students = [Contender(merged.name, merged.student, labels) for merged in self.merged]
        self.enter([*sources, ensemble, *students])

    def _source_labels(self, index: int) -> LabelSpace:
        assert self.problem is not None
        labels = self.problem.labels
        if labels.mode == "shared":
            return labels
        mine = [domain for domain, owner in self.problem.owners.items() if owner == index]
        return LabelSpace({domain: labels.classes[domain] for domain in mine}, "different")


def own_domains(files: Sequence[SourceFile], loaded: Sequence[Source], labels: LabelSpace) -> list[list[str]]:
    """Which domains each source was trained on: as stated, else as its file says, else by its place in the list.

    Raises:
        ConfigurationError: If a domain is unknown, claimed twice, or, with different label spaces, has no source.
    """
    owned = []
    for index, (file, source) in enumerate(zip(files, loaded, strict=True)):
        said = [domain for domain in source.description.domains if domain in labels.domains]
        if file.domains:
            owned.append(list(file.domains))
        elif said:
            owned.append(said)
        elif len(files) == len(labels.domains):
            owned.append([labels.domains[index]])
        else:
            raise ConfigurationError(
                f"source {file.path} does not say its domains; state them: {', '.join(labels.domains)}."
            )
    claimed = [domain for domains in owned for domain in domains]
    for domain in claimed:
        if domain not in labels.domains:
            raise ConfigurationError(f"a source names domain {domain!r}; the data have: {', '.join(labels.domains)}.")
        if claimed.count(domain) > 1 and labels.mode == "different":
            raise ConfigurationError(f"domain {domain!r} belongs to more than one source; one head each is allowed.")
    orphans = [domain for domain in labels.domains if domain not in claimed]
    if orphans and labels.mode == "different":
        raise ConfigurationError(f"domain {orphans[0]!r} has no source, so there is no head for its classes.")
    return owned
