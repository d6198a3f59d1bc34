#!/usr/bin/env bash
# Which output of a classifier is which class depends on who read the folder: timm sorts class folders naturally and
# regardless of case, torchvision by code points. On Office-Home's 65 folders they disagree about six, so that a
# network of one, scored with the labels of the other, is wrong on all pictures of six classes, and nothing complains.
# Numbered folders are worse: "10" stands before "2" for one of them. Keep the names of the classes with the weights.
#
# Seen, with timm 1.0.31 and torchvision 0.29.2, whose own code is run, without torch (the script fails where it sees
# anything else):
#> of 65 classes of Office-Home, 6 have another number
#> torchvision: 58 TV, 59 Table, 60 Telephone, 61 ToothBrush, 62 Toys, 63 Trash_Can
#> timm:        58 Table, 59 Telephone, 60 ToothBrush, 61 Toys, 62 Trash_Can, 63 TV
#> of 12 classes named by the numbers 1 to 12, 11 have another number
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps timm==1.0.31 torchvision==0.29.2
"$folder/venv/bin/python" - "$folder" > "$folder/seen" <<'EOF'
import ast
import os
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Union

packages = Path(sysconfig.get_path("purelib"))
for name in ("timm", "timm.utils", "timm.data", "timm.data.readers"):  # empty, so that nothing imports torch
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(packages / name.replace(".", "/"))]
from timm.data.readers.reader_image_folder import find_images_and_targets

tree = ast.parse((packages / "torchvision/datasets/folder.py").read_text())
tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "find_classes"]
scope = {"os": os, "Path": Path, "Union": Union}
exec(compile(tree, "folder.py", "exec"), scope)

OFFICE_HOME = """
Alarm_Clock Backpack Batteries Bed Bike Bottle Bucket Calculator Calendar Candles Chair Clipboards Computer Couch
Curtains Desk_Lamp Drill Eraser Exit_Sign Fan File_Cabinet Flipflops Flowers Folder Fork Glasses Hammer Helmet
Kettle Keyboard Knives Lamp_Shade Laptop Marker Monitor Mop Mouse Mug Notebook Oven Pan Paper_Clip Pen Pencil
Postit_Notes Printer Push_Pin Radio Refrigerator Ruler Scissors Screwdriver Shelf Sink Sneakers Soda Speaker Spoon
TV Table Telephone ToothBrush Toys Trash_Can Webcam
""".split()


def orders(root: Path, classes: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    for name in classes:
        (root / name).mkdir(parents=True)
        (root / name / "picture.jpg").touch()
    return scope["find_classes"](root)[1], find_images_and_targets(str(root))[1]


def told(order: dict[str, int], classes: set[str]) -> str:
    return ", ".join(f"{index} {name}" for index, name in sorted((order[name], name) for name in classes))


theirs, timms = orders(Path(sys.argv[1], "home"), OFFICE_HOME)
differing = {name for name in OFFICE_HOME if theirs[name] != timms[name]}
print(f"of {len(theirs)} classes of Office-Home, {len(differing)} have another number")
print(f"torchvision: {told(theirs, differing)}")
print(f"timm:        {told(timms, differing)}")
numbers = [str(number) for number in range(1, 13)]
theirs, timms = orders(Path(sys.argv[1], "numbers"), numbers)
print(f"of 12 classes named by the numbers 1 to 12, {sum(theirs[n] != timms[n] for n in numbers)} have another number")
EOF
cat "$folder/seen"
diff <(sed -n 's/^#> //p' "$0") "$folder/seen"
