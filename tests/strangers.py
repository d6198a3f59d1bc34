"""Files as strangers write them: with objects of classes whose import, or whose making, would leave a trace."""

import importlib
import io
import pickle
import sys
import tarfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CODE = """
from pathlib import Path
import torch
from torch import nn

TRACE = Path({trace!r})
TRACE.touch()


def leave(*_):
    TRACE.touch()
    return {{}}


class Config:
    def __init__(self):
        self.lr, self.inner = 0.1, [self.__class__]

    def __setstate__(self, state):
        leave()


class Called:
    def __reduce__(self):
        return leave, (1, 2)


class Names(dict):
    def __setitem__(self, key, value):
        leave()
        super().__setitem__(key, value)


class Net(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.config = network, Config()

    def forward(self, x):
        return self.network(x)

    def __setstate__(self, state):
        leave()
        super().__setstate__(state)
"""


class Stranger(AbstractContextManager["Stranger"]):
    """Somebody's module, which lies where it would be found, and whether anything of it has run.

    Args:
        folder: Where the module lies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.trace = folder, folder / "trace"
        self.name = f"stranger_{abs(hash(folder))}"

    def __enter__(self) -> "Stranger":
        """Write the module, and let it be found."""
        (self.folder / f"{self.name}.py").write_text(CODE.format(trace=str(self.trace)))
        sys.path.insert(0, str(self.folder))
        self.module = importlib.import_module(self.name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Forget it."""
        sys.path.remove(str(self.folder))
        sys.modules.pop(self.name, None)

    def objects(self) -> dict[str, Any]:
        """Something of every kind that a file can hold beside tensors."""
        return {
            "config": self.module.Config(),
            "called": self.module.Called(),
            "names": self.module.Names(a=1),
            "class": self.module.Config,
            "function": self.module.leave,
            "args": Namespace(lr=0.1, model=self.module.Config(), path=Path("x")),
            "accuracy": np.float64(0.5),
            "table": np.arange(6.0).reshape(2, 3),
            "sizes": torch.Size([1, 2]),
            "many": [{1, 2}, frozenset([3]), 1 + 2j, b"raw", bytearray(b"raw"), torch.float16, torch.device("cpu")],
        }

    def rest(self) -> None:
        """Let nothing of it be in memory, so that whoever wants it must import it."""
        sys.modules.pop(self.name, None)
        self.trace.unlink(missing_ok=True)

    @property
    def ran(self) -> bool:
        """Whether anything of it was imported or called."""
        return self.trace.exists() or self.name in sys.modules


def zipped(content: Any, path: Path) -> None:
    """As torch has written since 1.6."""
    torch.save(content, path)


def older(content: Any, path: Path) -> None:
    """As torch wrote before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(content: Any, path: Path) -> None:
    """As Python writes what nobody told it to be of torch."""
    path.write_bytes(pickle.dumps(content, protocol=4))


FORMS: Mapping[str, Callable[[Any, Path], None]] = {"zip": zipped, "older": older, "pickle": pickled}


FIRST = 10_000  # number of the first tensor of an archive: beyond those of storages


def tarred(tensors: Mapping[str, Tensor], path: Path) -> None:
    """As torch wrote before 0.2: storages, tensors and a pickle that refers to them, in a tar archive."""
    storages, records = io.BytesIO(), io.BytesIO()
    for out in (storages, records):
        pickle.dump(len(tensors), out, protocol=2)
    for key, tensor in enumerate(tensors.values()):
        kind = torch.FloatStorage if tensor.is_floating_point() else torch.LongStorage
        pickle.dump((key, "cpu", kind), storages, protocol=2)
        storages.write(np.int64(tensor.numel()).tobytes() + tensor.contiguous().numpy().tobytes())
        pickle.dump((FIRST + key, key, torch.FloatTensor), records, protocol=2)
        records.write(np.array([tensor.ndim, 0], np.int32).tobytes())
        records.write(np.array([*tensor.shape, *tensor.contiguous().stride(), 0], np.int64).tobytes())
    pickle.dump([], storages, protocol=2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> str | None:
            return str(FIRST + list(map(id, tensors.values())).index(id(obj))) if isinstance(obj, Tensor) else None

    main = io.BytesIO()
    Pickler(main, protocol=2).dump(OrderedDict(tensors))
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, raw in (("sys_info", pickle.dumps({})), ("storages", storages.getvalue())):
            _member(archive, name, raw)
        for name, raw in (("tensors", records.getvalue()), ("pickle", main.getvalue())):
            _member(archive, name, raw)


def _member(archive: tarfile.TarFile, name: str, raw: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(raw)
    archive.addfile(info, io.BytesIO(raw))


def layouts(tensors: Mapping[str, Tensor], network: nn.Module, stranger: Stranger) -> dict[str, Any]:
    """Weights among what the scripts of many save beside them.

    Args:
        tensors: State dict.
        network: The same as a module.
        stranger: Whose objects stand beside.
    """
    objects = stranger.objects()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    optimizer.param_groups[0]["schedule"] = objects["config"]
    return {
        "lightning": {
            "state_dict": {f"network.{name}": tensor for name, tensor in tensors.items()},
            "hyper_parameters": objects, "optimizer_states": [optimizer.state_dict()], "epoch": 3,
        },
        "training script": {"model": OrderedDict(tensors), "args": objects["args"], "scheduler": objects["called"]},
        "accuracy beside": {"net": tensors, "acc": objects["accuracy"], "history": objects["table"]},
        "parameters": {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in tensors.items()},
        "module": network,
        "module of a class": stranger.module.Net(network),
        "module under a key": {"model": nn.DataParallel(network), **objects},
    }  # fmt: skip
