"""Which classes the logits of sources mean, where the pictures do not tell."""

from collections.abc import Mapping, Sequence

from project.errors import ConfigurationError
from project.merging.sources import SourceFile, settle_domains
from project.models import LabelSpace
from project.models.labels import LabelMode
from project.student import Source

Classes = Sequence[str] | Mapping[str, Sequence[str]]


def label_space_of(
    files: Sequence[SourceFile],
    sources: Sequence[Source],
    domains: Sequence[str],
    without_source: Sequence[str] = (),
    classes: Classes | None = None,
    mode: LabelMode | None = None,
) -> LabelSpace:
    """The domains of pictures that say nothing of classes, with the classes of the sources that own them.

    Args:
        files: What the user said of the sources.
        sources: The sources, in the same order.
        domains: Names of the domains, in order.
        without_source: Domains that no source was trained on; they have the classes of all, which must be shared.
        classes: Names of the classes, one list for all domains or domain -> list; default: what a source's file says,
            else numbers.
        mode: ``shared`` or ``different``; default: shared where all domains have the same classes, and never for trunks
            without heads: what a value means is each one's own.

    Raises:
        ConfigurationError: If classes names other domains, or a class twice; see also
            :func:`~project.merging.sources.settle_domains`.
    """
    if isinstance(classes, str):
        raise ConfigurationError(f"classes is {classes!r}; allowed: a list of names, or domain -> list.")
    provisional = LabelSpace(dict.fromkeys(domains, ("0",)), "shared")
    owned = settle_domains(files, sources, provisional, without_source)
    if isinstance(classes, Mapping) and (unknown := sorted(set(classes) - set(domains))):
        raise ConfigurationError(f"classes names {unknown[0]!r}; the domains are {', '.join(domains)}.")
    by_domain: dict[str, tuple[str, ...]] = {}
    for source, names in zip(sources, owned, strict=True):
        for domain in names:
            by_domain.setdefault(domain, _classes(source, domain, names, classes))
    for domain in without_source:
        by_domain.setdefault(domain, next(iter(by_domain.values())))
    ordered = _agreed({domain: by_domain[domain] for domain in domains})
    alike = len(set(ordered.values())) == 1 and not any(file.head == "none" for file in files)
    return LabelSpace(ordered, mode or ("shared" if alike else "different"))


def _agreed(by_domain: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Domains of the same classes have them in one order, that of the first of them, whatever their sources'."""
    orders: dict[frozenset[str], tuple[str, ...]] = {}
    return {domain: orders.setdefault(frozenset(names), names) for domain, names in by_domain.items()}


def _classes(source: Source, domain: str, domains: Sequence[str], classes: Classes | None) -> tuple[str, ...]:
    """The classes of one domain of one source."""
    given = classes.get(domain) if isinstance(classes, Mapping) else classes
    known = source.description.label_space
    if given is None and known is not None:
        given = known.classes.get(domain) or (next(iter(known.classes.values())) if len(known.heads) == 1 else None)
    elif given is None and len(source.description.class_names or ()) == source.logits:
        given = source.description.class_names
    if given is None:
        heads = len(domains) if known is not None and len(known.heads) > 1 else 1
        return tuple(map(str, range(source.logits // heads)))
    if len(set(given)) < len(given):
        raise ConfigurationError(f"classes holds {', '.join(given)}; allowed: every name once.")
    return tuple(given)
