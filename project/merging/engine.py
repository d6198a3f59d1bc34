"""One merge, read from top to bottom in ``Engine._run``, and driven by anybody's loop over calibration pictures."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from project.errors import ConfigurationError, MergeError
from project.merging.audit import audit
from project.merging.calibration import Gathering
from project.merging.data import MergeData
from project.merging.disk_plan import disk_needs
from project.merging.lineage import lineage
from project.merging.memory_plan import Planner
from project.merging.passes import (
    GatePass,
    GatheringPass,
    HeadsPass,
    KeptPictures,
    Pass,
    ReestimationPass,
    Site,
    read_batch,
)
from project.merging.preparation import Loaded, prepare, progress_of, prove, taught_domains
from project.merging.settings import Place, Settings
from project.merging.students import fitted, refuse_infinite
from project.methods import Ensemble, Evidence, Merged, PictureCounts, Run
from project.moments import PICTURES, Fingerprint, Lockstep, Statistics, needs_gradients
from project.runtime import MemoryPlan, PhaseClock, Progress, World, tell
from project.runtime.allocator import give_back
from project.runtime.space import check_space
from project.student import batch_norms, running_variances


class Engine:
    """A merge of which all is known but what its sources do on the calibration pictures.

    A loop brings the pictures, as often as the engine asks for them::

        while not engine.finished:
            engine.start(device)
            for number, batch in enumerate(data.calibration_batches()):
                engine.step(number, batch)
            engine.end()
        students = engine.merged

    Args:
        loaded: The sources, and what they were fine-tuned from.
        settings: What to make of them.
        data: The domains.
        place: Where it runs.

    Attributes:
        problem: The sources and all that is known about them.
        sources: The sources under their names.
        taught: domain -> its source, of those that get a head of their own beside the shared one.
        ensemble: All of them at once: the reference that a merge would like to reach.
        networks: All that must lie on one device before a pass: the sources and, once they are there, the students.
        merged: The students and how they came about; empty until they are fitted.
        clock: What each phase costs.
        variances: ``before`` and ``after`` re-estimation -> student -> batch norm -> mean running variance.
        gathering: The statistics, and what is still to be gathered of them.
        audited: What the sources' batch norms say of how they are read; empty where nobody asked.
        equivalence: Source -> largest relative change of its logits that permuting a group makes.
        renormalise: Whether batch norms are re-estimated.
        ended: How many passes have come to their end.

    Raises:
        PleasError: If sources, settings and data do not go together, or memory or disk space do not suffice.
    """

    def __init__(self, loaded: Loaded, settings: Settings, data: MergeData, place: Place) -> None:
        self.settings, self.data, self.place, self.headless = settings, data, place, loaded.headless
        pictures = PictureCounts(data.calibration_counts(), data.calibration_batch_size, place.processes)
        self.problem, self.sources, domains, estimate, fits = prepare(loaded, settings, data, pictures)
        self.taught = taught_domains(self.problem, settings, data.calibration_pictures())
        self.planner = Planner.of(self.problem, settings, pictures, estimate, place)
        self.planner.plan({})  # a fit that has no room is refused before the sources run
        self.equivalence = prove(self.sources, loaded.spec, settings.tolerance, data)
        self.audited = audit(self.sources, domains, data, settings.audit, place.device)
        self.lockstep = Lockstep(self.problem.sources).requires_grad_(False)
        self.ensemble = Ensemble(self.problem.sources, self.problem.labels, self.problem.spec.head.name).eval()
        self.networks = nn.ModuleList([self.lockstep])
        self.merged: list[Merged] = []
        self.clock = PhaseClock()
        self.variances: dict[str, dict[str, dict[str, float]]] = {}
        self.renormalise = True
        self.ended = 0
        self._fingerprint = self._depends()
        self._progress = self._unfinished()
        self.gathering, plan = self._to_gather()
        folder = self._progress.folder if self._progress is not None else None
        check_space(disk_needs(self.problem, settings, pictures, self.gathering, plan, place, folder, fits))
        self._site: Site | None = None
        self._open = ExitStack()  # the clock of the pass under way
        self._started = self._failed = False
        self._passes = self._run()
        self._pass: Pass | None = next(self._passes)

    def _run(self) -> Iterator[Pass]:
        """The merge: each pass over the pictures is handed out to be driven, and gone on from when it has ended."""
        kept = KeptPictures(self.data.calibration_domains)
        while not self.gathering.finished:
            keeping = PICTURES in self.settings.needs(self.problem.spec) and not kept.complete
            yield GatheringPass(self.gathering, kept if keeping else None)
        with self.clock.phase("fit"):
            self._fit(self.gathering.statistics, kept)
        del kept  # no student reads the pictures again, and there may be many
        if self.renormalise and self.unsettled:
            self.variances["before"] = self._variances()
            assert self._site is not None
            taken = self.gathering.held + self._site.planner.students + self._site.planner.running
            reestimation = ReestimationPass(self.unsettled, self._room_left(taken))
            while not reestimation.finished:
                yield reestimation
            self.variances["after"] = self._variances()
        if self.problem.labels.mode == "different":
            yield GatePass([self.ensemble, *(merged.student for merged in self.merged)])
        if self.settings.heads == "domains":
            plain = [merged for merged in self.merged if not merged.student.by_name]
            yield HeadsPass(plain, self.problem.sources, self.problem.spec.head.name, self.taught)
        for merged in self.merged:
            refuse_infinite(merged)

    # ---- driven by a loop ------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether no pass over the pictures is left."""
        return self._pass is None

    @property
    def phase(self) -> str | None:
        """The phase whose pass is under way or next: ``gather``, ``re-estimate``, ``gate`` or ``heads``; or None."""
        return None if self._pass is None else self._pass.name

    @property
    def words(self) -> str:
        """What the pass under way does, for a progress bar."""
        return "" if self._pass is None else self._pass.words

    @property
    def looks(self) -> bool:
        """Whether the pass under way looks at pictures; else all that it would gather is in a file."""
        return not isinstance(self._pass, GatheringPass) or self._pass.looks

    @property
    def labelled(self) -> bool:
        """Whether the pass under way reads the labels of the pictures."""
        return isinstance(self._pass, GatheringPass) and self.settings.labelled

    @property
    def seen(self) -> int:
        """How many pictures this process has gathered from in the pass under way."""
        return self.gathering.seen

    def start(self, device: torch.device) -> None:
        """Begin a pass, all networks being on the device.

        Args:
            device: Where they are.
        """
        if self._pass is None or self._failed:
            raise MergeError(f"the merge {'has failed' if self._failed else 'is finished'}; prepare another.")
        if self._site is None:
            self._site = self._settle(World.current(), device)
        self._open.enter_context(self.clock.phase(self._pass.name))
        self._pass.start(replace(self._site, device=device))
        self._started = True

    def step(self, number: int, batch: object) -> None:
        """Run networks on one batch.

        Args:
            number: Of the batch in its pass.
            batch: domain -> pictures (batch, channels, height, width), or these and their labels (batch,), or None.

        Raises:
            ConfigurationError: If it maps no domains, or others than calibrate, or lacks labels that a method reads.
            MergeError: If no pass was started, as by a trainer without MergeCallback.
        """
        if self._pass is None or not self._started:
            raise MergeError("no pass of the merge was started; a trainer needs a MergeCallback, and validate.")
        self._pass.step(number, read_batch(batch, self.data.calibration_domains, self.labelled))

    def end(self) -> None:
        """End a pass, and do all that needs no further one; all processes must."""
        assert self._pass is not None
        assert self._site is not None
        self._pass.end(self._site.world)
        give_back()
        self._started = False
        self.ended += 1
        self._open.close()
        self._failed = True  # unless what follows comes to its end
        self._pass = next(self._passes, None)
        give_back()
        self._failed = False

    def abandon(self, error: BaseException | None = None) -> None:
        """Leave networks and statistics as they were before a pass that broke off, if one did."""
        if self._pass is not None:
            self._pass.abandon(error)
        self._started = False
        self._open.close()

    # ---- its phases ------------------------------------------------------------------------------------------------

    def _settle(self, world: World, device: torch.device) -> Site:
        """What all processes go by from now on: the memory of the one that has least, and where each keeps its work."""
        rooms = torch.zeros(world.size, dtype=torch.int64, device=device)
        rooms[world.rank] = self.planner.room
        world.reduce(rooms)
        planner = self.planner.within(int(rooms.min()))
        plan = planner.plan(self.gathering.missing)
        if self._progress is not None:
            below = self._progress.below(str(world.rank))
            self._progress = replace(below, world=world, device=device)
        self.gathering.keep_in(self._progress, plan.shelve)
        scratch = self._progress.folder / "waiting" if self._progress is not None and plan.spill else None
        return Site(world, device, planner, scratch)

    @torch.inference_mode(False)  # students made under it could never be trained
    @torch.no_grad()
    def _fit(self, statistics: Statistics | None, kept: KeptPictures) -> None:
        """Let every method make its students, alike in all processes."""
        assert self._site is not None
        settings, world = self.settings, self._site.world
        evidence = Evidence(
            statistics or Statistics(),
            kept.pictures if kept.complete else {},
            kept.labels if kept.complete and settings.labelled else {},
        )
        told = self._site.planner.plan({}).peak
        run = Run(world, self._progress, self._site.scratch, room=self._room_left(self.gathering.held + told))
        for method, merged in fitted(settings.methods, self.problem, evidence, run, settings.budgets):
            merged.student.lineage = lineage(method, merged, self.sources, self.problem.owners, settings.base)
            self.merged.append(merged)
            self.networks.append(merged.student)
            give_back()
        for merged in self.merged:
            for tensor in merged.student.state_dict().values():
                world.broadcast(tensor, 0)  # machines may differ in the last bit

    def _room_left(self, taken: int) -> int:
        """Bytes that the merge may still take where it holds so many."""
        assert self._site is not None
        return max(0, self._site.planner.room - taken)

    @property
    def unsettled(self) -> list[Merged]:
        """Students with batch norms that no longer fit what they read, as far as there are pictures to mend that."""
        if not self.data.calibration_domains:
            return []
        return [
            merged
            for merged in self.merged
            if not merged.settled and batch_norms(merged.student.network, merged.student.exact_norms)
        ]

    def _variances(self) -> dict[str, dict[str, float]]:
        """Student -> batch norm -> mean running variance."""
        return {
            merged.name: running_variances(merged.student.network, merged.student.exact_norms)
            for merged in self.unsettled
        }

    # ---- made ready before the first pass --------------------------------------------------------------------------

    def _depends(self) -> Fingerprint | None:
        """What the statistics depend on, where they are kept anywhere."""
        if self.place.folder is None and self.settings.statistics is None:
            return None
        problem, settings = self.problem, self.settings
        heads = self._heads if needs_gradients(settings.needs(problem.spec)) else {}
        fingerprint = self.data.calibration_fingerprint(problem.sources, problem.spec, heads, settings.labelled)
        return replace(fingerprint, transform={**fingerprint.transform, "precision": self.place.precision})

    @property
    def _heads(self) -> dict[str, tuple[int, ...]]:
        """Which columns the gradients of each domain's pictures are of; () for all."""
        columns = {domain: self.problem.columns.get(domain) for domain in self.data.calibration_domains}
        return {domain: () if part is None else (part.start, part.stop) for domain, part in columns.items()}

    def _unfinished(self) -> Progress | None:
        """Where the work of this merge, and of no other, is kept until it is finished."""
        if self.place.folder is None or self._fingerprint is None:
            return None
        return progress_of(self.problem, self._fingerprint, self.data, self.place)

    def _to_gather(self) -> tuple[Gathering, MemoryPlan]:
        """What is to be gathered, less what a file holds already, and in how many passes.

        Raises:
            ConfigurationError: If something must wait on disk and there is no folder for it.
        """
        settings, problem = self.settings, self.problem
        gathering = Gathering(
            problem.spec, self.lockstep, settings.needs(problem.spec), self.data.calibration_domains, problem.owners,
            problem.columns, self._fingerprint, settings.statistics, settings.keep_every,
        )  # fmt: skip
        plan = self.planner.plan(gathering.missing)
        if self.place.folder is None and (plan.shelve or plan.spill):
            raise ConfigurationError(f"{plan}, but there is no folder in which anything could wait; give it one.")
        tell(f"{plan}; {self.planner.free}")
        return gathering, plan
