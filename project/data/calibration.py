"""Which pictures a merge calibrates with: the domains' own, public ones, or none."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from project.data.domain import DomainSet, Sample
from project.data.splits import shuffled
from project.errors import ConfigurationError, whole

Calibration: TypeAlias = int | Literal["all", "public", "none"]
Views: TypeAlias = int | Literal["auto"]
ENOUGH = 512
"""Views of a domain's pictures up to which ``auto`` shows each of them again."""
PUBLIC = "public"
"""Name under which public pictures go in place of a domain's: no source owns it."""


def check_mode(calibration: Calibration, public: DomainSet | None) -> None:
    """Refuse a mode that does not exist, and public pictures that nobody has.

    Raises:
        ConfigurationError: With the value and what is allowed.
    """
    number = isinstance(calibration, int) and not isinstance(calibration, bool)
    if not (calibration >= 1 if number else calibration in ("all", PUBLIC, "none")):  # type: ignore[operator]
        raise ConfigurationError(
            f"calibration is {calibration!r}; allowed: 'all', 'public', 'none', or a number of pictures, at least 1."
        )
    if calibration == PUBLIC and public is None:
        raise ConfigurationError(
            "calibration is 'public', but public is null; set it to a data set, such as PictureFolder."
        )


def check_views(views: Views) -> None:
    """Refuse numbers of views that there cannot be.

    Raises:
        ConfigurationError: With the value and what is allowed.
    """
    if isinstance(views, str) and views != "auto":
        raise ConfigurationError(f"calibration_views is {views!r}; allowed: 'auto', or a number, at least 1.")
    if views != "auto":
        whole(1, calibration_views=views)


def views_of(views: Views, pictures: int) -> int:
    """How often each calibration picture of a domain is shown.

    Args:
        views: The number; ``auto`` for as many as bring a domain to ``ENOUGH``.
        pictures: Of the domain.
    """
    return max(1, ENOUGH // max(1, pictures)) if views == "auto" else views


def calibration_samples(
    calibration: Calibration,
    train: Mapping[str, list[Sample]],
    public: DomainSet | None,
    public_pictures: int | None,
    seed: int,
) -> dict[str, list[Sample]]:
    """The pictures of each domain, in an order that mixes the classes; a smaller number is the start of a larger.

    Args:
        calibration: ``all`` training pictures, a number of each domain, ``public`` ones under that name, or ``none``.
        train: domain -> its training pictures.
        public: Data set whose training pictures are the public ones.
        public_pictures: How many of them; all when None.
        seed: Seed of the choice.

    Raises:
        ConfigurationError: Where the public data set holds one of the domains, or one of them is called ``public``.
    """
    if calibration == "none":
        return {}
    if isinstance(calibration, int) or calibration == "all":
        count = None if calibration == "all" else calibration
        return {domain: shuffled(samples, seed)[:count] for domain, samples in train.items()}
    assert public is not None
    if PUBLIC in train:
        raise ConfigurationError("calibration is 'public', but a domain to be merged has this name; rename its folder.")
    domains = public.read()
    for domain in domains:
        domain.tell()
    if shared := [domain.name for domain in domains if domain.name in train]:
        raise ConfigurationError(
            f"public holds domain {shared[0]}, which is to be merged; public pictures are of none of "
            f"{', '.join(train)}: choose among the domains of the public data set."
        )
    pool = [sample for domain in domains for sample in domain.train]
    return {PUBLIC: shuffled(pool, seed)[:public_pictures]}
