"""What several modules ask of their trainer."""

from lightning.pytorch import LightningModule

from project.errors import ConfigurationError
from project.models import LabelSpace


def data_labels(module: LightningModule) -> LabelSpace:
    """Read the label space of the data that the module's trainer was given.

    Raises:
        ConfigurationError: If there is no data module, or one without label space.
    """
    data = getattr(module.trainer, "datamodule", None)
    labels = getattr(data, "label_space", None)
    if not isinstance(labels, LabelSpace):
        raise ConfigurationError("data must be a DomainDataModule, which says what the domains and their classes are.")
    return labels
