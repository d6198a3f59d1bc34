#!/usr/bin/env bash
# jsonargparse, which LightningCLI is made of, reads YAML 1.1 in files and in lists and mappings on the command line:
# a class, domain or run named 010, no or 1e3 is a number or a truth value there. Types catch it where a str is
# expected, but never in the keys of a dict[str, ...]; and a number such as 010 is eight in a file and ten on the
# command line. An optional text cannot be the word null: in quotes, too, it is None. Quote names, and check keys
# yourself.
#
# Seen, with jsonargparse 4.53.0 and PyYAML 6.0.3 (the script fails where it sees anything else):
#> in a file, by: {010: a, no: b, photo: c}, a dict[str, str]: {8: 'a', False: 'b', 'photo': 'c'}
#> in a file, name: 010, a str: refused, it is 8
#> on the command line, --name 010, a str: '010'
#> in a file, size: 010, an int: 8
#> on the command line, --size 010, an int: 10
#> in a file, note: "null", an optional str: None
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jsonargparse==4.53.0 PyYAML==6.0.3
"$folder/venv/bin/python" - > "$folder/seen" <<'EOF'
import re
from typing import Optional

from jsonargparse import ArgumentError, ArgumentParser

parser = ArgumentParser(exit_on_error=False)
parser.add_argument("--by", type=dict[str, str])
parser.add_argument("--name", type=str)
parser.add_argument("--size", type=int)
parser.add_argument("--note", type=Optional[str])


def told(read, key):
    try:
        return repr(read()[key])
    except ArgumentError as error:
        return f"refused, it is {re.search('Got value: (.*)', str(error))[1]}"


for text, kind in (
    ("by: {010: a, no: b, photo: c}", "a dict[str, str]"),
    ("name: 010", "a str"),
    ("--name 010", "a str"),
    ("size: 010", "an int"),
    ("--size 010", "an int"),
    ('note: "null"', "an optional str"),
):
    if text.startswith("--"):
        option, value = text.split()
        print(f"on the command line, {text}, {kind}: {told(lambda: parser.parse_args([option, value]), option[2:])}")
    else:
        print(f"in a file, {text}, {kind}: {told(lambda: parser.parse_string(text), text.split(':')[0])}")
EOF
cat "$folder/seen"
diff <(sed -n 's/^#> //p' "$0") "$folder/seen"
