"""What ``results.json`` holds, whoever has written it: what is not as a merge writes it counts as not recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from project.errors import ConfigurationError
from project.report.page.pair import Pair
from project.report.page.share import Share, counted
from project.report.results import TOP_1
from project.runtime.json_text import json_value

RESULTS = "results.json"
LARGEST = 1e15
"""Numbers from here on are none that a merge could have found; sums of those below stay finite."""
PLAIN = ("network", "kind", "budget", "nominal", "executed", "parameters", "MB")
"""Columns of the table before those of the domains, which ``mean`` follows."""


@dataclass(frozen=True)
class Network:
    """A row of the table.

    Args:
        name: Of the network.
        kind: ``source``, ``reference``, ``student`` or ``point``.
        cost: Multiply-adds over one source's; None where they are not known.
        accuracy: Domain -> share of its test pictures; domains that it does not know are left out.
        cells: All that the row holds.
    """

    name: str
    kind: str
    cost: float | None
    accuracy: Mapping[str, Share]
    cells: Mapping[str, Any]

    @property
    def method(self) -> str:
        """What made a student: its name without its budget."""
        return self.name.rsplit("-", 1)[0]


@dataclass(frozen=True)
class Merge:
    """What a merge has found.

    Args:
        measure: What stands for accuracy.
        domains: The domains, in order.
        networks: The rows of the table, in order.
        owners: Domain -> name of the source that alone was trained on it.
        classes: Domain -> names of its classes, as far as they are recorded.
        content: All that was recorded.
    """

    measure: str
    domains: Sequence[str]
    networks: Sequence[Network]
    owners: Mapping[str, str]
    classes: Mapping[str, Sequence[str]]
    content: Mapping[str, Any]

    def of_kind(self, kind: str) -> list[Network]:
        """The networks of one kind."""
        return [network for network in self.networks if network.kind == kind]

    @property
    def references(self) -> dict[str, Network]:
        """Domain -> the source that students are held against: its owner or, where there is none, the best on it."""
        found = {}
        for domain in self.domains:
            able = [source for source in self.of_kind("source") if domain in source.accuracy]
            own = [source for source in able if source.name == self.owners.get(domain)]
            if able:
                found[domain] = max(own or able, key=lambda source: source.accuracy[domain].percent)
        return found

    def everywhere(self, network: Network) -> dict[str, Network]:
        """Domain -> a network, for all domains."""
        return dict.fromkeys(self.domains, network)

    def pairs(self, ones: Mapping[str, Network], others: Mapping[str, Network]) -> list[Pair]:
        """Networks held against others on the same pictures.

        Args:
            ones: Domain -> a network that knows it.
            others: Domain -> the network that it is held against, for the same domains.
        """
        return [self._pair(domain, one, others[domain]) for domain, one in ones.items()]

    def _pair(self, domain: str, one: Network, other: Network) -> Pair:
        shares = one.accuracy[domain], other.accuracy[domain]
        known = self.part("tests", "both right", domain)
        found = (part(known, a.name).get(b.name) for a, b in ((one, other), (other, one)))
        both = next((count for count in found if type(count) is int), None)
        right, pictures = [share.right for share in shares], [share.pictures for share in shares]
        if both is None or None in right or None in pictures or pictures[0] != pictures[1]:
            return Pair(*shares)
        low, high = sum(right) - pictures[0], min(right)  # type: ignore[arg-type, operator, type-var]
        return Pair(*shares, both if max(low, 0) <= both <= high else None)  # type: ignore[operator]

    @property
    def counts_answers(self) -> bool:
        """Whether its figures are shares of pictures."""
        return self.measure == TOP_1

    def part(self, *keys: str) -> Mapping[str, Any]:
        """A part of what was recorded; empty where there is none."""
        return part(self.content, *keys)


def read_merge(folder: Path) -> Merge:
    """Read the results of a run.

    Args:
        folder: The run's.

    Raises:
        ConfigurationError: If there are none.
    """
    path, given = folder / RESULTS, f"run is {folder}"
    try:
        content = json_value(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"{given}, whose {RESULTS} cannot be read: {error.strerror}; allowed: the folder of a finished merge."
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{given}, whose {RESULTS} is no JSON: {error}.") from error
    rows = content.get("table") if isinstance(content, dict) else None
    if not rows or not isinstance(rows, list) or not all(isinstance(row, dict) and "network" in row for row in rows):
        raise ConfigurationError(f"{given}, whose {RESULTS} holds no table of networks, as 'pleas merge' writes it.")
    return understand(content)


def understand(content: Mapping[str, Any]) -> Merge:
    """Make sense of the results of a merge, which hold a table at least."""
    rows = content["table"]
    domains = _domains(content, rows[0])
    networks = [_network(row, domains, part(content, "tests")) for row in rows]
    classes = {
        domain: [str(name) for name in names]
        for domain, names in part(content, "tests", "classes").items()
        if isinstance(names, list)
    }
    return Merge(str(content.get("measure", TOP_1)), domains, networks, _owners(content), classes, content)


def part(content: Any, *keys: str) -> Mapping[str, Any]:
    """A part of nested mappings; empty where there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}


def number(value: Any) -> float | None:
    """A number as it may be drawn; None of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < LARGEST else None


def numbers(values: Any) -> dict[str, float]:
    """Those of the values of a mapping that are numbers."""
    found = {str(name): number(value) for name, value in values.items()} if isinstance(values, Mapping) else {}
    return {name: value for name, value in found.items() if value is not None}


def tally(values: Any) -> list[int]:
    """Counts; empty where they are none."""
    valid = isinstance(values, list) and all(type(value) is int and 0 <= value < 2**53 for value in values)
    return values if valid else []


def _domains(content: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    named = content.get("domains")
    if isinstance(named, list):
        return list(dict.fromkeys(str(name) for name in named))
    columns = list(row)
    end = columns.index("mean") if "mean" in columns else len(columns)
    return [name for name in columns[:end] if name not in PLAIN]


def _network(row: Mapping[str, Any], domains: Sequence[str], tests: Mapping[str, Any]) -> Network:
    name, accuracy = str(row["network"]), {}
    for domain in domains:
        right = sum(tally(part(tests, "right", name).get(domain)))
        pictures = sum(tally(part(tests, "pictures").get(domain)))
        percent = number(row.get(domain))
        if domain in part(tests, "right", name) and right <= pictures and pictures:
            accuracy[domain] = counted(right, pictures)
        elif percent is not None:
            accuracy[domain] = Share(percent)
    return Network(name, str(row.get("kind")), number(row.get("executed")), accuracy, row)


def _owners(content: Mapping[str, Any]) -> dict[str, str]:
    for lineage in part(content, "lineage").values():
        sources = part({"lineage": lineage}, "lineage").get("sources")
        if isinstance(sources, list):
            return {
                str(domain): str(source["name"])
                for source in sources
                if isinstance(source, Mapping) and "name" in source and isinstance(source.get("domains"), list)
                for domain in source["domains"]
            }
    return {}
