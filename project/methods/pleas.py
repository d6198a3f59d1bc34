"""PLeaS: permutation, partial merging, and least squares for every layer (arXiv 2407.02447)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from project.alignment import Similarity, UnitMap
from project.allocation import Budget
from project.errors import ConfigurationError, at_least, flags, one_of, share, whole
from project.fit import KeptFits, SequentialFit, stages, unfitted
from project.methods.base import Merged, Method, Preparation
from project.methods.permutation import GAINS, Permutation, Separate
from project.methods.problem import Evidence, PictureCounts, Problem, Run
from project.methods.shared.arguments import check_domain_weights
from project.methods.shared.leading import MEAN, SUREST, check_lead, leads_of
from project.methods.shared.matching import By
from project.methods.shared.pleas_joint import Heads, JointFit, Targets, left_alone
from project.methods.shared.pleas_memory import joint_memory, sequential_memory
from project.methods.shared.pleas_sequential import run_sequential
from project.methods.shared.samples import check_samples, most_unknowns
from project.methods.shared.unowned import restyle_unowned, unowned_domains
from project.moments import LAYERS, PICTURES
from project.runtime import MemoryEstimate
from project.student import batch_norms, with_joins
from project.symmetry import Layer, graph_of

Fit = Literal["sequential", "joint"]
NormSide = Literal["after", "before"]
Logits = Literal["divergence", "squares"]


class PLeaS(Permutation):
    """Align units by permutation, keep badly matched ones separate up to the budget, solve the layers in closed form.

    Args:
        matching: How units are matched, see Permutation.
        similarity: For matching by activations: ``distance`` (the paper's) or ``correlation``.
        alpha: For matching by both: the share of the weights, see Permutation.
        separate: Which units stay separate as the budget grows: by ``gain`` (default, where these are known), from the
            ``front`` or the ``back``, or ``uniform``, see Permutation.
        step: Units of a group are separated this many at once, see Permutation.
        fit: ``sequential``: every layer on what the student itself feeds it, in execution order; one walk through
            the calibration pictures for each budget, which are kept in memory. ``joint``: every layer for itself, on
            the sources' inputs, as the paper has it; one pass over the pictures serves all budgets.
        targets: What merged units aim at: the ``own`` source of a picture's domain, or the ``mean`` of all sources on
            every picture (the paper's).
        lead: Where several sources share a domain, for the sequential fit with ``own`` targets: the one that merged
            units follow there: the ``surest``, by the entropy of its predictions, or a source's name. Its function so
            stays whole at every size, and separate units of the others add to it. ``mean``: the mean of all.
        weights: domain -> weight of each of its calibration pictures in the fit: 0 leaves a domain out; default: 1.
        norm: For the sequential fit: fit layers to what the batch norm behind them puts out (``after``), or to what
            it reads (``before``).
        compensate: For the sequential fit: whether a layer whose output is added to something makes up for what the
            student has already got wrong there.
        ridge: Pull towards the permuted average: the weight of it, relative to the mean second moment of a layer's
            inputs, where a layer has as many samples as unknowns; less where it has more. 0 for none.
        rounds: For the sequential fit: rounds in which it settles which targets a rectifier cuts off.
        logits: For the sequential fit: the last layer is fitted to the sources' probabilities of the classes (their
            ``divergence`` from the student's), or to the logits (``squares``) like any other layer.
        restyle_steps: For the sequential fit with ``own`` targets, where pictures are of none of the domains: steps of
            gradient descent on their pixels by which each source gets a version of them that suits its batch norms,
            and owns it. 0: pictures as they are, for which merged units aim at the mean of all sources.
        excess: For the sequential fit: by how much a layer's residual may exceed that of a fit to all pictures, as a
            share of it (0.005 is half a percent). Layers with samples to spare then look at some of the batches, and at
            some positions of their pictures, only: as many as two halves of a few say are needed, see
            :mod:`project.fit.subsample`. It takes four batches of each domain or more. Default: all of them.
        heads: For the joint fit with different label spaces: keep the ``original`` heads on the units they can read,
            or fit them too (``fitted``). Shared heads are always fitted.
        seed: Seed of the order in which matching by weights, or both, visits the groups.
        label: Name in tables and files; default: ``pleas``.
    """

    def __init__(
        self,
        matching: By = "activations",
        similarity: Similarity = "distance",
        alpha: float = 0.5,
        separate: Separate | None = None,
        step: int | None = None,
        fit: Fit = "sequential",
        targets: Targets = "own",
        lead: str = SUREST,
        weights: Mapping[str, float] | None = None,
        norm: NormSide = "after",
        compensate: bool = True,
        ridge: float = 0.05,
        rounds: int = 2,
        logits: Logits = "divergence",
        restyle_steps: int = 40,
        excess: float | None = None,
        heads: Heads = "original",
        seed: int = 0,
        label: str | None = None,
    ) -> None:
        super().__init__(matching, similarity, alpha, separate, step, seed, label)
        at_least(0, ridge=ridge)
        whole(0, rounds=rounds, restyle_steps=restyle_steps)
        if excess is not None:
            share(whole=False, excess=excess)
        one_of(Fit, fit=fit)
        one_of(Targets, targets=targets)
        one_of(NormSide, norm=norm)
        one_of(Logits, logits=logits)
        one_of(Heads, heads=heads)
        flags(compensate=compensate)
        if not isinstance(lead, str) or not lead:
            raise ConfigurationError(f"lead is {lead!r}; allowed: {SUREST!r}, {MEAN!r}, or the name of a source.")
        check_domain_weights(weights)
        if fit == "joint":
            for name, given, default in (
                ("lead", lead, SUREST),
                ("norm", norm, "after"),
                ("compensate", compensate, True),
                ("rounds", rounds, 2),
                ("logits", logits, "divergence"),
                ("restyle_steps", restyle_steps, 40),
                ("excess", excess, None),
            ):
                if given != default:
                    raise ConfigurationError(f"{name} is {given!r}; allowed: with fit 'sequential' alone.")
        self.fit: Fit = fit
        self.targets: Targets = targets
        self.lead = lead
        self.weights = dict(weights or {})
        self.norm: NormSide = norm
        self.compensate = compensate
        self.follows_owners = targets == "own"
        self.ridge = ridge
        self.rounds = rounds
        self.logits: Logits = logits
        self.restyle_steps = restyle_steps
        self.excess = excess
        self.heads: Heads = heads
        self.needs = self.needs | {PICTURES if self.sequential else LAYERS} | (GAINS if separate is None else set())

    @property
    def sequential(self) -> bool:
        """Whether layers are fitted on what the student itself feeds them."""
        return self.fit == "sequential"

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Refuse weights and pictures that cannot be fitted to, and, without a ridge, more unknowns than samples.

        It takes the units' similarities or the fit that follows, whichever is more.
        """
        preparation = super().prepare(problem, pictures, budgets, planned)
        check_lead(self.lead, problem)
        self._check_pictures(problem, pictures.domains)
        shapes = [with_joins(problem.spec, maps) for maps in self.shapes(problem, budgets)]
        unknowns = {layer: self._unknowns(layer, problem, shapes) for layer in problem.spec.layers}
        self._check_samples(problem, pictures.domains, unknowns, max(map(problem.times, budgets)) > 1)
        memory = MemoryEstimate.most(preparation.memory, self._fit_memory(problem, pictures, shapes, unknowns))
        kept = 0
        if self.sequential:  # every layer's fit in float64, see KeptFits
            parameters = sum(one.numel() for one in problem.sources[0].parameters())
            kept = int(8 * parameters * sum(map(problem.times, budgets)))
        message = "; ".join(filter(None, (self._message(problem), preparation.message))) or None
        return Preparation(memory, message, kept)

    def _check_pictures(self, problem: Problem, counts: Mapping[str, int]) -> None:
        unknown = sorted(set(self.weights) - set(counts))
        if unknown:
            raise ConfigurationError(f"weights names {unknown[0]!r}; the domains are {', '.join(counts)}.")
        if not any(self.weights.get(domain, 1.0) for domain in counts):
            raise ConfigurationError("weights is 0 for every domain; at least one must count.")
        if self._unowned(problem, counts) and not all(map(batch_norms, problem.sources)):
            raise ConfigurationError(
                "calibration is 'public', but the sources have no batch norms to restyle such pictures by; set "
                "restyle_steps to 0, or use pictures of the domains."
            )

    def _unknowns(self, layer: Layer, problem: Problem, shapes: Sequence[Mapping[str, UnitMap]]) -> int:
        """Count the most unknowns that a row of a layer may have; 0 where it is not fitted."""
        if not self.sequential and left_alone(layer, problem, self.heads):
            return 0
        return most_unknowns(layer, problem, shapes, constant=layer.bias or self.sequential)  # the norm behind adds one

    def _check_samples(
        self, problem: Problem, counts: Mapping[str, int], unknowns: Mapping[Layer, int], larger: bool
    ) -> None:
        """Refuse or, with a ridge, tell of more unknowns than samples.

        Above budget 1, a merged unit may see all units of all sources, and under the sequential fit a separate one
        follows its own domain's pictures alone.
        """
        counted = {domain: count for domain, count in counts.items() if self.weights.get(domain, 1.0)}
        if larger and self.sequential:
            fewest = min(counted.values())
            check_samples(unknowns, fewest, f"the {fewest} calibration pictures of one domain", self.ridge)
        else:
            total = sum(self._fitted_counts(problem, counted).values())
            check_samples(unknowns, total, f"{total} calibration pictures", self.ridge)

    def _fitted_counts(self, problem: Problem, counts: Mapping[str, int]) -> dict[str, int]:
        """Count the pictures of each domain that are fitted to: unowned ones once for each source, restyled."""
        versions = dict.fromkeys(self._unowned(problem, counts), len(problem.sources))
        return {domain: count * versions.get(domain, 1) for domain, count in counts.items()}

    def _fit_memory(
        self,
        problem: Problem,
        pictures: PictureCounts,
        shapes: Sequence[Mapping[str, UnitMap]],
        unknowns: Mapping[Layer, int],
    ) -> MemoryEstimate:
        if not self.sequential:
            layers = [layer for layer in problem.spec.layers if not left_alone(layer, problem, self.heads)]
            views = 1 if self.targets == "mean" and not self.weights else len(pictures.domains)
            return joint_memory(problem, layers, shapes, unknowns, views, pooled=self.targets == "mean")
        domains = len(pictures.domains) + len(self._unowned(problem, pictures.domains)) * (len(problem.sources) - 1)
        total = sum(self._fitted_counts(problem, pictures.local).values())
        batch = min(total, pictures.largest)
        return sequential_memory(problem, shapes, unknowns, domains, total, batch, sampled=self.excess is not None)

    def _message(self, problem: Problem) -> str | None:
        """Say what is not fitted, and the stages of the sequential fit: layers that do not feed each other together."""
        unfit = unfitted(problem.spec, joint=not self.sequential)
        parts = [f"{self.name} leaves at the sources' mean: {', '.join(unfit)}"] if unfit else []
        if self.sequential:
            names = {layer.node: layer.name for layer in problem.spec.layers}
            order = stages(graph_of(problem.sources[0]), names)
            steps = " → ".join(" + ".join(names[node] for node in stage) for stage in order)
            parts.insert(0, f"{self.name} fits {len(names)} layers in {len(order)} stages: {steps}")
        return "; ".join(parts) or None

    def fit_students(self, starts: list[Merged], problem: Problem, evidence: Evidence, run: Run) -> Iterator[Merged]:
        """Solve every layer for all budgets; the students are changed in place."""
        if not self.sequential:
            joint = JointFit(problem, evidence.statistics, self.targets, self.weights, self.heads, self.ridge)
            yield from joint.run(starts, run.world, self.name)
            return
        unowned = self._unowned(problem, evidence.pictures)
        owned = restyle_unowned(problem, evidence.pictures, unowned, self.weights, self.restyle_steps, run.scratch)
        lead = self.lead if self.targets == "own" else MEAN
        leads = leads_of(lead, problem, evidence.pictures, run.world)
        for merged in starts:
            fit = SequentialFit(
                merged.student,
                problem.sources,
                owned.owners,
                owned.pictures,
                ridge=self.ridge,
                own=self.targets == "own",
                leads=leads,
                absorb=self.norm == "after",
                compensate=self.compensate,
                rounds=self.rounds,
                divergence=self.logits == "divergence",
                weights=owned.weights,
                excess=self.excess,
                world=run.world,
                scratch=run.scratch,
                **({"kept": KeptFits(run.progress.below(merged.name))} if run.progress else {}),
            )
            yield run_sequential(fit, merged)

    def _unowned(self, problem: Problem, domains: Iterable[str]) -> list[str]:
        """Name the domains of calibration pictures that are to be restyled: those which are none of the problem's."""
        if not self.sequential or self.targets == "mean" or not self.restyle_steps:
            return []
        return unowned_domains(problem, domains)
