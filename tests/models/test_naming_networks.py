"""Networks by the names of libraries, and folders whose config.json says what their weights are."""

import json
import sys
import types
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18, squeezenet1_1

from project.allocation import stored_bytes
from project.checking import check_model
from project.errors import CheckpointError, ConfigurationError, PleasError, present
from project.models import Architecture, Preprocessing, load_network, read_description, read_weights
from project.models.preprocessing import resize_of
from project.models.reading.config import said_by
from project.models.reading.folder import name_of_place
from project.modules import FineTuneModule
from project.student import load_source, source_of
from tests.models.test_writers import hub_resnet, random_network

HUB18 = {
    "model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512],
    "id2label": {"10": "ten", "2": "two", "0": "a", "1": "b", "3": "c"},
}  # fmt: skip
TIMM18 = {
    "architecture": "resnet18", "num_classes": 3, "label_names": ["tap", "bee", "tap"],
    "model_args": {"num_classes": 3, "in_chans": 3, "global_pool": "avg"},
    "pretrained_cfg": {
        "input_size": [3, 96, 96], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "crop_pct": 0.95,
        "interpolation": "bicubic", "crop_mode": "center", "url": "https://example.org/never.pth",
    },
}  # fmt: skip


def folder(path: Path, config: Any, state: dict[str, torch.Tensor] | None = None, **others: Any) -> Path:
    """A folder with descriptions, and weights where there are some."""
    path.mkdir(parents=True)
    for name, content in {"config": config, **others}.items():
        (path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    if state is not None:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / "model.safetensors")
    return path


def test_a_folder_of_transformers_is_its_twin(tmp_path: Path) -> None:
    theirs = random_network(hub_resnet)
    where = folder(
        tmp_path / "photo", HUB18, theirs.state_dict(),
        preprocessor_config={
            "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875,
            "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
        },
    )  # fmt: skip
    source = load_source(where)
    assert source.architecture == Architecture("resnet18", 5)
    assert source.name == "photo"
    assert source.description.class_names == source.description.classes == ("a", "b", "two", "c", "ten")
    assert source.description.preprocessing == Preprocessing(224, resize=256, interpolation="bicubic")
    assert read_description(where).preprocessing == source.description.preprocessing
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(source.network(pictures), theirs(pictures), atol=1e-5, rtol=0)
    for named in (f"local-dir:{where}", where / "model.safetensors"):
        assert read_description(named).preprocessing == source.description.preprocessing
        assert name_of_place(Path(named)) == "photo"


def test_a_folder_of_timm_says_all_of_its_network(tmp_path: Path) -> None:
    """timm is not needed for a plain ResNet; names that stand twice are told apart."""
    state = resnet18(num_classes=3).state_dict()
    where = folder(tmp_path / "f", TIMM18, state)
    _, weights = load_network(where)
    assert weights.architecture == Architecture("resnet18", 3)
    assert weights.class_names == ("tap (0)", "bee", "tap (2)")
    assert weights.preprocessing == Preprocessing(
        96, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), resize=resize_of(96, 0.95), interpolation="bicubic"
    )
    torch.save(state, tmp_path / "bare.pth")  # another file, to which the folder is named as its architecture
    _, weights = load_network(tmp_path / "bare.pth", str(where))
    assert (weights.architecture, weights.class_names) == (Architecture("resnet18", 3), ("tap (0)", "bee", "tap (2)"))


@pytest.mark.parametrize("written", ["model.safetensors", "net.pth"])
def test_what_stands_beside_other_files_is_not_theirs(written: str, tmp_path: Path) -> None:
    where = folder(tmp_path / "f", TIMM18)
    torch.save(resnet18(num_classes=3).state_dict(), where / written)
    assert (read_weights(where).preprocessing is not None) is (written == "model.safetensors")


