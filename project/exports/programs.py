"""Programs that run without this project: torch.export's ``.pt2``, and ONNX."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from project.errors import ConfigurationError, PleasError
from project.exports.common import Exported, compared, described, heads_of, notes_of
from project.runtime.saving import atomic_path
from project.runtime.space import check_space
from project.student import Student

INSTALL = "pip install 'pleas-lightning[onnx]'"
LARGEST = 2**31 - 2**24  # bytes of an ONNX file in one piece, room for its graph left
INPUT = "pictures"
PROGRAM = 2**22  # bytes that a program takes beside its weights, about


class Heads(nn.Module):
    """A student whose heads are outputs of their own.

    Args:
        student: The student.
        named: Whether outputs come as name -> logits, and not one after the other.
    """

    def __init__(self, student: Student, named: bool) -> None:
        super().__init__()
        self.student, self.named = student, named
        self.columns = dict(zip(heads_of(student), student.labels.heads.values(), strict=True))

    def forward(self, pictures: Tensor) -> dict[str, Tensor] | tuple[Tensor, ...]:
        """Compute the logits of every head, (batch, its classes), of pictures (batch, channels, height, width)."""
        logits = self.student(pictures)
        parts = {name: logits[:, columns] for name, columns in self.columns.items()}
        return parts if self.named else tuple(parts.values())


def too_large(student: Student) -> str | None:
    """Why a student does not fit into an ONNX file, in words; None where it does."""
    return None if student.bytes <= LARGEST else f"has {student.bytes} bytes, and an ONNX file {LARGEST} at most"


def write_program(student: Student, path: Path) -> Exported:
    """Write a program of torch.export, whose output is name of a head -> logits; JSON files in it say the rest.

    Raises:
        PleasError: See :func:`~project.exports.export.export`.
    """
    check_space({path: student.bytes + PROGRAM})
    with _in_one_sentence("torch-export"), _quiet():
        program = torch.export.export(
            Heads(student, named=True), (_example(student),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        written = io.BytesIO()
        extra = {f"{name}.json": text for name, text in described(student).items()}
        torch.export.save(program, written, extra_files=extra)
    content = written.getvalue()
    with atomic_path(path, len(content)) as draft:
        draft.write_bytes(content)
        with _in_one_sentence("torch-export"), _quiet(), draft.open("rb") as file:
            network = torch.export.load(file).module()
        difference = compared(student, lambda pictures: torch.cat(list(network(pictures).values()), 1), str(path))
    return Exported(path, len(content), difference, heads_of(student), notes_of(student))


def write_onnx(student: Student, path: Path) -> Exported:
    """Write an ONNX file with an output for every head; its metadata say the rest, as JSON.

    Raises:
        PleasError: See :func:`~project.exports.export.export`.
    """
    for library in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(library)
        except ImportError as error:
            raise ConfigurationError(f"to is 'onnx', which needs {library}: {INSTALL} ({error}).") from error
    check_space({path: student.bytes + PROGRAM})
    heads = list(heads_of(student))
    with _in_one_sentence("onnx"), _quiet():
        program = torch.onnx.export(
            Heads(student, named=False),
            (_example(student),),
            input_names=[INPUT],
            output_names=heads,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
    for key, text in described(student).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, text
    content = proto.SerializeToString()
    with atomic_path(path, len(content)) as draft:
        draft.write_bytes(content)
        session = import_module("onnxruntime").InferenceSession(str(draft), providers=["CPUExecutionProvider"])

        def run(pictures: Tensor) -> Tensor:
            return torch.cat([torch.from_numpy(one) for one in session.run(heads, {INPUT: pictures.numpy()})], 1)

        difference = compared(student, run, str(path))
    return Exported(path, len(content), difference, heads_of(student), notes_of(student))


def _example(student: Student) -> Tensor:
    """Two pictures: of one, a program would hold for one alone."""
    return torch.zeros(2, *student.spec.picture)


@contextmanager
def _in_one_sentence(target: str) -> Iterator[None]:
    """While open, what torch says in pages of a network that it cannot trace is one sentence."""
    try:
        yield
    except PleasError:
        raise
    except Exception as error:  # of tracing, which runs the user's code
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ConfigurationError(
            f"to is {target!r}, but torch cannot export the student: {first.rstrip('.')}."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """While open, exporters keep their progress and their plans for later versions to themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
