"""The bar says what a merge does, and Lightning's words afterwards."""

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar

from project.callbacks import NamedProgressBar, named, progress_bar
from project.callbacks.naming import NamedRichProgressBar, NamedTQDMProgressBar


@pytest.mark.parametrize("kind", [NamedTQDMProgressBar, NamedRichProgressBar])
def test_the_bar_has_other_words_meanwhile(kind: type[NamedProgressBar]) -> None:
    bar = kind()
    trainer = Trainer(callbacks=[bar], logger=False, accelerator="cpu")
    with named(trainer, "gathering"):
        assert trainer.progress_bar_callback is bar
        assert bar.validation_description == bar.test_description == "gathering"
    assert (bar.validation_description, bar.test_description) == ("Validation", "Testing")


def test_words_end_with_an_error() -> None:
    bar = progress_bar()
    with pytest.raises(ZeroDivisionError), named(Trainer(callbacks=[bar], logger=False, accelerator="cpu"), "fitting"):
        1 / 0  # noqa: B018
    assert bar.validation_description == "Validation"


@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_other_bars_keep_their_words(kind: type[ProgressBar]) -> None:
    bar = kind()
    with named(Trainer(callbacks=[bar], logger=False, accelerator="cpu"), "gathering"):
        assert bar.validation_description == "Validation"


def test_it_is_the_bar_that_lightning_would_take() -> None:
    usual = Trainer(logger=False, accelerator="cpu").progress_bar_callback
    assert usual is not None
    assert isinstance(progress_bar(), type(usual))


def test_a_trainer_may_have_no_bar() -> None:
    with named(Trainer(enable_progress_bar=False, logger=False, accelerator="cpu"), "gathering"):
        pass
