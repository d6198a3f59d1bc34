"""Domains of any data sets: listed, split, checked, and handed out to calibrate with; needs no trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from project.data.calibration import PUBLIC, Calibration, Views, calibration_samples, check_mode, check_views, views_of
from project.data.checking import OnError, PictureCheck, check_loading
from project.data.domain import Domain, DomainSet, Sample, choose
from project.data.fingerprint import picture_sums, transform_entries
from project.data.mixed import MixedLoader
from project.data.pictures import CalibrationPictures, Pictures
from project.data.sharding import EachOnce
from project.data.splits import Splits, by_class, split
from project.data.transforms import Transform, evaluation_transform, training_transform
from project.errors import ConfigurationError, DataError, one_of, seeds, share, whole
from project.models.labels import LabelMode, LabelSpace
from project.models.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Channels,
    Crop,
    Interpolation,
    Orientation,
    Preprocessing,
    resize_of,
)
from project.moments import Fingerprint
from project.runtime import tell
from project.runtime.saving import check_path
from project.symmetry import Spec

Use = Literal["train", "validation", "calibration", "test"]
Checked = Literal["listed", "used"]


class Domains:
    """Domains of one or several data sets, split and checked.

    Pictures are decoded once before they are first used, so that an unreadable one is found before a long run.

    Args:
        sets: Data set, or list of data sets, from which the domains come.
        root: Folder of the data, in place of the one that the only data set of ``sets`` names.
        domains: Which domains, in which order; all, in the order of the data sets, when not given.
        label_space: ``shared``: the domains have the same classes and share one head; ``different``: every domain has
            a head of its own.
        image_size: Side of the square network input in pixels. It has no default: networks read pictures of one size.
        mean: Mean of red, green and blue, for values from 0 to 1, taken off every picture.
        std: Standard deviation of red, green and blue, by which every picture is divided.
        crop: How pictures that are not square are fitted: ``center`` resizes the shorter side and keeps the middle,
            ``squash`` resizes the whole.
        resize: Side to which they are resized before the middle of ``image_size`` is kept, such as 256 for 224;
            ``image_size`` when null.
        crop_pct: The same as a share, as timm tells it: the side is image_size / crop_pct, rounded down.
        interpolation: How they are resized: ``nearest``, ``box``, ``bilinear``, ``hamming``, ``bicubic`` or
            ``lanczos``.
        orientation: ``applied``: pictures stand as their camera noted (EXIF); ``ignored``: as their pixels lie.
        ground: Colour on which transparent pictures are laid: ``white``, ``grey``, ``black`` or ``#rrggbb``; when null
            their transparency is dropped.
        channels: Order in which the networks read channels, ``RGB`` or ``BGR``; ``mean`` and ``std`` stay those of
            red, green and blue.
        batch_size: Pictures in a batch.
        num_workers: Processes that load pictures, for each loader.
        augment: Whether training pictures are cropped and mirrored at random.
        validation_fraction: Share of each class's training pictures held out for validation, from 0 up to but
            without 1.
        calibration: Pictures, without labels, from which a merge gathers its statistics: ``all`` training pictures of
            the domains; a number of each; ``public``, pictures of other domains; or ``none``.
        public: For ``public``: the data set whose training pictures are taken; none of its domains may be merged.
        public_pictures: For ``public``: how many pictures; all when null.
        calibration_views: How often each of these pictures is shown: as it is, then cropped and mirrored at random;
            ``auto``: as often as makes at most 512 views of the domain, once where there are more than 256 pictures,
            and public ones once.
        calibration_batch_size: Pictures of each domain in a calibration batch; as ``batch_size`` when null.
        seed: Seed of the validation split and of the choice of calibration pictures.
        on_error: What to do about an unreadable picture: ``raise`` an error, or ``skip`` it with a warning.
        check: Which pictures a merge opens before its long work: all that are ``listed`` for training, validation or
            test, whether drawn or not, or those alone that are ``used``.

    Raises:
        ConfigurationError: Where an argument has an impossible value.
    """

    prepares = True

    def __init__(
        self,
        sets: DomainSet | list[DomainSet],
        root: Path | None = None,
        domains: list[str] | None = None,
        label_space: LabelMode = "shared",
        image_size: int | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        crop: Crop = "center",
        resize: int | None = None,
        crop_pct: float | None = None,
        interpolation: Interpolation = "bilinear",
        orientation: Orientation = "applied",
        ground: str | None = None,
        channels: Channels = "RGB",
        batch_size: int = 64,
        num_workers: int = 0,
        augment: bool = True,
        validation_fraction: float = 0.1,
        calibration: Calibration = 512,
        public: DomainSet | None = None,
        public_pictures: int | None = 256,
        calibration_views: Views = "auto",
        calibration_batch_size: int | None = None,
        seed: int = 0,
        on_error: OnError = "raise",
        check: Checked = "listed",
    ) -> None:
        super().__init__()
        self.sets = [sets] if isinstance(sets, DomainSet) else sets
        if root is not None:
            if len(self.sets) != 1:
                raise ConfigurationError(f"root is {root}, which needs one data set; sets holds {len(self.sets)}.")
            self.sets[0].root = Path(root)
        self.domains = domains
        self.label_mode = label_space
        if image_size is None:
            raise ConfigurationError(
                "image_size is missing: say on pictures of which side, in pixels, the networks are to run, such as 224."
            )
        if crop_pct is not None:
            if resize is not None:
                raise ConfigurationError(f"resize is {resize} and crop_pct {crop_pct}; allowed: one of them.")
            resize = resize_of(image_size, crop_pct)
        self.preprocessing = Preprocessing(
            image_size, mean, std, crop, resize, interpolation, orientation, ground, channels
        )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.validation_fraction = validation_fraction
        self.calibration = calibration
        self.public = public
        self.public_pictures = public_pictures
        self.calibration_views = calibration_views
        self.calibration_batch_size = batch_size if calibration_batch_size is None else calibration_batch_size
        self.seed = seed
        self._check_values()
        one_of(Checked, check=check)
        self.checked = check
        self._check = PictureCheck(on_error)
        self._label_space: LabelSpace | None = None
        self._splits: dict[str, Splits] = {}
        self._calibration: dict[str, list[Sample]] = {}

    def read(self) -> None:
        """List and split the pictures, once; needs no trainer.

        Raises:
            ConfigurationError: Where a domain is unknown or the classes do not fit the label space.
            DataError: Where files are missing or malformed.
        """
        if self._label_space is not None:
            return
        found: dict[str, Domain] = {}
        for domain in (domain for domain_set in self.sets for domain in domain_set.read()):
            if domain.name in found:
                raise ConfigurationError(f"sets holds domain {domain.name} twice; allowed: every name once.")
            found[domain.name] = domain
        chosen = [found[name] for name in choose(self.domains, list(found))]
        for domain in chosen:
            if len(domain.classes) < 2:
                where = domain.train[0][0].parent
                raise DataError(
                    f"domain {domain.name} has one class, {domain.classes[0]!r} in {where}; allowed: two or more, each "
                    f"a folder of its own where the data are folders."
                )
        for domain in chosen:
            domain.tell()
        self._label_space = LabelSpace({domain.name: domain.classes for domain in chosen}, self.label_mode)
        self._splits = {domain.name: split(domain, self.validation_fraction, self.seed) for domain in chosen}

    @property
    def label_space(self) -> LabelSpace:
        """The classes of the domains; reads the lists where that has not been done."""
        self.read()
        assert self._label_space is not None
        return self._label_space

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, in order; reads the lists where that has not been done."""
        return self.label_space.domains

    @property
    def calibration_domains(self) -> tuple[str, ...]:
        """Whose pictures calibrate: the domains, ``public``, or nobody's."""
        return tuple(self._calibrating())

    def calibration_counts(self) -> dict[str, int]:
        """Domain, or ``public`` -> number of calibration pictures, every view counted, before any has been opened."""
        return {domain: self._views(domain) * len(samples) for domain, samples in self._calibrating().items()}

    def calibration_pictures(self) -> dict[str, int]:
        """Domain, or ``public`` -> number of calibration pictures, each counted once, before any has been opened."""
        return {domain: len(samples) for domain, samples in self._calibrating().items()}

    def _views(self, domain: str) -> int:
        """How often each of a domain's calibration pictures is shown; by default those of no domain once."""
        if domain == PUBLIC and self.calibration_views == "auto":
            return 1
        return views_of(self.calibration_views, len(self._calibrating()[domain]))

    def calibration_fingerprint(
        self,
        sources: Sequence[nn.Module],
        spec: Spec,
        heads: Mapping[str, tuple[int, ...]] | None = None,
        labelled: bool = False,
    ) -> Fingerprint:
        """What statistics that sources gather from the calibration pictures depend on; reads every file.

        Args:
            sources: The sources, in order.
            spec: Their spec.
            heads: See :class:`~project.moments.Fingerprint`.
            labelled: Whether they depend on the pictures' labels.
        """
        samples = {domain: self.samples(domain, "calibration") for domain in self.calibration_domains}
        views = {domain: self._views(domain) for domain in samples}
        transform = transform_entries(self.preprocessing, max(views.values(), default=1), self.seed)
        pictures = picture_sums(samples, views)
        labels = picture_sums(samples, views, labelled=True) if labelled else {}
        return Fingerprint.of(sources, spec, pictures, transform, heads, labels)

    def prepare(self) -> None:
        """Download or render what is missing, in one process."""
        for domain_set in self.sets:
            domain_set.prepare()
        if self.calibration == PUBLIC and self.public is not None:
            self.public.prepare()

    @property
    def picture(self) -> tuple[int, int, int]:
        """Shape of a picture: channels, height, width."""
        return 3, self.preprocessing.image_size, self.preprocessing.image_size

    def check_pictures(self) -> None:
        """Open every picture, the shares of several processes together; all must ask.

        Raises:
            DataError: If one cannot be read, or there are none to calibrate or test with.
        """
        for domain in self.label_space.domains:
            if not self._splits[domain].test:  # what takes no time to see comes first
                raise DataError(self._lack(domain, "test"))
        found: dict[str, list[Sample]] = {}
        if self.checked == "listed":
            for domain, splits in self._splits.items():
                found[domain] = self._check.readable([*splits.train, *splits.validation, *splits.test])
        for domain in self.calibration_domains:
            found.setdefault(domain, self.samples(domain, "calibration"))
            if self.calibration_views == "auto" and (views := self._views(domain)) > 1:
                tell(
                    f"the {len(self._calibrating()[domain])} calibration pictures of {domain} are shown {views} times "
                    f"each, after the first time cropped and mirrored at random; calibration_views 1 shows them as "
                    f"they are alone"
                )
        for domain in self.label_space.domains:
            self.samples(domain, "test")
        for domain, samples in found.items():
            self._check.account(samples, self.preprocessing, f"domain {domain}" if domain != PUBLIC else PUBLIC)

    def sample(self, domain: str, count: int, scale: float = 1.0) -> Tensor:
        """Some of the calibration pictures of a domain, evenly over them: at most (count, 3, image_size, image_size).

        Args:
            domain: One of ``calibration_domains``.
            count: How many, at most.
            scale: Factor on their side; they are prepared anew, as larger or smaller ones.

        Raises:
            DataError: If one cannot be read, or there are none.
        """
        samples, prepared = self.samples(domain, "calibration"), self.preprocessing
        if scale != 1:
            sides = [round(side * scale) for side in (prepared.image_size, prepared.resized)]
            prepared = replace(prepared, image_size=sides[0], resize=max(sides))
        count = min(count, len(samples))
        pictures = Pictures(samples, evaluation_transform(prepared))
        return torch.stack([pictures.picture(place * len(samples) // count) for place in range(count)])

    def calibration_batches(self, labelled: bool = False) -> MixedLoader:
        """Batches that map every domain to pictures (B, 3, image_size, image_size), or None once it has no more.

        Every view comes exactly once, over all processes together, in an order that mixes the classes. Public pictures
        come under the name ``public``; without any pictures there is one batch that maps nothing.

        Args:
            labelled: Whether domains map to pictures and their labels (B,) among the domain's classes.
        """
        loaders = {}
        for name in self.calibration_domains:
            samples, varied = self.samples(name, "calibration"), training_transform(self.preprocessing)
            dataset = CalibrationPictures(samples, self._plain, varied, self._views(name), self.seed, labelled)
            loaders[name] = self._loader(dataset, sampler=EachOnce(dataset), batch_size=self.calibration_batch_size)
        return MixedLoader(loaders)

    @property
    def skipped(self) -> list[str]:
        """Unreadable pictures that were left out so far."""
        return self._check.unreadable

    def samples(self, domain: str, use: Use) -> list[Sample]:
        """The readable pictures of a domain for one use; where there are several processes, all must ask.

        Args:
            domain: Its name; for calibration, one of ``calibration_domains``.
            use: What they are for.

        Raises:
            DataError: Where there are none, or, with ``on_error`` ``raise``, where one cannot be read.
        """
        self.read()
        by_use = self._calibrating()[domain] if use == "calibration" else getattr(self._splits[domain], use)
        listed: list[Sample] = by_use
        readable = self._check.readable(listed)
        if not readable:
            raise DataError(
                f"Domain {domain} has no {use} picture that can be read." if listed else self._lack(domain, use)
            )
        return readable

    def _lack(self, domain: str, use: Use) -> str:
        """A sentence on a domain without pictures for a use."""
        splits = self._splits[domain]
        most = max(map(len, by_class([*splits.train, *splits.validation]).values()))
        reason = (
            "each of its classes has one picture, which trains; allowed: two or more of a class, or a folder or list "
            "of test pictures"
            if use == "test" and most == 1
            else "no share of its pictures is set aside for that"
        )
        return f"Domain {domain} has no {use} pictures: {reason}."

    def _loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        settings = {"batch_size": self.batch_size, "num_workers": self.num_workers, **options}
        return DataLoader(dataset, persistent_workers=self.num_workers > 0, **settings)

    @property
    def _plain(self) -> Transform:
        return evaluation_transform(self.preprocessing)

    def _calibrating(self) -> dict[str, list[Sample]]:
        """Lists of calibration pictures, made when first asked for: only a merge needs the public ones."""
        self.read()
        if not self._calibration:
            train = {domain: splits.train for domain, splits in self._splits.items()}
            options = (self.public, self.public_pictures, self.seed)
            self._calibration = calibration_samples(self.calibration, train, *options)
        return self._calibration

    def _check_values(self) -> None:
        check_mode(self.calibration, self.public)
        if not self.sets:
            raise ConfigurationError(f"sets is {self.sets!r}; allowed: at least one data set.")
        for one in (*self.sets, *([self.public] if self.public is not None else [])):
            if (folder := getattr(one, "root", None)) is not None:
                check_path(folder, f"root is {folder}")
        check_loading(self.batch_size, self.num_workers)
        whole(1, calibration_batch_size=self.calibration_batch_size)
        check_views(self.calibration_views)
        seeds(seed=self.seed)
        share(none=True, whole=False, validation_fraction=self.validation_fraction)
        if self.public_pictures is not None:
            whole(1, public_pictures=self.public_pictures)
