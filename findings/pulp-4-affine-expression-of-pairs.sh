#!/usr/bin/env bash
# PuLP 4.2.0: `LpAffineExpression([(x, 1)])`, the list of pairs that 3.x documents and takes, is still constructed without a word, and every
# use of it then fails with an AttributeError that names neither the argument nor the change.
# Needs Python 3.12, which PuLP 4 does: PYTHON=python3.12 by default.
# Seen: with 3.3.2 the constraint is made; with 4.2.0 `'list' object has no attribute ...`.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.12}" -m venv "$folder/venv"
cat > "$folder/one.py" <<'PY'
import pulp

problem = pulp.LpProblem("p")
x = problem.add_variable("x") if hasattr(problem, "add_variable") else pulp.LpVariable("x")
expression = pulp.LpAffineExpression([(x, 1)])
try:
    print(pulp.__version__, "constraint:", expression == 1)
except AttributeError as error:
    print(pulp.__version__, "AttributeError:", error)
PY
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 pulp==3.3.2
old=$("$folder/venv/bin/python" "$folder/one.py")
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 pulp==4.2.0
new=$("$folder/venv/bin/python" "$folder/one.py")
echo "$old"; echo "$new"
case "$old" in *"constraint: x = 1"*) ;; *) echo "this has changed" >&2; exit 1 ;; esac
case "$new" in *"AttributeError: 'list' object has no attribute"*) ;; *) echo "this has changed" >&2; exit 1 ;; esac