def test_what_a_file_says_of_itself_comes_before_the_folder(tmp_path: Path) -> None:
    where = folder(tmp_path / "f", {**HUB18, "depths": [3, 4, 6, 3]})
    architecture = Architecture("resnet8", 2)
    entry = {"pleas": {"architecture": architecture.plain, "preprocessing": {"image_size": 32}}}
    torch.save({"state_dict": architecture.build().state_dict(), **entry}, where / "model.safetensors")
    weights = read_weights(where)
    assert (weights.architecture, weights.preprocessing) == (architecture, Preprocessing(32))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**HUB18, "layer_type": "bottleneck", "downsample_in_bottleneck": True}, "first 1×1 convolution"),
        ({**HUB18, "hidden_act": "gelu"}, "hidden_act 'gelu'; of such networks those with 'relu'"),
        ({**HUB18, "embedding_size": 32}, "embedding_size 32"),
        ({**HUB18, "downsample_in_first_stage": True}, "downsample_in_first_stage True"),
        ({"model_type": "vit", "hidden_act": "quick_gelu"}, "hidden_act"),
        ({"model_type": "convnext", "patch_size": 2}, "patch_size 2"),
        ({"model_type": "swin", "architectures": ["SwinForImageClassification"]}, "SwinForImageClassification of tran"),
        ({**HUB18, "depths": 3}, r"config\.json cannot be read: its depths is '3'; allowed: whole numbers above 0"),
        ({**HUB18, "depths": [2, "2"]}, "its depths is .* allowed: whole numbers above 0"),
        ({**HUB18, "id2label": {"a": "cat"}}, "its id2label is .* allowed: names by their number"),
        ({**HUB18, "id2label": 3}, "its id2label is '3'; allowed"),
        ({"model_type": "vit", "hidden_size": 0}, "its hidden_size is '0'; allowed: a whole number above 0"),
        ({"model_type": "vit", "layer_norm_eps": "small"}, "its layer_norm_eps is 'small'; allowed: a number"),
        ({"model_type": "convnext", "layer_scale_init_value": []}, "its layer_scale_init_value is"),
        ({**TIMM18, "pretrained_cfg": {"mean": [0, 0]}}, "its pretrained_cfg mean is .* allowed: three numbers"),
        ({**TIMM18, "pretrained_cfg": {"input_size": [224]}}, "pretrained_cfg input_size is .* channels, height and"),
        ({**TIMM18, "pretrained_cfg": {"crop_pct": "all"}}, "pretrained_cfg crop_pct is 'all'; allowed: a number"),
        ({**TIMM18, "pretrained_cfg": 3}, "its pretrained_cfg is '3'; allowed: a mapping"),
        ({**TIMM18, "model_args": [1]}, "its model_args is .* allowed: a mapping"),
        ("[]", "holds a list"),
        ("{", "is no JSON"),
        ({**TIMM18, "architecture": "local-dir:/somewhere"}, "allowed behind 'timm/'"),
    ],
)
def test_a_description_that_no_network_has_is_told(config: Any, words: str, tmp_path: Path) -> None:
    where = folder(tmp_path / "f", config, nn.Linear(3, 2).state_dict())
    with pytest.raises(PleasError, match=words):
        load_network(where)


