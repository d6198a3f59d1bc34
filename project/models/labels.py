"""Which output column means which class of which domain."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from project.errors import ConfigurationError, encodable, one_of

LabelMode = Literal["shared", "different"]
OWN, JOINT = HEAD_WORDS = ("own", "joint")  # what to ask of the heads in place of one domain's

CODE_POINTS, NATURAL = ORDERS = ("code points", "natural")  # in which tools sort the folders of classes


@dataclass(frozen=True)
class LabelSpace:
    """The classes of every domain and the output columns they own.

    Args:
        classes: For each domain, in order, its class names in the order of its labels.
        mode: ``shared`` when all domains have the same classes (one head); ``different`` when every domain keeps a
            head of its own, the heads standing side by side in the order of the domains.

    Raises:
        ConfigurationError: In shared mode, where the domains' classes differ; the message lists the difference. Where a
            domain has a name that means something else when a head is asked for. Where a name is not UTF-8.
    """

    classes: Mapping[str, tuple[str, ...]]
    mode: LabelMode = "shared"

    def __post_init__(self) -> None:
        """Refuse unequal classes in shared mode."""
        one_of(LabelMode, label_space=self.mode)
        for domain, classes in self.classes.items():
            if domain in HEAD_WORDS:
                raise ConfigurationError(f"a domain is called {domain!r}, which asks for no single head; rename it.")
            for name in (domain, *classes):
                if not encodable(str(name)):
                    raise ConfigurationError(f"{name!r} of domain {domain!r} is not UTF-8; rename its folder.")
        if self.mode == "different" or not self.classes:
            return
        first, *others = self.classes
        for other in others:
            mine, theirs = self.classes[first], self.classes[other]
            if mine == theirs:
                continue
            only = sorted(set(mine) - set(theirs)), sorted(set(theirs) - set(mine))
            if any(only):
                difference = (
                    f"only in {first}: {', '.join(only[0]) or '–'}; only in {other}: {', '.join(only[1]) or '–'}"
                )
            else:
                difference = "they are the same classes in another order"
            raise ConfigurationError(
                f"label_space is 'shared', which needs the same classes in every domain, but {first} and {other} "
                f"differ ({difference}); use label_space 'different' or map the classes."
            )

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in order."""
        return tuple(self.classes)

    @property
    def width(self) -> int:
        """Number of output columns over all heads."""
        counts = [len(names) for names in self.classes.values()]
        return counts[0] if self.mode == "shared" else sum(counts)

    @property
    def heads(self) -> dict[str, slice]:
        """Head -> its output columns: one head for each domain, or in shared mode one under all their names."""
        if self.mode == "shared":
            return {"+".join(self.classes): slice(0, self.width)}
        return {domain: self.columns(domain) for domain in self.classes}

    def columns(self, domain: str) -> slice:
        """Output columns that hold the logits of a domain's classes."""
        if self.mode == "shared":
            return slice(0, self.width)
        start = 0
        for name, names in self.classes.items():
            if name == domain:
                return slice(start, start + len(names))
            start += len(names)
        raise ConfigurationError(f"domain is {domain!r}; known: {', '.join(self.classes)}.")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """What timm sorts names of classes by: whatever the case, numbers by their value; then by code points."""
    parts = re.split(r"(\d+)", name.lower())  # texts and numbers in turn
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def check_several(labels: LabelSpace) -> None:
    """Refuse a single class over all heads, of which every network is sure.

    Raises:
        ConfigurationError: With the class.
    """
    if labels.width == 1:
        (name,) = next(iter(labels.classes.values()))
        raise ConfigurationError(
            f"the data have one class, {name!r}; allowed: two or more, or there is nothing to tell apart."
        )
