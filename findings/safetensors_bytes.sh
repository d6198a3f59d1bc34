#!/usr/bin/env bash
# A safetensors file with two or more entries of metadata is mostly another string of bytes each time it is written,
# even within one process: the entries stand in no fixed order. A hash of the file therefore does not tell whether two
# students, checkpoints or caches are equal; hash the tensors and the sorted metadata instead. Tensors have a fixed
# order in the file (by alignment, then by name) whatever order they were given in; it is not the order in which they
# are listed on reading.
#
# Seen, with safetensors 0.8.0 and numpy 2.4.6; 0.5.0 does the same (the script fails where it sees anything else):
#> no metadata, saved 50 times: one string of bytes
#> 1 entry of metadata, saved 50 times: one string of bytes
#> 6 entries of metadata, saved 50 times: several strings of bytes, of one length
#> tensors given as a, b or as b, a: one string of bytes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - > "$folder/seen" <<'EOF'
import numpy as np
from safetensors.numpy import save

first, second = np.arange(6, dtype=np.float32), np.ones(3, dtype=np.float32)
metadata = {"architecture": "resnet18", "classes": "10", "mean": "0.5", "std": "0.5", "size": "64", "licence": "CC0"}
for count, name in ((0, "no metadata"), (1, "1 entry of metadata"), (6, "6 entries of metadata")):
    entries = dict(list(metadata.items())[:count]) or None
    written = {save({"weight": first}, metadata=entries) for _ in range(50)}
    assert len({len(text) for text in written}) == 1
    several = "one string of bytes" if len(written) == 1 else "several strings of bytes, of one length"
    print(f"{name}, saved 50 times: {several}")
equal = save({"a": first, "b": second}) == save({"b": second, "a": first})
print(f"tensors given as a, b or as b, a: {'one string' if equal else 'several strings'} of bytes")
EOF
cat "$folder/seen"
diff <(sed -n 's/^#> //p' "$0") "$folder/seen"