@pytest.mark.parametrize(("key", "value"), [("input_size", [3, 96, 64]), ("crop_mode", "border")])
def test_pictures_that_are_not_prepared_here_are_told(
    key: str, value: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = {**TIMM18, "pretrained_cfg": {"input_size": [3, 96, 96], key: value}}
    where = folder(tmp_path / "f", said, Architecture("resnet18", 3).build().state_dict())
    caplog.set_level("INFO")
    assert load_network(where)[1].preprocessing is None
    assert "which are not prepared here: what it says of pictures is left out" in caplog.text


@pytest.mark.parametrize("said", [{"rescale_factor": 0}, {"resample": 6}, {"resample": -1}, {"image_mean": {"a": 0}}])
def test_a_description_of_pictures_that_cannot_be_is_told(said: dict[str, Any], tmp_path: Path) -> None:
    where = folder(tmp_path / "f", HUB18, nn.Linear(3, 2).state_dict())
    processor = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, **said}
    (where / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load_network(where)


def test_a_users_word_comes_before_an_obstacle(tmp_path: Path) -> None:
    architecture = Architecture("resnet8", 2)
    state = architecture.build().state_dict()
    where = folder(tmp_path / "f", {"model_type": "resnet", "downsample_in_bottleneck": True}, state)
    assert load_network(where, "resnet8")[1].architecture == architecture
    unknown = folder(tmp_path / "g", {"model_type": "mine"}, state)
    assert load_network(unknown)[1].architecture == architecture  # whose tensors tell


def processed(tmp_path: Path, **settings: Any) -> Preprocessing | None:
    config = folder(tmp_path / "p", HUB18, preprocessor_config=settings) / "config.json"
    said = said_by(config)
    assert said is not None
    return said.preprocessing


HALVES = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}},
            Preprocessing(224, HALVES, HALVES, "squash"),
        ),
        (
            {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384},
            Preprocessing(384, HALVES, HALVES, "squash", interpolation="bicubic"),
        ),
        (
            {
                "size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
                "image_mean": HALVES, "image_std": HALVES, "resample": 2,
            },
            Preprocessing(224, HALVES, HALVES, resize=256),
        ),
        (
            {"size": 32, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3, "resample": 0},
            Preprocessing(32, HALVES, (0.2, 0.2, 0.2), "squash", interpolation="nearest"),
        ),
        ({"size": 32, "do_normalize": False}, Preprocessing(32, (0, 0, 0), (1, 1, 1), "squash")),
        ({"size": {"height": 32, "width": 48}}, None),
        ({"size": {"shortest_edge": 32}}, None),  # whose input is not square
        ({"size": 32, "do_resize": False, "image_mean": HALVES, "image_std": HALVES}, None),
        ({"size": 32}, None),  # of a processor that nothing tells the defaults of
    ],
)  # fmt: skip
def test_what_an_image_processor_does(settings: dict[str, Any], expected: Preprocessing | None, tmp_path: Path) -> None:
    assert processed(tmp_path, **settings) == expected


def test_torchvisions_names_may_have_the_library_before_them(tmp_path: Path) -> None:
    torch.save(squeezenet1_1(num_classes=3).state_dict(), tmp_path / "n.pth")
    _, weights = load_network(tmp_path / "n.pth", "torchvision/squeezenet1_1")
    assert weights.architecture == Architecture("squeezenet1_1", 3)
    assert check_model("torchvision/resnet18", {"num_classes": 2}, 32).groups
    with pytest.raises(ConfigurationError, match="there is none of that name; nearest"):
        Architecture("torchvision/resnet19", 2)


@pytest.mark.parametrize("taken", ["pretrained", "checkpoint_path", "pretrained_cfg", "num_classes", "weights"])
def test_no_argument_fetches(taken: str) -> None:
    """Whoever says it, a file that is read among them."""
    with pytest.raises(ConfigurationError, match=f"arguments holds '{taken}'"):
        Architecture("timm/resnet26d", 2, arguments={taken: True})


@pytest.mark.parametrize("name", ["timm/", "timm/local-dir:x", "timm/../x", "timm/hf-hub:a/b"])
def test_only_names_stand_behind_the_library(name: str) -> None:
    with pytest.raises(ConfigurationError, match="architecture is"):
        Architecture(name, 2).build()


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "n.pth")
    with pytest.raises(ConfigurationError, match=r"needs timm: pip install 'pleas-lightning\[timm\]'"):
        load_network(tmp_path / "n.pth", "timm/resnet26d")
    with pytest.raises(ConfigurationError, match=r"huggingface_hub: pip install 'pleas-lightning\[hub\]'"):
        read_weights("hf-hub:some/where")


class Hub:
    """What is used of huggingface_hub, for folders on this disk."""

    def __init__(self, root: Path, online: bool = True) -> None:
        class EntryNotFoundError(Exception):
            pass

        class LocalEntryNotFoundError(EntryNotFoundError):
            pass

        self.root, self.online, self.asked = root, online, list[tuple[str, str, str | None]]()
        self.errors = types.SimpleNamespace(
            EntryNotFoundError=EntryNotFoundError, LocalEntryNotFoundError=LocalEntryNotFoundError
        )

    def hf_hub_download(self, folder: str, file: str, revision: str | None = None) -> str:
        self.asked.append((folder, file, revision))
        path = self.root / folder / file
        if not self.online:
            raise self.errors.LocalEntryNotFoundError("no connection")
        if not path.parent.exists():
            raise OSError("404 Client Error.\nRepository Not Found")
        if not path.exists():
            raise self.errors.EntryNotFoundError(file)
        return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", found.errors)  # type: ignore[arg-type]
    return found


