"""The merge of a LightningCLI: its arguments, and its engine in a validation loop."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from project.allocation import Budget, check_budgets
from project.errors import ConfigurationError
from project.merging import SourceFile
from project.merging.data import MergeData
from project.merging.engine import Engine
from project.merging.preparation import Loaded, go_together
from project.merging.settings import Audit, Heads, Place, Settings
from project.merging.sources import as_files, read_sources
from project.methods import Average, Merged, Method, Permutation, PLeaS
from project.models import LabelSpace
from project.modules.agreement import AgreementModule
from project.modules.scored import ScoredNetwork
from project.modules.scoring import ScoringModule
from project.student import MaskedStudent


class MergeModule(LightningModule):
    """The sources of a merge and what to make of them; its validation batches feed the merge's engine.

    ``trainer.merge`` drives it, as does a plain trainer with a MergeCallback, one ``validate`` a pass::

        module.prepare(datamodule)
        while not module.finished:
            trainer.validate(module, dataloaders=datamodule.calibration_dataloader(module.labelled))

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
        memory: Most memory to take beside what the process holds before the first pass (Python, torch, the sources),
            such as '16 GB'; default: what is free. Statistics, pictures, what networks compute, equations and students
            count; mapped files do not, which the system drops where memory is short. What takes more is gathered in
            several passes over the pictures, and waits on disk in the run's folder.
        keep_every: Seconds, at least, between two copies of unfinished statistics, from which an interrupted run goes
            on; no more than a twentieth of the time goes into them. 0: after every batch, whatever it takes.
        audit: Before the merge, running statistics are held against what each source's batch norms see on some of its
            own pictures. Where they fit clearly better to another reading of the source (other values or order of
            colours, another size, another source's pictures, another stem): ``stop``, ``warn``, or do not look
            (``off``).
        heads: Where domains share their classes: ``shared``: students have one head. ``domains``: they have one for
            each domain beside it, some 0.01 % of the multiply-adds, which answers where the domain is told; where it is
            not, the gate's guess answers, or the shared head, whichever agrees with the sources on more of the
            calibration pictures.
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
        audit: Audit = "stop",
        heads: Heads = "shared",
    ) -> None:
        super().__init__()
        self.files = as_files(sources)
        self.settings = Settings(
            list(methods) or [Average(), Permutation(), PLeaS()],
            [Budget.of(budget) for budget in budgets],
            tolerance,
            list(without_source),
            base,
            None if statistics is None else Path(statistics),
            memory,
            keep_every,
            audit,
            heads,
        )
        check_budgets(self.settings.budgets, len(self.files))
        self._loaded: Loaded | None = None
        self._engine: Engine | None = None

    def read(self, picture: tuple[int, int, int]) -> Loaded:
        """Load the sources, once; needs no data yet, so that a wrong file is found before anything is downloaded.

        Args:
            picture: Shape of a picture: channels, height, width.

        Raises:
            PleasError: If a file is no source, the sources differ in architecture, or no student can have a budget.
        """
        if self._loaded is None:
            self._loaded = go_together(self.files, read_sources(self.files), self.settings, picture)
        return self._loaded

    def prepare(self, data: MergeData, place: Place | None = None) -> Engine:
        """Check that sources, methods and data go together, and plan the memory; once, before any long work.

        Args:
            data: The domains.
            place: Where the merge is going to run; default: in this process alone, keeping nothing on disk.

        Returns:
            The merge, ready for its first pass.

        Raises:
            PleasError: If they do not go together, or the memory does not suffice.
        """
        if self._engine is None:
            self._engine = Engine(self.read(data.picture), self.settings, data, place or Place())
            self.networks = self._engine.networks  # so that Lightning moves them
        return self._engine

    @property
    def engine(self) -> Engine:
        """The merge.

        Raises:
            ConfigurationError: Before :meth:`prepare`.
        """
        if self._engine is None:
            raise ConfigurationError("MergeModule is not prepared; call its prepare(datamodule) before validate.")
        return self._engine

    @property
    def finished(self) -> bool:
        """Whether the merge needs no further pass over the calibration pictures."""
        return self.engine.finished

    @property
    def labelled(self) -> bool:
        """Whether the next pass reads the labels of the calibration pictures."""
        return self.engine.labelled

    @property
    def merged(self) -> list[Merged]:
        """The students and how they came about; empty until they are fitted."""
        return self.engine.merged

    def setup(self, stage: str) -> None:
        """Refuse to run on data that nobody has checked."""
        _ = self.engine

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Hand calibration pictures to the merge.

        Args:
            batch: domain -> pictures (batch, 3, height, width), or these and their labels (batch,), or None where a
                domain has no more.
            batch_idx: Number of the batch.
        """
        self.engine.step(batch_idx, batch)

    def abandon(self, error: BaseException | None = None) -> None:
        """Leave sources and students as they were before a pass that broke off."""
        if self._engine is not None:
            self._engine.abandon(error)

    # ---- what is scored --------------------------------------------------------------------------------------------

    def unsettled_networks(self) -> list[ScoredNetwork]:
        """The students whose batch norm is about to be re-estimated."""
        return [ScoredNetwork(merged.name, merged.student, merged.student.labels) for merged in self.engine.unsettled]

    def scored_networks(self) -> list[ScoredNetwork]:
        """The sources, their ensemble and the students."""
        labels = self.engine.problem.labels
        sources = [
            ScoredNetwork(source.name, source.network, self._source_labels(index))
            for index, source in enumerate(self.engine.sources)
        ]
        ensemble = ScoredNetwork("ensemble", self.engine.ensemble, labels)
        return [*sources, ensemble, *(ScoredNetwork(merged.name, merged.student, labels) for merged in self.merged)]

    def scoring(self, networks: Sequence[ScoredNetwork]) -> ScoringModule:
        """What scores networks: by their classes or, where the sources have none, by the sources' pooled values."""
        problem = self.engine.problem
        if not self.engine.headless:
            names = [source.name for source in self.engine.sources]
            return ScoringModule(networks, sources={domain: names[owner] for domain, owner in problem.owners.items()})
        owners = {domain: problem.sources[owner] for domain, owner in problem.owners.items()}
        return AgreementModule(networks, owners)

    @property
    def trunks(self) -> dict[str, nn.Module]:
        """The sources and the students as plain networks, by name; those that are several networks are left out."""
        sources = {source.name: source.network for source in self.engine.sources}
        single = [merged for merged in self.merged if not isinstance(merged.student, MaskedStudent)]
        return sources | {merged.name: merged.student.network for merged in single}

    def _source_labels(self, index: int) -> LabelSpace:
        """The classes behind the columns of one source."""
        problem = self.engine.problem
        labels = problem.labels
        if labels.mode == "shared":
            return labels
        domains = [domain for domain, owner in problem.owners.items() if owner == index]
        return LabelSpace({domain: labels.classes[domain] for domain in domains}, "different")
