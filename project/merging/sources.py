"""The sources of a merge as a user names them, and whether they go together with the data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

from project.errors import ConfigurationError
from project.merging.classes import (
    assumed,
    check_classes,
    classes_of_heads,
    column_order,
    own_labels,
)
from project.merging.prepared import warn_of_preprocessing
from project.models import LabelSpace, Preprocessing
from project.models.labels import check_several
from project.models.reading.choosing import Headless, Which
from project.moments import network_hash
from project.runtime import tell
from project.student import Source, load_source
from project.student.columns import with_columns
from project.symmetry import Spec


@dataclass
class SourceFile:
    """The file of a network: a source of a merge, or one to be scored.

    Args:
        path: Lightning checkpoint, state dict, safetensors file or student, or a folder that holds one of these; a
            folder on the Hugging Face Hub by hf-hub:OWNER/NAME.
        domains: Domains it was trained on, in the order of its heads; default: what its file says, else the one whose
            name the file's name holds, else, where as many sources as domains are left without each other, the domain
            in its place among those. Outside a merge: else
            those that alone have as many classes as it has logits.
        name: Name in tables; default: its domains, outside a merge its file's name.
        architecture: Name of the network (torchvision's, timm/NAME for timm's), a folder whose config.json says it, or
            the dotted path of a class or function that builds it, such as mypackage.models.MyNet; default: what the
            file says, or the config.json beside it, else what its shapes tell. A file that says a dotted path needs it
            here, too: files choose no code.
        arguments: Keyword arguments of the class or function; default: what the file says.
        weights: Of a file with several sets of weights, the averaged ones (ema) or the others (raw); default: the
            averaged ones.
        head: none takes the trunk of a ResNet alone, whatever head its file has or lacks: its pooled values stand in
            the place of logits. For project.merge.
    """

    path: Path
    domains: list[str] | None = None
    name: str | None = None
    architecture: str | None = None
    arguments: dict[str, Any] | None = None
    weights: Which | None = None
    head: Headless | None = None


def as_files(sources: Sequence[SourceFile | Path]) -> list[SourceFile]:
    """The sources as a user may name them, by their paths alone, each as a SourceFile.

    Raises:
        ConfigurationError: If they are fewer than two.
    """
    files = [source if isinstance(source, SourceFile) else SourceFile(Path(source)) for source in sources]
    if len(files) < 2:
        raise ConfigurationError(f"sources holds {len(files)} of at least 2 files that a merge needs.")
    return files


def read_sources(files: Sequence[SourceFile]) -> list[Source]:
    """Load the files.

    Raises:
        ConfigurationError: If two of them are the same file, under one name or two, or hold the same network.
    """
    sources = [
        load_source(file.path, file.name, file.architecture, file.arguments, file.weights, file.head) for file in files
    ]
    check_distinct(sources)
    return sources


def check_distinct(sources: Sequence[Source]) -> None:
    """Refuse to merge a network with itself.

    Raises:
        ConfigurationError: If two sources are the same file, under one name or two, or hold the same network.
    """
    for first, second in combinations(sources, 2):
        if first.path is not None and first.sha256 == second.sha256:
            raise ConfigurationError(
                f"sources holds {first.origin} and {second.origin}, which are the same file; each source is merged "
                f"once, and one of several domains names them all in its domains."
            )
    hashes = [network_hash(source.network) for source in sources]
    for (first, one_hash), (second, other_hash) in combinations(zip(sources, hashes, strict=True), 2):
        if one_hash == other_hash:
            raise ConfigurationError(f"sources holds {first.origin} and {second.origin}, which hold the same network.")


def place_sources(
    files: Sequence[SourceFile],
    loaded: Sequence[Source],
    labels: LabelSpace,
    preprocessing: Preprocessing | None,
    without_source: Sequence[str],
    spec: Spec,
) -> tuple[list[Source], list[list[str]]]:
    """Settle which domains each source was trained on, and check that its head is made for them.

    A source whose file names the data's classes in another order gets its columns in the data's.

    Args:
        files: The files.
        loaded: What they hold.
        labels: Domains and classes of the data.
        preprocessing: What the data's pictures go through.
        without_source: Domains that need none.
        spec: Spec of the sources.

    Returns:
        The sources under their names, those of their domains where no two have the same, and the domains of each.

    Raises:
        ConfigurationError: If they do not go together with the data.
    """
    owned = settle_domains(files, loaded, labels, without_source)
    for file, domains in zip(files, owned, strict=True):
        tell(f"{file.path} is the source of {', '.join(domains)}")
    joined = ["+".join(domains) for domains in owned]
    named = [
        replace(source, name=file.name or (source.name if joined.count(name) > 1 else name))
        for file, source, name in zip(files, loaded, joined, strict=True)
    ]
    names = [source.name for source in named]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"sources have the names {', '.join(names)}; give each a name of its own.")
    named = [_arranged(source, labels, domains, spec) for source, domains in zip(named, owned, strict=True)]
    for source, domains in zip(named, owned, strict=True):
        if source.description.label_space is not None:
            check_classes(source.origin, own_labels(source.description, labels, source.origin), labels)
        counts = [len(labels.classes[domain]) for domain in domains]
        width = counts[0] if labels.mode == "shared" else sum(counts)
        if source.logits != width:
            raise ConfigurationError(
                f"source {source.origin} has {source.logits} logits, "
                f"but its domains {', '.join(domains)} have {width} classes."
            )
        granted = "; ".join(assumed(source.description, labels, domains, preprocessing))
        tell(f"taken for granted of {source.name}: {granted}")
        warn_of_preprocessing(source.origin, source.description.preprocessing, preprocessing)
    check_several(labels)
    return named, owned


def _arranged(source: Source, labels: LabelSpace, domains: Sequence[str], spec: Spec) -> Source:
    """The source with its columns in the order of the data's classes, as far as its file names its own."""
    order = column_order(source.description, labels, domains, source.origin, source.logits)
    if order is None or (order == sorted(order) and source.description.label_space is None):
        return source
    known = source.description.label_space
    if known is not None:
        classes = {domain: labels.classes.get(domain, labels.classes[domains[0]]) for domain in known.domains}
        known = LabelSpace(classes, known.mode)
    names = None if known else tuple(chain(*classes_of_heads(labels, domains)))
    description = replace(source.description, label_space=known, class_names=names)
    if order == sorted(order):
        return replace(source, description=description)
    moved = sum(place != column for place, column in enumerate(order))
    tell(
        f"{source.origin} has {moved} of its classes in other places than the data; its columns are put in their order"
    )
    return replace(source, network=with_columns(source.network, order, spec), description=description)


