"""Whether sources, methods and data go together: found out once, before any long work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import torch
from torch import nn

from project.alignment import UnitMap
from project.allocation import Budget, check_budgets, check_growth, source_size
from project.errors import ConfigurationError, MergeError
from project.merging.base import load_base
from project.merging.data import MergeData
from project.merging.labels import label_space_of
from project.merging.settings import Place, Settings
from project.merging.sources import SourceFile, place_sources
from project.methods import Method, Permutation, PictureCounts, Preparation, Problem
from project.methods.shared import Arithmetic
from project.models import LabelSpace
from project.moments import Fingerprint, network_hash
from project.runtime import MemoryEstimate, Progress, tell
from project.runtime.progress import FOLDER, unfinished_work
from project.student import Source, common_spec
from project.symmetry import Spec, check_equivalence

TAUGHT = 4
"""Pictures that a domain's head takes: two halves, of each of which the gate's search holds some out."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """Sources that go together.

    Args:
        files: What the user said of them.
        sources: The sources, in the same order.
        spec: The spec that they share.
        base: The network that they were fine-tuned from; ``mean`` for their mean; None where nobody said.
    """

    files: Sequence[SourceFile]
    sources: Sequence[Source]
    spec: Spec
    base: nn.Module | Literal["mean"] | None

    @property
    def headless(self) -> bool:
        """Whether they are trunks alone, whose pooled values stand in place of logits."""
        return self.files[0].head == "none"


def go_together(
    files: Sequence[SourceFile], sources: Sequence[Source], settings: Settings, picture: tuple[int, int, int]
) -> Loaded:
    """Trace the sources, load what they were fine-tuned from, and check that a student can have the budgets.

    It needs no data, so that a wrong file is found before anything is downloaded.

    Args:
        files: What the user said of the sources.
        sources: The sources, in the same order.
        settings: What to make of them.
        picture: Shape of a picture: channels, height, width.

    Raises:
        PleasError: If the sources differ in architecture, or in having heads, or no student can have a budget.
    """
    trunks = [file for file in files if file.head]
    if 0 < len(trunks) < len(files):
        raise ConfigurationError(
            f"head of {trunks[0].path} is 'none', but others have heads; allowed: none of all, or of none."
        )
    spec = common_spec(sources, picture)
    heads = UnitMap.apart(tuple(source.logits for source in sources))
    check_budgets(settings.budgets, len(sources), lambda unit: source_size(spec, heads, unit))
    check_growth(spec, {spec.output.name: heads}, settings.budgets)
    base: nn.Module | Literal["mean"] | None = "mean" if settings.base == "mean" else None
    if settings.base not in (None, "mean"):
        base = load_base(str(settings.base), sources[0], spec.picture).requires_grad_(False)
    return Loaded(files, sources, spec, base)


def prepare(
    loaded: Loaded, settings: Settings, data: MergeData, pictures: PictureCounts
) -> tuple[Problem, list[Source], list[list[str]], MemoryEstimate, int]:
    """Check that everything goes together as far as names and shapes tell, and say what is planned.

    Args:
        loaded: The sources.
        settings: What to make of them.
        data: The domains.
        pictures: How many of their pictures there will be to calibrate with.

    Returns:
        The problem, the sources under their names, the domains of each, the most memory that any method's fit takes in
        one process, and the bytes that methods keep there of unfinished students.

    Raises:
        PleasError: If something does not go together.
    """
    labels = data.label_space
    if loaded.headless and data.prepares:  # what classes its pictures have says nothing of pooled values
        labels = label_space_of(loaded.files, loaded.sources, list(labels.domains), settings.without_source)
    sources, owned = place_sources(
        loaded.files, loaded.sources, labels, data.preprocessing, settings.without_source, loaded.spec
    )
    claimed = [domain for domains in owned for domain in domains]
    ordered = {domain: labels.classes[domain] for domain in claimed}
    problem = Problem(
        tuple(source.network for source in sources),
        {d: index for index, domains in enumerate(owned) for d in domains if claimed.count(d) == 1},
        loaded.spec,
        LabelSpace(ordered, "different") if labels.mode == "different" else labels,
        sources[0].architecture,
        data.preprocessing,
        base=loaded.base,
        names=tuple(source.name for source in sources),
        sharers={
            domain: tuple(index for index, domains in enumerate(owned) if domain in domains)
            for domain in labels.domains
            if claimed.count(domain) > 1
        },
    )
    prepared = _prepare_methods(settings, problem, pictures)
    for message in filter(None, (preparation.message for preparation in prepared)):
        tell(message)
    estimate = MemoryEstimate.most(*(preparation.memory for preparation in prepared))
    return problem, sources, owned, estimate, sum(preparation.kept for preparation in prepared)


def taught_domains(problem: Problem, settings: Settings, counts: Mapping[str, int]) -> dict[str, int]:
    """The domains that get a head of their own beside the shared one, and the source of each.

    Args:
        problem: The merge.
        settings: What to make of it.
        counts: domain -> how many of its pictures calibrate.

    Raises:
        ConfigurationError: If heads of domains are asked for where there is nothing to tell apart.
    """
    if settings.heads == "shared":
        return {}
    if problem.labels.mode == "different":
        raise ConfigurationError(
            "heads is 'domains', which changes nothing where each domain has a head of its own already (label_space is "
            "'different'); allowed there: 'shared'."
        )
    owned = {domain: owner for domain, owner in problem.owners.items() if domain in counts}
    if len(set(owned.values())) < 2:
        raise ConfigurationError(
            f"heads is 'domains', which takes calibration pictures of two domains or more, each with a source of its "
            f"own; of that kind there are: {', '.join(owned) or 'none'}."
        )
    for domain in owned:
        if counts[domain] < TAUGHT:
            raise ConfigurationError(
                f"heads is 'domains', which takes {TAUGHT} calibration pictures of each domain at least, to learn from "
                f"and to judge by; {domain} has {counts[domain]}."
            )
    return owned


def prove(sources: Sequence[Source], spec: Spec, tolerance: float, data: MergeData) -> dict[str, float]:
    """Run every source with its groups permuted, and open every picture, so that neither fails after the fit.

    Args:
        sources: The sources.
        spec: Their spec.
        tolerance: Largest relative change of the logits that permuting a group of a source may make.
        data: The domains.

    Returns:
        source -> largest relative change of its logits that permuting a group makes.

    Raises:
        PleasError: If permuting changes more, or a picture cannot be read.
    """
    equivalence = {source.name: _equivalence(source, spec, tolerance) for source in sources}
    data.check_pictures()
    return equivalence


def progress_of(problem: Problem, fingerprint: Fingerprint, data: MergeData, place: Place) -> Progress:
    """Where the work of this merge is kept, and of no other.

    Args:
        problem: The merge.
        fingerprint: What its statistics depend on.
        data: The domains.
        place: Where it runs, a folder among it.

    Raises:
        ConfigurationError: If the folder holds unfinished work of another merge.
    """
    assert place.folder is not None
    depends = {
        "fingerprint": fingerprint.digest,
        "labels": [problem.labels.mode, list(problem.labels.classes.items())],
        "owners": list(problem.owners.items()),
        "base": network_hash(problem.base) if isinstance(problem.base, nn.Module) else problem.base,
        "seed": data.seed,  # batches are counted in its order
        "batch": data.calibration_batch_size,
        "processes": place.processes,
        "device": torch.device(place.device).type,
        "versions": [version("pleas-lightning"), str(torch.__version__)],
    }
    unfinished = place.folder / FOLDER
    progress = Progress(unfinished).below("merge", depends)
    if progress.others:
        raise ConfigurationError(
            f"run is {place.folder}, which holds {unfinished_work(place.folder, 'merge with other arguments')}; choose "
            f"another folder, or remove {unfinished}."
        )
    return progress


def _prepare_methods(settings: Settings, problem: Problem, pictures: PictureCounts) -> list[Preparation]:
    """Refuse methods that cannot work with so many calibration pictures."""
    planned: dict[str, Method] = {}
    prepared = []
    for method in settings.methods:
        if method.needed(problem.spec, settings.budgets) and not pictures.domains:
            raise ConfigurationError(
                f"method {method.name} needs calibration pictures, but data.calibration is 'none'; set it to "
                f"'all', a number or 'public', or name methods that need none, such as Average, or Permutation "
                f"with matching 'weights'."
            )
        prepared.append(method.prepare(problem, pictures, settings.budgets, planned))
        permutes = Budget(1.0) in settings.budgets
        if all(isinstance(one, Arithmetic) or (permutes and isinstance(one, Permutation)) for one in method.candidates):
            planned[method.name] = method
    return prepared


def _equivalence(source: Source, spec: Spec, tolerance: float) -> float:
    """Largest relative change of a source's logits that permuting a group makes."""
    try:
        differences = check_equivalence(source.network, spec, tolerance=tolerance)
    except MergeError as error:
        raise MergeError(f"source {source.origin}: {error}") from error
    worst = max(differences.values())
    tell(
        f"{source.name}: permuting all of its {len(differences)} groups changes the logits by at most "
        f"{worst:.1e} (relative)"
    )
    return worst
