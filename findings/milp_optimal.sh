#!/usr/bin/env bash
# "Optimal" from scipy.optimize.milp means within one part in ten thousand, HiGHS's default gap, and whole numbers are
# whole to rounding only. Choosing what to keep within a budget (a knapsack; for instance units that stay apart in a
# merged network) can end in a choice that is not the best one, with status 0 and success; and `x.astype(int)`
# silently drops what was chosen with 0.9999999999. Set mip_rel_gap to 0, and round before converting.
#
# Seen, with scipy 1.17.1 and numpy 2.4.6; the best by dynamic programming (the script fails where it sees anything
# else):
#> status 0, success True, Optimization terminated successfully. (HiGHS Status 7: Optimal)
#> value of the rounded choice: 76338; the best: 76342
#> value of the same choice as x.astype(int): 68250
#> with mip_rel_gap 0: 76342
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" - > "$folder/seen" <<'EOF'
import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

random = np.random.default_rng(30)
cost = random.integers(100, 1000, 30)
value = cost * 10 + random.integers(1, 200, 30)
budget = int(cost.sum()) // 2

best = np.zeros(budget + 1, dtype=np.int64)  # by what may be spent
for one, price in zip(value, cost):
    best[price:] = np.maximum(best[price:], best[: budget + 1 - price] + one)


def solve(**options):
    limit = LinearConstraint(cost, -np.inf, budget)
    result = milp(-value, constraints=limit, integrality=1, bounds=Bounds(0, 1), options=options)
    assert cost @ np.round(result.x) <= budget
    return result


result = solve()
print(f"status {result.status}, success {result.success}, {result.message}")
print(f"value of the rounded choice: {value @ np.round(result.x):.0f}; the best: {best[-1]}")
print(f"value of the same choice as x.astype(int): {value @ result.x.astype(int)}")
print(f"with mip_rel_gap 0: {value @ np.round(solve(mip_rel_gap=0).x):.0f}")
EOF
cat "$folder/seen"
diff <(sed -n 's/^#> //p' "$0") "$folder/seen"
