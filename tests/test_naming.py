"""The bar says what a merge does, and Lightning's words afterwards."""

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from project.callbacks import named


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_the_bar_has_other_words_meanwhile(kind: type[ProgressBar]) -> None:
    bar = kind()
    trainer = Trainer(callbacks=[bar], logger=False, accelerator="cpu")
    with named(trainer, "gathering"):
        assert trainer.progress_bar_callback is bar
        assert bar.validation_description == bar.test_description == "gathering"
        assert isinstance(bar, kind)
    assert type(bar) is kind
    assert bar.validation_description == "Validation"


def test_a_trainer_may_have_no_bar() -> None:
    with named(Trainer(enable_progress_bar=False, logger=False, accelerator="cpu"), "gathering"):
        pass