def test_a_folder_on_the_hub_is_fetched_when_it_is_named(hub: Hub, tmp_path: Path) -> None:
    state = resnet18(num_classes=3).state_dict()
    folder(tmp_path / "hub/me/net", TIMM18, state)
    folder(tmp_path / "hub/me/old", TIMM18)
    torch.save(state, tmp_path / "hub/me/old/pytorch_model.bin")
    present("hf-hub:me/net", f"local-dir:{tmp_path}")
    assert load_source("hf-hub:me/net").name == "net"
    assert hub.asked[-1] == ("me/net", "model.safetensors", None)
    old = Path("hf_hub:me/old@v1.0")
    assert (name_of_place(old), read_description(old).class_names) == ("old", ("tap (0)", "bee", "tap (2)"))
    assert hub.asked[-1] == ("me/old", "pytorch_model.bin", "v1.0")
    torch.save(state, tmp_path / "bare.pth")
    asked = len(hub.asked)
    assert load_network(tmp_path / "bare.pth", "hf-hub:me/net")[1].class_names == ("tap (0)", "bee", "tap (2)")
    assert not any("model" in file for _, file, _ in hub.asked[asked:])  # its weights are not


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("hf-hub:me/none", "cannot be fetched: 404 Client Error"),
        ("hf-hub:me/empty", "holds none of model.safetensors, pytorch_model.bin"),
        ("hf-hub:", "is no name on the Hub"),
        ("hf-hub:../../x/y", "is no name on the Hub"),
    ],
)
def test_what_the_hub_does_not_have(named: str, words: str, hub: Hub, tmp_path: Path) -> None:
    folder(tmp_path / "hub/me/empty", TIMM18)
    with pytest.raises(PleasError, match=words):
        read_weights(named)


def test_the_hub_out_of_reach(hub: Hub) -> None:
    hub.online = False
    with pytest.raises(CheckpointError, match="there is no way to the Hub; fetch its folder where there is one"):
        read_weights("hf-hub:me/net")


def trained(arch: str, state: dict[str, torch.Tensor], **args: Any) -> dict[str, Any]:
    """What timm's train.py writes."""
    unset = dict.fromkeys(("mean", "std", "crop_pct", "img_size", "input_size", "in_chans", "gp", "crop_mode"))
    given = Namespace(**{"model": arch, "interpolation": "", "model_kwargs": {}, **unset, **args})
    return {"epoch": 3, "arch": arch, "version": 2, "args": given, "state_dict": state, "metric": 0.5}


def test_a_training_of_timm_tells_its_pictures(tmp_path: Path) -> None:
    """Without timm as far as its arguments do."""
    told = {"mean": [0.5], "std": [0.25] * 3, "crop_pct": 1.0, "img_size": 64, "interpolation": "bilinear"}
    torch.save(trained("resnet18", resnet18(num_classes=3).state_dict(), **told), tmp_path / "a.pth.tar")
    _, weights = load_network(tmp_path / "a.pth.tar")
    assert weights.architecture == Architecture("resnet18", 3)
    assert weights.preprocessing == Preprocessing(64, HALVES, (0.25, 0.25, 0.25))


