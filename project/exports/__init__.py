"""Students as other tools load them: timm's and transformers' folders, ONNX, torch.export, plain weights."""

from project.exports.common import Exported
from project.exports.export import Target, export, place_of

__all__ = ["Exported", "Target", "export", "place_of"]
