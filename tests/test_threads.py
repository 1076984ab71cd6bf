"""The number of threads follows `n_jobs`, the cores of the process and OMP_NUM_THREADS."""

from __future__ import annotations

import pytest
from joblib import cpu_count

from featx.exceptions import UsageError
from featx.threads import n_threads


@pytest.mark.parametrize(
    ("n_jobs", "variable", "expected"),
    [
        (3, "", 3),
        (3, "1", 3),  # an explicit number is not limited
        (None, "", cpu_count()),
        (-1, "", cpu_count()),
        (-1, "1", 1),
        (None, "1", 1),
        (None, "1,4", 1),  # nested levels of OpenMP
        (-1, "100000", cpu_count()),
        (-1, "0", cpu_count()),
        (-1, "many", cpu_count()),
        (-2, "", max(1, cpu_count() - 1)),
        (-100_000, "", 1),
    ],
)
def test_the_number_of_threads(
    n_jobs: int | None, variable: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert n_threads(n_jobs) == expected


def test_no_threads_are_refused() -> None:
    with pytest.raises(UsageError, match="n_jobs is 0"):
        n_threads(0)
