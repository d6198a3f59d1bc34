"""Whether sources, methods and data go together: found out once, before any long work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from project.allocation import Budget
from project.data import DomainDataModule
from project.errors import ConfigurationError, MergeError
from project.merging.sources import SourceFile, place_sources
from project.methods import Method, Permutation, Problem
from project.methods.shared import Arithmetic
from project.models import LabelSpace
from project.moments import Fingerprint, network_hash
from project.runtime import Progress
from project.runtime.progress import FOLDER
from project.student import Source
from project.symmetry import Spec, check_equivalence


@dataclass(frozen=True, eq=False)
class Prepared:
    """A merge of which all is known but what its sources do on the calibration pictures.

    Args:
        problem: Without statistics.
        sources: The sources under their names.
    """

    problem: Problem
    sources: list[Source]


def prepare(
    files: Sequence[SourceFile],
    loaded: Sequence[Source],
    spec: Spec,
    data: DomainDataModule,
    methods: Sequence[Method],
    budgets: Sequence[Budget],
    without_source: Sequence[str] = (),
    base: nn.Module | Literal["mean"] | None = None,
) -> Prepared:
    """Check that everything goes together as far as names and shapes tell, and say what is planned.

    Args:
        files: The sources' files.
        loaded: What they hold.
        spec: The sources' spec.
        data: The domains.
        methods: Merging methods.
        budgets: Sizes of the students.
        without_source: Domains that need none.
        base: What the sources were fine-tuned from, see Problem.

    Raises:
        PleasError: If something does not.
    """
    labels = data.label_space
    sources, owned = place_sources(files, loaded, labels, data.preprocessing, without_source)
    claimed = [domain for domains in owned for domain in domains]
    ordered = {domain: labels.classes[domain] for domain in claimed}
    problem = Problem(
        tuple(source.network for source in sources),
        {d: index for index, domains in enumerate(owned) for d in domains if claimed.count(d) == 1},
        spec,
        LabelSpace(ordered, "different") if labels.mode == "different" else labels,
        sources[0].architecture,
        data.preprocessing,
        base=base,
        names=tuple(source.name for source in sources),
    )
    pictures = data.calibration_counts()
    _check_methods(methods, problem, pictures, budgets)
    for plan in filter(None, (method.plan(problem) for method in methods)):
        rank_zero_info(plan)
    return Prepared(problem, sources)


def prove(sources: Sequence[Source], spec: Spec, tolerance: float, data: DomainDataModule) -> dict[str, float]:
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
    for domain in data.calibration_domains:
        data.samples(domain, "calibration")
    for domain in data.label_space.domains:
        data.samples(domain, "test")
    return equivalence


def progress_of(
    problem: Problem,
    fingerprint: Fingerprint,
    data: DomainDataModule,
    folder: Path,
    device: torch.device | str,
    processes: int,
) -> Progress:
    """Where the work of this merge is kept, and of no other.

    Args:
        problem: The merge.
        fingerprint: What its statistics depend on.
        data: The domains.
        folder: The run's folder.
        device: Where the merge runs.
        processes: Processes that share the calibration pictures.

    Raises:
        ConfigurationError: If the folder holds unfinished work of another merge.
    """
    depends = {
        "fingerprint": fingerprint.digest,
        "labels": [problem.labels.mode, list(problem.labels.classes.items())],
        "owners": list(problem.owners.items()),
        "base": network_hash(problem.base) if isinstance(problem.base, nn.Module) else problem.base,
        "seed": data.seed,  # batches are counted in its order
        "batch": data.calibration_batch_size,
        "processes": processes,
        "device": torch.device(device).type,
        "versions": [version("pleas-lightning"), str(torch.__version__)],
    }
    progress = Progress(folder / FOLDER).below("merge", depends)
    if any(other != progress.folder for other in (folder / FOLDER).glob("merge-*")):
        raise ConfigurationError(
            f"run is {folder}, which holds an unfinished merge with other arguments; choose another folder, or remove "
            f"{folder / FOLDER}."
        )
    return progress


def _check_methods(
    methods: Sequence[Method], problem: Problem, pictures: Mapping[str, int], budgets: Sequence[Budget]
) -> None:
    """Refuse methods that cannot work with so many calibration pictures."""
    planned: dict[str, Method] = {}
    for method in methods:
        if method.needs and not pictures:
            raise ConfigurationError(
                f"method {method.name} needs calibration pictures, but data.calibration is 'none'; set it to "
                f"'all', a number or 'public', or name methods that need none, such as Average, or Permutation "
                f"with matching 'weights'."
            )
        method.check(replace(problem, planned=planned), pictures, budgets)
        permutes = Budget(1.0) in budgets
        if all(isinstance(one, Arithmetic) or (permutes and isinstance(one, Permutation)) for one in method.candidates):
            planned[method.name] = method


def _equivalence(source: Source, spec: Spec, tolerance: float) -> float:
    """Largest relative change of a source's logits that permuting a group makes."""
    try:
        differences = check_equivalence(source.network, spec, tolerance=tolerance)
    except MergeError as error:
        raise MergeError(f"source {source.origin}: {error}") from error
    worst = max(differences.values())
    rank_zero_info(
        f"{source.name}: permuting each of {len(differences)} groups changes the logits by at most "
        f"{worst:.1e} (relative)"
    )
    return worst
