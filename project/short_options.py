"""The options of ``pleas merge`` without the paths that they have in a YAML file, and the help that shows them."""

from collections.abc import Mapping
from dataclasses import dataclass

EXAMPLE = "pleas merge photo.pth sketch.pth --pictures my_data --image-size 224 --budget 1.0 1.5 --out runs/mine"


@dataclass(frozen=True)
class Short:
    """An option without the path that it has in a YAML file.

    Args:
        names: Its spellings, the first of which is shown.
        path: Path of the option that it stands for.
        values: What follows it, as the help shows it.
        help: What it says.
        several: Whether one or more values follow it, and not one.
    """

    names: tuple[str, ...]
    path: str
    values: str
    help: str
    several: bool = False

    @property
    def option(self) -> str:
        """As a user writes it."""
        return f"--{self.names[0]}"


PICTURES = Short(("pictures",), "data.sets", "FOLDER", "pictures, as FOLDER/<domain>/<class>/<picture>")
DOMAINS = Short(("domains",), "data.domains", "NAME ...", "which of its domains; default: all, by name", several=True)
IMAGE_SIZE = Short(
    ("image-size",), "data.image_size", "PIXELS", "side of a picture, in pixels; default: what the files say"
)
CLASS_ORDER = Short(
    ("class-order",), "data.sets.class_order", "ORDER|NAME ...",
    "how logits stand: 'code points' (default), natural as timm sorts, or all names", True,
)  # fmt: skip
BELOW = Short(
    ("below",), "data.sets.below", "FOLDER", "folder between a domain and its classes, such as images; . for none"
)
TEST = Short(("test",), "data.sets.test", "FOLDER|LIST", "in each domain's folder, its test pictures; default: drawn")
BUDGETS = Short(
    ("budget", "budgets"), "model.budgets", "SIZE ...", "largest sizes of the students, 1.2 or '14M params'", True
)
METHODS = Short(
    ("method", "methods"), "model.methods", "NAME ...", "merging methods; default: average permutation pleas", True
)
SHORTS = (
    PICTURES,
    DOMAINS,
    IMAGE_SIZE,
    CLASS_ORDER,
    BELOW,
    TEST,
    BUDGETS,
    METHODS,
    Short(("base",), "model.base", "FILE|NAME|mean", "what the sources were fine-tuned from"),
    Short(("calibration",), "data.calibration", "NUMBER|all", "pictures of each domain to gather from; default: 512"),
    Short(("label-space",), "data.label_space", "shared|different", "whether all domains have the same classes"),
    Short(("batch-size",), "data.batch_size", "NUMBER", "pictures in a batch"),
    Short(("statistics",), "model.statistics", "FILE", "keep what calibration leaves behind, or take it up again"),
    Short(("memory",), "model.memory", "SIZE", "most memory to take, such as '16 GB'"),
    Short(("audit",), "model.audit", "stop|warn|off", "where sources do not fit their pictures; default: stop"),
    Short(("heads",), "model.heads", "shared|domains", "whether domains have heads of their own beside the shared one"),
    Short(("seed",), "seed_everything", "NUMBER", "seed of the run"),
    Short(("out",), "run", "FOLDER", "everything that the run writes; default: runs/merge"),
)


def in_columns(rows: Mapping[str, str]) -> list[str]:
    """Lines of a table of words and what they mean."""
    width = max(map(len, rows))
    return [f"  {word:{width}}  {text}" for word, text in rows.items()]


def usage() -> str:
    """What ``pleas merge --help`` shows first: the short form, an example and its options."""
    shown = {f"{short.option} {short.values}": short.help for short in SHORTS}
    return "\n".join([
        "pleas merge FILE FILE ... --pictures FOLDER [options]",
        "       pleas merge --config FILE [options]",
        "",
        "example:",
        f"  {EXAMPLE}",
        "",
        "options without their paths:",
        *in_columns(shown),
        "",
        "A file belongs to the domain that it names itself, else to the one whose name its own name holds, else to the",
        "domain in its place; the run says which is which.",
    ])  # fmt: skip
