#!/usr/bin/env bash
# safetensors.numpy 0.8.0 writes the memory of an array, not its values in order, and says nothing: whatever is not
# laid out row by row comes back with the same shape and other values. Indexing columns is enough, since numpy lays
# `weight[:, order]` out column by column: a layer whose inputs were permuted is stored as another layer. Up to 0.7.0
# the values were put in order; safetensors.torch refuses such tensors. The docstring asks for contiguous tensors;
# np.ascontiguousarray makes them.
#
# Seen, with numpy 2.4.6 (the script fails where it sees anything else):
#> safetensors 0.7.0: weight[:, order] comes back as it was saved
#> safetensors 0.7.0: weight.T comes back as it was saved
#> safetensors 0.8.0: weight[:, order] comes back with its shape and other values
#> safetensors 0.8.0: weight.T comes back with its shape and other values
#> safetensors 0.8.0: np.ascontiguousarray(weight[:, order]) comes back as it was saved
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
cat > "$folder/show.py" <<'EOF'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

weight = np.arange(48, dtype=np.float32).reshape(3, 4, 2, 2)
order = np.array([2, 0, 3, 1])
arrays = {"weight[:, order]": weight[:, order], "weight.T": weight.T}
if sys.argv[1] == "remedy":
    arrays = {"np.ascontiguousarray(weight[:, order])": np.ascontiguousarray(weight[:, order])}
for name, array in arrays.items():
    back = load(save({"weight": array}))["weight"]
    assert back.shape == array.shape and back.dtype == array.dtype
    verdict = "as it was saved" if np.array_equal(back, array) else "with its shape and other values"
    print(f"safetensors {safetensors.__version__}: {name} comes back {verdict}")
EOF
for version in 0.7.0 0.8.0; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "safetensors==$version" numpy==2.4.6
    "$folder/venv/bin/python" "$folder/show.py" each
done > "$folder/seen"
"$folder/venv/bin/python" "$folder/show.py" remedy >> "$folder/seen"
cat "$folder/seen"
diff <(sed -n 's/^#> //p' "$0") "$folder/seen"
