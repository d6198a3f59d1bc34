"""A merging method as the server's fusion."""

from pathlib import Path

from torch import Tensor

from project.allocation import Budget
from project.data.given import GivenPictures
from project.errors import ConfigurationError
from project.merging.engine import Engine
from project.merging.loop import drive
from project.merging.preparation import go_together
from project.merging.settings import Place, Settings
from project.merging.sources import SourceFile
from project.methods import Method
from project.models import LabelSpace
from project.modules.fusion.base import Round, ServerFusion
from project.student import source_of
from project.symmetry import permute_tensors


class MergedClients(ServerFusion):
    """A student of one client's size that a merging method makes of the clients, such as PLeaS.

    Units are matched before they are averaged or fitted, so that clients need not share a base. The calibration
    pictures are the server's own, those of validation, without their labels. Clients count alike, whatever pictures
    they have; the student's units stand in the order of the first client's.

    Args:
        method: The method, which must make one student for a budget.

    Raises:
        ConfigurationError: If the method needs what a server does not have: labels, or a base.
    """

    def __init__(self, method: Method) -> None:
        if method.labelled or not method.single:
            raise ConfigurationError(
                f"method is {method.name}, which {'reads labels' if method.labelled else 'makes other students'}; "
                f"allowed: methods that make one student of a budget from pictures without labels."
            )
        self.method = method

    def fuse(self, given: Round) -> dict[str, Tensor]:
        """Merge the clients."""
        if len(given.clients) == 1:
            return {name: tensor.clone() for name, tensor in given.clients[0].items()}
        sources = [
            source_of(given.network(state), name) for name, state in zip(given.names, given.clients, strict=True)
        ]
        data = GivenPictures(given.pictures())
        labels = LabelSpace(dict.fromkeys(given.names, tuple(map(str, range(sources[0].logits)))), "shared")
        data.adopt(labels, None)
        files = [SourceFile(Path(name), domains=[name]) for name in given.names]
        settings = Settings([self.method], [Budget(1.0)], audit="off")
        engine = Engine(go_together(files, sources, settings, data.picture), settings, data, Place(None))
        drive(engine, data, next(iter(given.server.values())).device, progress=False)
        student = engine.merged[0].student.eval()
        orders = {group.name: student.maps[group.name].members[:, 0].argsort() for group in student.spec.free}
        found = permute_tensors(student.dense().state_dict(), student.spec, orders)
        return {
            name: found[name].to(tensor) if name in found else given.clients[0][name].clone()
            for name, tensor in given.server.items()
        }
