#!/bin/sh
# Downloads the packages of gpu_wheels.txt, and those named as arguments, as wheels into gpu-wheels/, at the versions of constraints.txt.
set -e
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
platforms=""
for n in 40 39 38 37 36 35 34 33 32 31 30 29 28 27 26 25 24 23 22 21 20 19 18 17; do platforms="$platforms --platform manylinux_2_${n}_x86_64"; done
for package in $(grep -v '^#' benchmarks/gpu_wheels.txt | cut -d' ' -f1) "$@"; do
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        $platforms --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -c constraints.txt -d gpu-wheels "$package"
done
du -sh gpu-wheels
