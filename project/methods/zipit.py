"""ZipIt (Stoica et al., arXiv 2305.03053): units are merged between sources and within each of them."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from project.alignment import UnitMap, Zipping, similarity_bytes, zip_sources
from project.allocation import Budget
from project.errors import between, one_of
from project.methods.base import Merged, Method, Preparation
from project.methods.problem import Evidence, PictureCounts, Problem, Run
from project.methods.shared.arithmetic import write
from project.methods.shared.matching import By, Matching
from project.runtime import MemoryEstimate, World


class ZipIt(Method):
    """Put like units of all sources into sets, as many as one source has units; each set is one unit of the student.

    The two most similar sets are merged, again and again (:func:`~project.alignment.zip_sets.zip_units`). With Mᵢ,
    1 / n_j for the units of source i in set j of n_j units, and Uᵢ, 1 there: W = Σ Mᵢ Wᵢ Uᵢ, so that a unit is the mean
    of its set, and what reads it reads it for every unit of the set. Biases, norms' scales and shifts, other parameters
    become Σ Mᵢ θᵢ. So do batch norm's statistics until they are re-estimated, which they should be: means of units vary
    less than units do. Where every set has one unit of each source, that is the permuted average.

    The heads of shared classes are averaged; those of different classes stay the sources' own, each on the units that
    its source's were put into. All layers are zipped, none left apart for each source (the paper's partial zip).

    Blocks that stay together (heads of attention, groups of a grouped convolution) are matched whole, and units are
    zipped within matched blocks, as MuDSC has it. Queries and keys of a set are its mean times √(n_j / N), with N
    sources, so that their product counts for every unit of the set. Units over which GroupNorm or LayerNorm takes its
    statistics are matched one to one, as Permutation matches them: sets of several sizes would change the statistics,
    and nothing can re-estimate them. MuDSC's code zips GroupNorm's, too.

    Args:
        space: What makes units alike: the correlation of their ``activations`` (ZipIt), of their ``weights``, or
            α S_w + (1 − α) S_act (``both``: MuDSC's zip, arXiv 2403.01753), where S_w is taken anew as the neighbouring
            groups are zipped.
        within: Which share of all merges may be within sources, divided equally among them: 0 leaves one unit of each
            source in every set, 1 is MuDSC's. Below 1 the sets are not those of ZipIt's code, see ``zip_units``.
        repeat: Factor of the similarities of a set that holds all sources, or one of them twice, for each merge that
            made it so: the lower, the fewer units in one set. MuDSC has 0.5.
        alpha: For both: α, the share of the weights.
        seed: Seed of the order in which groups are visited, for weights or both.
        label: Name in tables and files; default: ``zipit``.
    """

    def __init__(
        self,
        space: By = "activations",
        within: float = 1.0,
        repeat: float = 0.5,
        alpha: float = 0.5,
        seed: int = 0,
        label: str | None = None,
    ) -> None:
        super().__init__(label)
        one_of(By, space=space)
        between(0, 1, within=within, repeat=repeat)
        self.matched = Matching(space, "correlation", alpha, seed)
        self.space: By = space
        self.within, self.repeat, self.alpha, self.seed = within, repeat, alpha, seed
        self.needs = self.matched.needs

    def prepare(
        self, problem: Problem, pictures: PictureCounts, budgets: Sequence[Budget], planned: Mapping[str, Method]
    ) -> Preparation:
        """Refuse activations of units that no value of the architecture holds alone.

        It takes the units' similarities, or, where that is more, the student's parameters and one source's in float64.
        """
        self.matched.check(problem, "space")
        kept = [group.name for group in problem.spec.free if problem.spec.normalised(group)]
        copies = 5 if self._share else 3  # of a weight correlation while it is made; else of what is searched
        similarities = similarity_bytes(problem.spec, len(problem.sources), kept=self._share < 1, copies=copies)
        needed = max(similarities, 16 * sum(parameter.numel() for parameter in problem.sources[0].parameters()))
        return Preparation(
            MemoryEstimate(needed, needed),
            f"{self.name} matches one to one, without merging within a source: {', '.join(kept)}" if kept else None,
        )

    @property
    def _share(self) -> float:
        """α, the share of the weights."""
        return {"activations": 0.0, "weights": 1.0, "both": self.alpha}[self.space]

    def zip(self, problem: Problem, evidence: Evidence, world: World) -> Zipping:
        """Put the units of all sources into sets, alike in all processes."""
        zipping = zip_sources(
            problem.spec,
            [source.state_dict() for source in problem.sources],
            evidence.statistics,
            self._share,
            within=self.within,
            repeat=self.repeat,
            heads=problem.labels.mode == "shared",
            seed=self.seed,
        )
        world.agree({name: zipped.sets for name, zipped in zipping.zips.items()})
        return zipping

    @torch.no_grad()
    def students(self, problem: Problem, evidence: Evidence, run: Run, budgets: Sequence[Budget]) -> Iterator[Merged]:
        """Make one student of budget 1, whatever the budgets."""
        zipping = self.zip(problem, evidence, run.world)
        rows = {name: zipped.members for name, zipped in zipping.zips.items()}
        sizes = problem.spec.sizes
        maps = {
            name: UnitMap.identity(sizes[name], len(problem.sources)) if members is None else UnitMap.sorted(members)
            for name, members in rows.items()
        }
        student = problem.start({**problem.fixed, **maps})
        student.zipped = any(members is None for members in rows.values())
        write(student, _merged(problem, zipping))
        yield Merged(self.name, Budget(1.0), student, matches=zipping.scores)


def _merged(problem: Problem, zipping: Zipping) -> dict[str, Tensor]:
    """Compute the student's tensors, float64: Σ Mᵢ Wᵢ Uᵢ, and heads that are not shared one below the other."""
    spec, count = problem.spec, len(problem.sources)
    head = {axis.tensor for axis in spec.output.axes} if problem.labels.mode == "different" else set()
    heads: dict[str, list[Tensor]] = {name: [] for name in head}
    total: dict[str, Tensor] = {}
    for index, source in enumerate(problem.sources):
        state = {
            name: tensor.detach().double() for name, tensor in source.state_dict().items() if tensor.is_floating_point()
        }
        for name, values in zipping.brought(spec, state, index).items():
            if name in head:
                heads[name].append(values)
            else:
                total[name] = total[name] + values / count if name in total else values / count
    return {**total, **{name: torch.cat(values) for name, values in heads.items()}}
