#!/usr/bin/env bash
# tensorboard's EventAccumulator, with which tables and plots are made from runs, keeps 10,000 scalars and 4 pictures
# a tag by default, drawn at random with the last one always among them, and says nothing: a best value or a first
# step read from it may be neither. size_guidance with 0 keeps all.
#
# Seen, with tensorboard 2.21.0 (the script fails where it sees anything else):
#> scalars written: 20000; read: 10000, the last of them step 19999
#> of the 20 lowest values, read: fewer than 20
#> pictures written: 20; read: 4, the last of them step 19
#> with 0 as size guidance: 20000 scalars, 20 pictures
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tensorboard==2.21.0
"$folder/venv/bin/python" - "$folder/run" > "$folder/seen" 2> "$folder/log" <<'EOF' || { cat "$folder/log"; exit 1; }
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

PIXEL = bytes.fromhex(  # a PNG of one grey pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c6368000000820081dd436af40000000049454e44ae426082"
)
writer = EventFileWriter(sys.argv[1])
for step in range(20000):
    writer.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag="loss", simple_value=step)])))
picture = Summary.Image(height=1, width=1, colorspace=1, encoded_image_string=PIXEL)
for step in range(20):
    writer.add_event(Event(step=step, summary=Summary(value=[Summary.Value(tag="picture", image=picture)])))
writer.close()


def read(**options):
    run = EventAccumulator(sys.argv[1], **options)
    run.Reload()
    return run.Scalars("loss"), run.Images("picture")


scalars, pictures = read()
print(f"scalars written: 20000; read: {len(scalars)}, the last of them step {scalars[-1].step}")
lowest = sum(scalar.value < 20 for scalar in scalars)
print(f"of the 20 lowest values, read: {'all' if lowest == 20 else 'fewer than 20'}")
print(f"pictures written: 20; read: {len(pictures)}, the last of them step {pictures[-1].step}")
scalars, pictures = read(size_guidance={"scalars": 0, "images": 0})
print(f"with 0 as size guidance: {len(scalars)} scalars, {len(pictures)} pictures")
EOF
cat "$folder/seen"
diff <(sed -n 's/^#> //p' "$0") "$folder/seen"
