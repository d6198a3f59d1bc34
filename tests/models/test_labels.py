import pytest
from helpers import resnet

import project
from project.errors import ConfigurationError
from project.models import LabelSpace
from project.models.labels import LabelMode, check_several


def test_shared_columns() -> None:
    labels = LabelSpace({"photo": ("cat", "dog"), "sketch": ("cat", "dog")})
    assert (labels.domains, labels.width) == (("photo", "sketch"), 2)
    assert labels.columns("photo") == labels.columns("sketch") == slice(0, 2)


def test_heads_stand_side_by_side() -> None:
    labels = LabelSpace({"photo": ("cat", "dog"), "cars": ("bus",), "sketch": ("cat", "dog")}, "different")
    assert labels.width == 5
    assert [labels.columns(domain) for domain in labels.domains] == [slice(0, 2), slice(2, 3), slice(3, 5)]


def test_unknown_domain() -> None:
    with pytest.raises(ConfigurationError, match="domain is 'clipart'; known: photo, cars"):
        LabelSpace({"photo": ("cat",), "cars": ("bus",)}, "different").columns("clipart")


@pytest.mark.parametrize(
    ("classes", "mode", "message"),
    [
        ({"a": ("x", "y"), "b": ("x", "z")}, "shared", r"differ \(only in a: y; only in b: z\)"),
        ({"a": ("x", "y"), "b": ("y", "x")}, "shared", "the same classes in another order"),
        ({"a": ("x",)}, "both", "label_space is 'both'; allowed: 'shared', 'different'"),
    ],
)
def test_what_does_not_go_together(classes: dict[str, tuple[str, ...]], mode: LabelMode, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LabelSpace(classes, mode)


@pytest.mark.parametrize("word", ["own", "joint"])
def test_words_for_heads_are_no_domains(word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        LabelSpace({"photo": ("cat",), word: ("dog",)}, "different")


def test_one_class_over_all_heads_is_nothing_to_tell_apart() -> None:
    with pytest.raises(ConfigurationError, match="the data have one class, 'cat'; allowed: two or more"):
        check_several(LabelSpace({"photo": ("cat",), "sketch": ("cat",)}))
    check_several(LabelSpace({"photo": ("cat",), "cars": ("bus",)}, "different"))
    check_several(LabelSpace({"photo": ("cat", "dog")}))
    with pytest.raises(ConfigurationError, match="one class"):
        project.merge([resnet("resnet20", seed, 1) for seed in range(2)], None, method="average", image_size=16)
