"""``pleas export``: a student as other tools load it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from project.errors import present
from project.exports import Target, export, place_of
from project.parser import OneSentenceParser, keyword_arguments
from project.student import load_student


def command_parser() -> OneSentenceParser:
    """The parser of the arguments after ``export``."""
    parser = OneSentenceParser(
        prog="pleas export",
        description="Write a student as other tools load it, and hold its logits against the student's.",
    )
    parser.add_argument("student", type=Path, help="File of a student, as 'pleas merge' writes it.")
    parser.add_argument(
        "--to",
        required=True,
        choices=get_args(Target),
        help="timm: a folder that timm and transformers load, of a student of one source's size with one head; onnx, "
        "torch-export: a program of any student, for any number of pictures, every head an output of its name; "
        "safetensors: the weights of a student of one source's size, named as its architecture names them.",
    )
    parser.add_argument("--out", type=Path, help="What is written, not there yet; default: beside the student.")
    parser.add_argument("--architecture", help="Dotted path of your own code, where the student is of that.")
    parser.add_argument("--arguments", default=None, help="Keyword arguments of the architecture, as JSON.")
    parser.add_argument("--licence", help="Of the weights, for the model card, as the Hub names it: apache-2.0.")
    return parser


def run_command(args: Sequence[str]) -> None:
    """The command; prints what was written, and how far its logits are from the student's.

    Args:
        args: Arguments after ``export``.

    Raises:
        PleasError: If the student cannot be read or go there, or the disk has no room.
    """
    given = command_parser().parse_args(list(args))
    present(given.student, what="The student")
    arguments = None if given.arguments is None else keyword_arguments(given.arguments, "arguments")
    student = load_student(given.student, given.architecture, arguments)
    out = given.out or place_of(given.student, given.to)
    sys.stdout.write(f"{export(student, out, given.to, given.licence, given.student)}\n")
