#!/usr/bin/env bash
# onnx.checker.check_model passes a convolution whose weights do not fit its input or its groups, also with
# full_check=True, which infers shapes; onnxruntime builds a session of it and only fails when it is run. A checker
# that passes says nothing about an exported network whose widths or groups were changed: run it once, and compare
# with the network it came from.
#
# Seen, with onnx 1.23.2, onnxruntime 1.32.0, numpy 2.4.6 (the script fails where it sees anything else):
#> 4 x 8 weights on 8 channels: check passes, full check passes, session made, runs
#> 4 x 5 weights on 8 channels: check passes, full check passes, session made, fails when run
#> 4 x 2 weights on 8 channels in 3 groups: check passes, full check passes, session made, fails when run
#> 5 x 4 weights on 8 channels in 2 groups: check passes, full check passes, session made, fails when run
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
"$folder/venv/bin/python" - > "$folder/seen" <<'EOF'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

onnxruntime.set_default_logger_severity(4)


def attempt(words, action):
    try:
        action()
    except Exception as error:  # each package raises its own
        return "fails when run" if words == "runs" else f"not: {words} ({error})"
    return words


def show(outputs, inputs, groups, words):
    weights = numpy_helper.from_array(np.ones((outputs, inputs, 3, 3), np.float32), "weights")
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 6, 6])]
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])]
    node = helper.make_node("Conv", ["x", "weights"], ["y"], group=groups)
    graph = helper.make_graph([node], "layer", values, results, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    told = [attempt("check passes", lambda: onnx.checker.check_model(model))]
    told.append(attempt("full check passes", lambda: onnx.checker.check_model(model, full_check=True)))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    told.append("session made")
    told.append(attempt("runs", lambda: session.run(None, {"x": np.ones((1, 8, 6, 6), np.float32)})))
    print(f"{outputs} x {inputs} weights on 8 channels{words}: {', '.join(told)}")


show(4, 8, 1, "")
show(4, 5, 1, "")
show(4, 2, 3, " in 3 groups")
show(5, 4, 2, " in 2 groups")
EOF
cat "$folder/seen"
diff <(sed -n 's/^#> //p' "$0") "$folder/seen"
