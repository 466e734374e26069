#!/usr/bin/env bash
# pulp 3.3.2 with highspy 1.16.0: once a process has solved an integer program with HiGHS's own number of threads, another one that is
# given threads=1 is not solved at all: no exception, with msg=False no message; the status is "Not Solved" (HiGHS: "Not Set") and the
# objective reads 0.0, which looks like a value. The same problem in a fresh process, or without `threads`, is solved. Libraries that
# solve in one process must agree on the number of threads, and callers must look at the status before the value.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pulp==3.3.2 highspy==1.16.0
"$folder/venv/bin/python" - <<'PY'
import os

import pulp

if (os.cpu_count() or 1) < 2:
    raise SystemExit("needs two cores: with one, HiGHS's own number of threads is 1 too")


def solved(**options):
    model = pulp.LpProblem("knapsack", pulp.LpMaximize)
    x = [pulp.LpVariable(f"x{i}", cat="Binary") for i in range(6)]
    model += pulp.lpSum((3 * i + 5) * v for i, v in enumerate(x))
    model += pulp.lpSum((2 * i + 3) * v for i, v in enumerate(x)) <= 17
    code = model.solve(pulp.HiGHS(msg=False, **options))
    print(options, pulp.LpStatus[code], pulp.value(model.objective))
    return pulp.LpStatus[code], pulp.value(model.objective)


assert solved() == ("Optimal", 27.0), "this has changed"
assert solved(threads=1) == ("Not Solved", 0.0), "this has changed"
assert solved() == ("Optimal", 27.0), "this has changed"
PY
