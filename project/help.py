"""What ``--help`` shows of the command and of a merge at once: without the parser, whose libraries take seconds."""

from collections.abc import Sequence

from project.short_options import in_columns, usage

SUBCOMMANDS = {
    "merge": "merge fine-tuned networks into one, at every budget asked for",
    "average": "write the mean of networks, their units aligned, in a file of the form that they have",
    "report": "write the report of a merge again, from what its folder holds",
    "check": "show what of a network can be permuted, or whether sources fit their pictures",
    "export": "write a student as other tools load it",
    "fit": "fine-tune a source on a domain, refine a student, learn coefficients",
    "validate": "score networks on the validation pictures of their domains",
    "test": "score networks on the test pictures of their domains",
    "predict": "write what a network sees in any folder of pictures",
    "add-statistics": "add the statistics of shards up to those of the whole",
}
"""Name -> what it does, in the order of the help."""
HELP = ("-h", "--help")


def help_text(arguments: Sequence[str]) -> str | None:
    """The help that a command asks for, as far as it is known without the parser.

    Args:
        arguments: After the program's name.

    Returns:
        The text; None where the parser, or the command itself, is to answer.
    """
    if not arguments or (len(arguments) == 1 and arguments[0] in HELP):
        return "\n".join([
            "usage: pleas COMMAND ...",
            "",
            "Turn several fine-tuned vision networks into one.",
            "",
            "commands:",
            *in_columns(SUBCOMMANDS),
            "",
            "'pleas COMMAND --help' shows what a command takes; 'pleas merge --help all' what a merge takes beyond its",
            "short form: every option with its path, as in YAML files, and those of Lightning's trainer.",
        ])  # fmt: skip
    if len(arguments) == 2 and arguments[0] == "merge" and arguments[1] in HELP:
        more = "'pleas merge --help all' shows every option with its path, as in YAML files, and those of the trainer."
        return f"usage: {usage()}\n\n{more}"
    return None
