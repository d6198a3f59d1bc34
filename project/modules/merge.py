"""The sources of a merge and the students that come of it, as Lightning sees them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from project.alignment import UnitMap
from project.data import DomainDataModule
from project.errors import ConfigurationError, MergeError
from project.methods import Arithmetic, Average, Ensemble, Merged, Method, Permutation, PLeaS, Problem
from project.models import LabelSpace, Preprocessing
from project.modules.base import load_base
from project.modules.contenders import Contender
from project.modules.lineage import lineage
from project.modules.sources import SourceFile, place_sources, read_sources
from project.moments import PICTURES, Collector, Lockstep
from project.student import (
    Budget,
    MaskedStudent,
    Source,
    Student,
    batch_norms,
    check_budgets,
    check_growth,
    common_spec,
    reestimation,
    running_variances,
    source_size,
)  # fmt: skip
from project.symmetry import Spec, check_equivalence


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
    """

    def __init__(
        self,
        sources: Sequence[SourceFile | Path],
        methods: Sequence[Method] = (),
        budgets: Sequence[float | str] = (1.0,),
        tolerance: float = 1e-3,
        without_source: Sequence[str] = (),
        base: str | None = None,
    ) -> None:
        files = [source if isinstance(source, SourceFile) else SourceFile(Path(source)) for source in sources]
        if len(files) < 2:
            raise ConfigurationError(f"sources holds {len(files)} files; at least 2 are needed to merge.")
        super().__init__()
        self.files = files
        self.methods = list(methods) or [Average(), Permutation(), PLeaS()]
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ConfigurationError(f"methods holds the names {', '.join(names)}; give each a name of its own.")
        self.budgets = [Budget.of(budget) for budget in budgets]
        check_budgets(self.budgets, len(files))
        self.tolerance = tolerance
        self.without_source = list(without_source)
        self.base = base
        self.base_network: nn.Module | None = None
        self.problem: Problem | None = None
        self.merged: list[Merged] = []
        self.collector: Collector | None = None
        self.calibration_domains: tuple[str, ...] = ()
        self.pictures: dict[str, list[Tensor]] = {}
        self.gathering = False
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

    def prepare(self, data: DomainDataModule) -> None:
        """Check that sources, methods and data go together; once, before any long work.

        Args:
            data: The domains.

        Raises:
            PleasError: If they do not.
        """
        if self.problem is not None:
            return
        labels, spec = data.label_space, self.read(data.preprocessing)
        self.loaded, owned = place_sources(self.files, self.loaded, labels, data.preprocessing, self.without_source)
        claimed = [domain for domains in owned for domain in domains]
        ordered = {domain: labels.classes[domain] for domain in claimed}
        self.problem = Problem(
            tuple(source.network for source in self.loaded),
            {d: index for index, domains in enumerate(owned) for d in domains if claimed.count(d) == 1},
            spec,
            LabelSpace(ordered, "different") if labels.mode == "different" else labels,
            self.loaded[0].architecture,
            data.preprocessing,
            base="mean" if self.base == "mean" else self.base_network,
        )
        self._check_methods(data.calibration_counts())
        for plan in filter(None, (method.plan(self.problem) for method in self.methods)):
            rank_zero_info(plan)
        for source in self.loaded:
            self.equivalence[source.name] = self._equivalence(source)
        self.calibration_domains = data.calibration_domains
        for domain in self.calibration_domains:  # an unreadable picture is found now and not after the fit
            data.samples(domain, "calibration")
        for domain in labels.domains:
            data.samples(domain, "test")
        self.ensemble = Ensemble(self.problem.sources, self.problem.labels, spec.head.name).eval()
        self.lockstep = Lockstep(self.problem.sources)
        self.lockstep.requires_grad_(False)

    def _check_methods(self, pictures: Mapping[str, int]) -> None:
        """Refuse methods that cannot work with so many calibration pictures."""
        assert self.problem is not None
        planned: dict[str, Method] = {}
        for method in self.methods:
            if method.needs and not pictures:
                raise ConfigurationError(
                    f"method {method.name} needs calibration pictures, but data.calibration is 'none'; set it to "
                    f"'all', a number or 'public', or name methods that need none, such as Average, or Permutation "
                    f"with matching 'weights'."
                )
            method.check(replace(self.problem, planned=planned), pictures, self.budgets)
            if isinstance(method, Arithmetic) or (Budget(1.0) in self.budgets and isinstance(method, Permutation)):
                planned[method.name] = method

    def _equivalence(self, source: Source) -> float:
        """Largest relative change of a source's logits that permuting a group makes."""
        assert self.problem is not None
        try:
            differences = check_equivalence(source.network, self.problem.spec, tolerance=self.tolerance)
        except MergeError as error:
            raise MergeError(f"source {source.path}: {error}") from error
        worst = max(differences.values())
        rank_zero_info(
            f"{source.name}: permuting each of {len(differences)} groups changes the logits by at most "
            f"{worst:.1e} (relative)"
        )
        return worst

    # ---- calibration, driven by the MergeCallback ------------------------------------------------------------------

    def start_gathering(self) -> None:
        """From now on, validation steps gather moments of the sources, and keep the pictures where a method asks."""
        assert self.problem is not None
        self.gathering = True
        self.pictures = {domain: [] for domain in self.calibration_domains}
        if self.needs - {PICTURES}:
            self.collector = Collector(
                self.problem.spec,
                self.lockstep,
                self.needs,
                self.calibration_domains,
                self.problem.owners,
                self.problem.columns,
            )

    def stop_gathering(self) -> Collector | None:
        """Stop, and hand over what was gathered."""
        collector, self.collector, self.gathering = self.collector, None, False
        return collector

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
        if self.gathering:
            for domain, (pictures, labels) in pairs.items():
                if self.collector is not None:
                    self.collector.gather(domain, pictures, labels)
                if PICTURES in self.needs:
                    self.pictures[domain].append(pictures)
        else:
            mixed = torch.cat([pictures for pictures, _ in pairs.values()])
            for merged in self.unsettled:
                merged.student(mixed)

    @torch.inference_mode(False)  # students made under it could never be trained
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
        students: dict[str, Student] = {}
        for method in self.methods:
            began = perf_counter()
            for made in method.merge(replace(problem, made=students), self.budgets):
                merged = replace(made, seconds=perf_counter() - began)
                rank_zero_info(f"fitted {merged.name} in {merged.seconds:.1f} s")
                merged.student.lineage = lineage(method, merged, self.loaded, problem.owners, self.base)
                self.merged.append(merged)
                if merged.budget == Budget(1.0) and not isinstance(merged.student, MaskedStudent):
                    students[method.name] = merged.student
                began = perf_counter()
        self.students = nn.ModuleList(merged.student for merged in self.merged)
        self.pictures = {}
        return self.merged

    @property
    def unsettled(self) -> list[Merged]:
        """Students with batch norms that no longer fit what they read, as far as there are pictures to mend that."""
        if not self.calibration_domains:
            return []
        return [
            one for one in self.merged if not one.settled and batch_norms(one.student.network, one.student.exact_norms)
        ]

    def reestimation(self, reduce: Callable[[Tensor], object]) -> ExitStack:
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

    def unsettled_contenders(self) -> list[Contender]:
        """The students whose batch norm is about to be re-estimated."""
        return [Contender(merged.name, merged.student, merged.student.labels) for merged in self.unsettled]

    def contenders(self) -> list[Contender]:
        """The sources, their ensemble and the students."""
        assert self.problem is not None
        labels = self.problem.labels
        sources = [
            Contender(source.name, source.network, self._source_labels(index))
            for index, source in enumerate(self.loaded)
        ]
        ensemble = Contender("ensemble", self.ensemble, labels)
        return [*sources, ensemble, *(Contender(merged.name, merged.student, labels) for merged in self.merged)]

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
