"""The loaders in the trainer's own loops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from project.data import DomainDataModule, ImageFolders

Make = Callable[..., ImageFolders]
pytestmark = [
    # Lightning 2.6's own use of torch's pytrees, in every loop.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    # Loading in this process is what the test wants, on however many cores.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    # True, and meant, where nothing is held out.
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
]


class Linear(LightningModule):
    """Classifies pixels and counts the pictures of every loop and loader."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, width)
        self.seen: dict[tuple[str, int], int] = {}

    def count(self, loop: str, loader: int, pictures: Tensor) -> None:
        self.seen[loop, loader] = self.seen.get((loop, loader), 0) + len(pictures)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.count("train", 0, batch[0])
        return nn.functional.cross_entropy(self.head(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.count("validation", dataloader_idx, batch[0])

    def test_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.count("test", dataloader_idx, batch[0])

    def predict_step(self, batch: list[Any], batch_idx: int, dataloader_idx: int = 0) -> list[str]:
        assert isinstance(batch[0], Tensor)
        return list(batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_every_loop_sees_its_pictures(folders: Make, tmp_path: Path, fraction: float) -> None:
    sets = folders({"art": {"cat": 10, "dog": 20}, "birds": {"auk": 8, "owl": 12}})
    data = DomainDataModule(sets, label_space="different", image_size=8, batch_size=7, validation_fraction=fraction)
    model = Linear(data.label_space.width)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        **quiet,
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    uses: list[Any] = ["train", *(["validation"] if fraction else []), "test"]
    names = data.domain_names
    expected = {(use, number): len(data.samples(name, use)) for use in uses for number, name in enumerate(names)}
    expected |= {("train", 0): sum(expected.pop(("train", number)) for number in range(len(names)))}
    assert model.seen == expected
    predicted = trainer.predict(model, datamodule=data)
    assert predicted is not None
    named = [[path for batch in loader for path in batch] for loader in predicted]
    assert named == [[str(path) for path, _ in data.samples(name, "test")] for name in data.domain_names]