def settle_domains(
    files: Sequence[SourceFile], loaded: Sequence[Source], labels: LabelSpace, without_source: Sequence[str] = ()
) -> list[list[str]]:
    """Settle which domains each source was trained on.

    As stated, else as its file says, else as the file's name holds one of which no other is, else by place among those
    that are left. Where there is one domain, and no source claims any, all are of it.

    Raises:
        ConfigurationError: If a domain is unknown, claimed twice where each needs a head, in another order than the
            file's heads, or without a source though it is not said to be.
    """
    for domain in without_source:
        if domain not in labels.domains:
            raise ConfigurationError(f"without_source holds {domain!r}; the data have: {', '.join(labels.domains)}.")
    stated = [_stated(file, source, labels) for file, source in zip(files, loaded, strict=True)]
    names = [file.path.stem for file in files]
    stated = [
        domains if domain is None else [domain]
        for domains, domain in zip(stated, domains_by_name(names, stated, labels.domains), strict=True)
    ]
    claimed = {domain for domains in stated for domain in domains}
    left = [domain for domain in labels.domains if domain not in claimed and domain not in without_source]
    silent = [index for index, domains in enumerate(stated) if not domains]
    if len(silent) == len(files) and len(labels.domains) == 1 and labels.mode == "shared":
        left = list(labels.domains) * len(silent)
    if silent and len(silent) != len(left):
        raise ConfigurationError(
            f"source {files[silent[0]].path} does not say its domains; state them: {', '.join(labels.domains)}. "
            f"By order go as many sources as domains alone; {len(silent)} are silent, and {len(left)} domains are left."
        )
    for index, domain in zip(silent, left, strict=False):
        stated[index] = [domain]
    claims = {domain: sum(domain in domains for domains in stated) for domain in labels.domains}
    for domain, count in claims.items():
        if count != 1 and labels.mode == "different":
            what = "more than one source" if count else "no source"
            raise ConfigurationError(f"domain {domain!r} has {what}; with different label spaces each needs one head.")
        if count == 0 and domain not in without_source:
            raise ConfigurationError(
                f"domain {domain!r} has no source; add the file that was trained on it, leave it out of the data's "
                f"domains, or name it in without_source if its pictures shall calibrate all the same."
            )
    for domain, count in claims.items():
        if count > 1:
            tell(f"domain {domain!r} has {count} sources")
    return stated


def domains_by_name(names: Sequence[str], stated: Sequence[Sequence[str]], domains: Sequence[str]) -> list[str | None]:
    """Find the domains of sources that do not tell them, by the names of their files.

    Args:
        names: Of the files, without suffix.
        stated: Domains that each says it was trained on; empty where it says nothing.
        domains: Those of the data.

    Returns:
        For each file the domain whose name its own name holds, whatever the case, if no other file says or holds it;
        None where the file tells its domains itself, or its name decides nothing.
    """
    named = [None if said else _domain_in(name, domains) for name, said in zip(names, stated, strict=True)]
    claimed = {domain for said in stated for domain in said}
    return [domain if domain not in claimed and named.count(domain) == 1 else None for domain in named]


def _domain_in(name: str, domains: Sequence[str]) -> str | None:
    """The one domain whose name stands in a file's as a word; where ``cartoon`` stands, ``art`` does not."""
    held = [d for d in domains if re.search(rf"(?<![^\W\d_]){re.escape(d)}(?![^\W\d_])", name, re.IGNORECASE)]
    return held[0] if len(held) == 1 else None


def _stated(file: SourceFile, source: Source, labels: LabelSpace) -> list[str]:
    """Domains that a source is said to have; empty where nothing says."""
    known = source.description.label_space
    if file.domains is None:
        said = list(source.description.domains)
        known_domains = [domain for domain in said if domain in labels.domains]
        if said and not known_domains:
            raise ConfigurationError(
                f"source {file.path} says that it was trained on {', '.join(said)}, but the data have "
                f"{', '.join(labels.domains)}; state its domains if it is the source of some of these."
            )
        return known_domains
    for domain in file.domains:
        if domain not in labels.domains:
            raise ConfigurationError(
                f"source {file.path} names domain {domain!r}; the data have: {', '.join(labels.domains)}."
            )
    if (
        known is not None
        and known.mode == "different"
        and labels.mode == "different"
        and file.domains != list(known.domains)
    ):
        raise ConfigurationError(
            f"source {file.path} names domains {', '.join(file.domains)}, but its heads are for "
            f"{', '.join(known.domains)}, in this order."
        )
    return list(file.domains)
