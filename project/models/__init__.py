"""Networks by name, the files they are kept in, and what their inputs and outputs mean."""

from project.models.architecture import Architecture, architectures
from project.models.description import Description
from project.models.labels import LabelSpace
from project.models.multihead import MultiHead
from project.models.network import Named, build_network, load_network
from project.models.preprocessing import Preprocessing
from project.models.pretrained import pretrained
from project.models.reading.files import Weights, read_checkpoint, read_description, read_weights
from project.models.recognise import architecture_of, recognise
from project.models.scores import DomainScores, JointScores
from project.models.unfused.attention import Heads, written_out

__all__ = [
    "Architecture", "Description", "DomainScores", "Heads", "JointScores", "LabelSpace", "MultiHead", "Named",
    "Preprocessing", "Weights", "architecture_of", "architectures", "build_network", "load_network", "pretrained",
    "read_checkpoint", "read_description", "read_weights", "recognise", "written_out",
]  # fmt: skip
