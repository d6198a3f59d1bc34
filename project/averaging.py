"""``pleas average``: the mean of networks in a file of the form that theirs have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from project.averages import average
from project.models.preprocessing import Channels, Crop, Interpolation, Orientation
from project.options import Align, AverageOptions
from project.parser import OneSentenceParser, keyword_arguments


def command_parser() -> OneSentenceParser:
    """The parser of the arguments after ``average``."""
    parser = OneSentenceParser(
        prog="pleas average",
        description="Write the mean of networks, their units aligned, in a file of the form that they have.",
    )
    parser.add_argument("files", nargs="+", type=Path, help="Files of weights, or folders that hold one.")
    parser.add_argument("--out", type=Path, required=True, help="File for the mean, of the form of the first file.")
    parser.add_argument(
        "--pictures",
        type=Path | None,
        help="Folder of pictures, however it is arranged, to match units on and re-estimate batch norms.",
    )
    parser.add_argument(
        "--align",
        type=Align | None,
        help="How units are matched: activations (default with pictures), weights (without), both, none.",
    )
    parser.add_argument("--image-size", type=int | None, help="Height and width of pictures; default: the files' own.")
    parser.add_argument("--mean", type=float, nargs=3, help="Of red, green and blue; default: the files'.")
    parser.add_argument("--std", type=float, nargs=3, help="Of red, green and blue; default: the files'.")
    parser.add_argument("--crop", type=Crop | None, help="How pictures that are not square are fitted.")
    parser.add_argument("--resize", type=int | None, help="Side to which they are resized before the middle is kept.")
    parser.add_argument("--interpolation", type=Interpolation | None, help="How they are resized.")
    parser.add_argument("--orientation", type=Orientation | None, help="Whether they stand as their camera noted.")
    parser.add_argument("--ground", help="Colour on which transparent ones are laid: white, grey, black, '#rrggbb'.")
    parser.add_argument("--channels", type=Channels | None, help="Order in which the networks read channels.")
    parser.add_argument("--calibration", type=int | Literal["all"] | None, help="How many pictures; default: 512.")
    parser.add_argument("--batch-size", type=int, default=64, help="Pictures in a batch.")
    parser.add_argument("--architecture", help="What the files' networks are: a name, or a dotted path to your code.")
    parser.add_argument("--arguments", default=None, help="Keyword arguments of the architecture, as JSON.")
    parser.add_argument(
        "--weights", type=Literal["ema", "raw"] | None, help="Which set of files that have two; default: ema."
    )
    parser.add_argument("--head", type=Literal["none"] | None, help="none averages the trunks of ResNets alone.")
    parser.add_argument("--device", help="Where networks run; default: a GPU where there is one.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Whether to replace a file that is there.")
    return parser


def run_command(args: Sequence[str]) -> None:
    """The command; says what was written.

    Args:
        args: Arguments after ``average``.

    Raises:
        PleasError: See :func:`average`.
    """
    given = command_parser().parse_args(list(args))
    options = {name: value for name, value in vars(given).items() if value is not None}
    files, out, pictures = options.pop("files"), options.pop("out"), options.pop("pictures", None)
    if "arguments" in options:
        options["arguments"] = keyword_arguments(options["arguments"], "arguments")
    average(
        files,
        out,
        pictures,
        **{name: value for name, value in options.items() if name in AverageOptions.__optional_keys__},
    )