def random_timm(name: str, **arguments: Any) -> nn.Module:
    made: Callable[[], nn.Module] = lambda: timm.create_model(name, num_classes=3, **arguments)  # noqa: E731
    return random_network(made)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet10t", {}), ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}), ("lcnet_035", {})],
)
def test_networks_of_timm_by_name(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """From bare weights, from the folder that timm writes, and from its training's checkpoints: the same logits."""
    theirs = random_timm(name, **arguments)
    pictures = torch.randn(2, 3, 32, 32)
    torch.save(theirs.state_dict(), tmp_path / "bare.pth")
    torch.save(trained(f"{name}.some_tag", theirs.state_dict(), model_kwargs=arguments), tmp_path / "run.pth")
    timm.models.save_for_hf(
        theirs, tmp_path / "saved", model_config={"label_names": ["x", "y", "z"]}, model_args=arguments
    )
    seeded = torch.random.get_rng_state()
    loaded = [
        load_network(tmp_path / "bare.pth", f"timm/{name}", arguments or None),
        load_network(tmp_path / "run.pth"),
        load_network(tmp_path / "saved"),
    ]
    assert torch.equal(torch.random.get_rng_state(), seeded)
    with torch.no_grad():
        expected = theirs(pictures)
        for network, weights in loaded:
            torch.testing.assert_close(network(pictures), expected, atol=0, rtol=0)
            assert weights.architecture is not None
            assert (weights.architecture.name, weights.architecture.num_classes) == (f"timm/{name}", 3)
    said = timm.models.get_pretrained_cfg(name)
    for _, weights in loaded[1:]:
        assert weights.preprocessing is not None
        assert (weights.preprocessing.mean, weights.preprocessing.std) == (said.mean, said.std)
    assert loaded[2][1].class_names == ("x", "y", "z")


def test_a_look_alike_is_what_its_training_says(tmp_path: Path) -> None:
    """The tensors of resnetblur18 are those of resnet18, to the last."""
    state = resnet18(num_classes=3).state_dict()
    torch.save(trained("resnetblur18", state), tmp_path / "a.pth")
    assert load_network(tmp_path / "a.pth")[1].architecture == Architecture("timm/resnetblur18", 3)
    torch.save(trained("mine", state), tmp_path / "b.pth")
    assert load_network(tmp_path / "b.pth")[1].architecture == Architecture("resnet18", 3)


def test_a_name_that_timm_has_not() -> None:
    with pytest.raises(ConfigurationError, match=r"has none of that name; nearest: .*resnet26d"):
        Architecture("timm/resnet26dd", 2).build()
    with pytest.raises(ConfigurationError, match="cannot be built with"):
        Architecture("timm/resnet10t", 2, arguments={"no_such": 1}).build()
    assert check_model("timm/resnet10t", {"num_classes": 2}, 32).groups


def test_a_network_of_timm_in_memory_has_a_name() -> None:
    source = source_of(timm.create_model("resnet10t", num_classes=3), "a")
    assert source.architecture == Architecture("timm/resnet10t", 3)


def test_a_network_of_timm_is_trained_by_name() -> None:
    """Its first weights hang on the seed alone."""
    module, built = FineTuneModule("timm/resnet10t", num_classes=3), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        built.append(module.draft.build())
    assert module.writes().weights == stored_bytes(built[0].state_dict())
    first, again, other = (network.state_dict()["conv1.0.weight"] for network in built)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ConfigurationError, match="there are no ImageNet weights of timm/resnet10t"):
        FineTuneModule("timm/resnet10t", weights="IMAGENET1K_V1")


TWINS: dict[str, tuple[str, dict[str, Any], str]] = {
    "resnet of its own widths": (
        "ResNet", {"depths": [1, 2, 1, 1], "hidden_sizes": [128, 128, 256, 512]}, "timm/resnet50",
    ),
    "vit": (
        "ViT",
        {
            "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96,
            "image_size": 32,
        },
        "timm/vit_base_patch16_224",
    ),
    "tiny vit": (
        "ViT",
        {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "image_size": 32, "qkv_bias": False},
        "timm/vit_tiny_patch16_224",
    ),
    "convnext": (
        "ConvNext",
        {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64], "layer_scale_init_value": 0.5},
        "timm/convnext_tiny",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", TWINS)
def test_folders_that_transformers_writes(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    family, settings, name = TWINS[kind]
    config = getattr(transformers, f"{family}Config")(**settings, num_labels=3)
    theirs = random_network(lambda: getattr(transformers, f"{family}ForImageClassification")(config))
    theirs.save_pretrained(tmp_path / "f")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 96}, crop_pct=0.9).save_pretrained(tmp_path / "f")
    ours, weights = load_network(tmp_path / "f")
    assert weights.architecture is not None
    assert weights.architecture.name == name
    assert weights.class_names is None  # LABEL_0 names nothing
    assert weights.preprocessing == Preprocessing(96, HALVES, HALVES, resize=106, interpolation="bicubic")
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(pictures).logits
        torch.testing.assert_close(ours(pictures), expected, atol=1e-6 * float(expected.abs().max()), rtol=0)
