"""What the functions of the library take beside sources and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from project.data.calibration import Calibration
from project.data.folders import ClassOrder
from project.merging.prepared import PictureOptions
from project.merging.settings import Audit, Heads
from project.methods.shared.matching import By
from project.models.labels import LabelMode

Align = Literal["none"] | By


class MergeOptions(PictureOptions, total=False):
    """What :func:`merge` and :func:`merges` take beside sources, pictures, budgets and methods; all may be left out.

    What pictures in folders go through can be said, too: see :class:`~project.merging.prepared.PictureOptions`.

    Attributes:
        classes: Names of the classes, in the order of the logits: one list for all domains, or domain -> list; not for
            pictures in class folders, which say them. Default: what the sources' files say, else numbers.
        label_space: ``shared``: the domains have one head; ``different``: each has a head of its own. Default: shared
            where all have the same classes.
        base: What the sources were fine-tuned from, for methods that need it: a file, torchvision's name of weights,
            or ``mean``.
        without_source: Domains of pictures that no source was trained on.
        image_size: Height and width to which pictures in folders are brought, in pixels, or at which networks are run
            where there are no pictures (default: what the sources' files say; without pictures else 224). How pictures
            in folders are cropped and normalised the files say, too.
        class_order: Which class of pictures in folders is which logit: ``code points`` (default), ``natural``, as timm
            sorts folders, or a list of all names.
        calibration: How many pictures of each domain are taken from folders, or ``all`` (default: 512).
        batch_size: Pictures of each domain in a batch (default: 64).
        architecture: What builds the sources, where neither their files nor their shapes tell: a name of torchvision's,
            ``timm/`` and one of timm's, a folder whose config.json says it, a dotted path, a class or a function.
        arguments: Keyword arguments of the architecture.
        device: Where networks run and layers are solved; default: a GPU where there is one.
        folder: Where unfinished work is kept, so that a merge which was killed goes on when it is started again;
            emptied of it at the end. Default: nowhere.
        statistics: File of what calibration leaves behind: read if it exists, else written.
        heads: Where domains share their classes: ``shared`` (default): students have one head; ``domains``: one for
            each domain beside it, for pictures whose domain is told, ``student.probabilities(pictures, "sketch")``, or
            guessed.
        memory: Most memory to take beside what the process holds before, mapped files apart, such as '16 GB'; what
            takes more waits in the folder. Default: what is free.
        audit: Where a source's running statistics fit clearly better to another reading of it, such as another order
            of colours: ``stop``, ``warn``, or do not look (``off``; default: stop).
        renormalise: Whether batch norms are re-estimated where a method leaves that to do (default: true).
        progress: Whether bars show how far it is, on a terminal (default: true).
    """

    classes: Sequence[str] | Mapping[str, Sequence[str]] | None
    label_space: LabelMode | None
    base: str | Path | None
    without_source: Sequence[str]
    image_size: int
    class_order: ClassOrder
    calibration: Calibration
    batch_size: int
    architecture: Any
    arguments: Mapping[str, Any] | None
    device: torch.device | str | None
    folder: str | Path | None
    statistics: str | Path | None
    memory: str | None
    audit: Audit
    heads: Heads
    renormalise: bool
    progress: bool


class AverageOptions(PictureOptions, total=False):
    """What :func:`average` takes beside sources, file and pictures; all may be left out.

    What pictures in a folder go through can be said, too: see :class:`~project.merging.prepared.PictureOptions`.

    Attributes:
        align: How units are matched first: ``activations`` on the pictures (default where there are any), ``weights``
            (default where there are none), ``both``, or ``none``.
        image_size: Height and width of pictures, in pixels; default: what the files say. Where there are no pictures,
            those that the networks are run on (default: 224, or 32 for networks for small pictures).
        calibration: How many pictures are taken from a folder, or ``all`` (default: 512).
        batch_size: Pictures in a batch (default: 64).
        architecture: What builds the networks, where neither their files nor their shapes tell.
        arguments: Keyword arguments of the architecture.
        weights: Of files with several sets of weights, the averaged ones (``ema``, the default) or ``raw`` ones.
        head: ``none`` averages the trunks of ResNets alone, whatever heads they have or lack.
        device: Where networks run; default: a GPU where there is one.
        overwrite: Whether a file that is there already is replaced (default: false).
        progress: Whether bars show how far it is, on a terminal (default: true).
    """

    align: Align | None
    image_size: int | None
    calibration: int | Literal["all"]
    batch_size: int
    architecture: Any
    arguments: Mapping[str, Any] | None
    weights: Literal["ema", "raw"] | None
    head: Literal["none"] | None
    device: torch.device | str | None
    overwrite: bool
    progress: bool
