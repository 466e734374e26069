"""One torch thread for each test process and for those that it starts, or as many as
SHARDWRIGHT_TEST_THREADS says; ranks that need not import torch each (`warm_ranks.py`); pictures
without a display; `gpu` tests skipped.

Hypothesis draws the same examples in every `make test`, so that a commit passes or fails by what it
changes; `make test-all` draws others.
"""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import settings

#: Kernels add in another order on another number of threads: no test may depend on it.
_THREADS = os.environ.get("SHARDWRIGHT_TEST_THREADS", "1")

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = _THREADS
os.environ["MPLBACKEND"] = "Agg"
#: The files that take longest, which are begun first: the processes of a run then end together.
_LONGEST = (
    "test_search", "test_numerics", "test_cli", "test_reported", "test_examples",
    "test_architectures", "test_api_examples", "test_uneven_numerics", "test_launcher",
    "test_families", "test_unroll", "test_rules", "test_keras", "test_distributed",
)  # fmt: skip
# How long an example takes depends on the machine.
settings.register_profile("default", deadline=None)
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


def pytest_configure() -> None:
    import torch  # after the variables above, which it reads once

    torch.set_num_threads(int(_THREADS))
    import warm_ranks

    warm_ranks.install()


def pytest_collection_finish() -> None:
    """What is imported and collected by now, a million objects, is not looked through for
    garbage again and again: a fourth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.fixture
def spawned_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks are started as the product starts them."""
    import warm_ranks

    monkeypatch.setattr("runtime.launcher._config", warm_ranks.SPAWNED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    items.sort(
        key=lambda item: (
            _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST)
        )
    )
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
