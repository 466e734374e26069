"""One torch thread for each test process and for those that it starts, or as many as SHARDWRIGHT_TEST_THREADS says; pictures without a
display; `gpu` tests skipped.

Hypothesis draws the same examples in every `make test`, so that a commit passes or fails by what it changes; `make test-all` draws
others.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

#: Kernels add in another order on another number of threads: no test may depend on it.
_THREADS = os.environ.get("SHARDWRIGHT_TEST_THREADS", "1")

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = _THREADS
os.environ["MPLBACKEND"] = "Agg"
settings.register_profile("default", deadline=None)  # how long an example takes is the machine's business
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


def pytest_configure() -> None:
    import torch  # after the variables above, which it reads once

    torch.set_num_threads(int(_THREADS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
