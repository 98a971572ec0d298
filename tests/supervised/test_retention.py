import pytest

from harness.supervised.retention import kept
from tests.prunable import record

LASTING = [record(step) for step in (2, 4, 6, 8)]
ROLLING = [record(2), record(3, rolling=True), record(4), record(5, rolling=True)]


@pytest.mark.parametrize(
    ("records", "num_newest", "best_step", "expected"),
    [
        (LASTING, 1, 4, [4, 8]),
        (LASTING, 2, 8, [6, 8]),
        (LASTING, 1, None, [8]),
        (LASTING, 9, None, [2, 4, 6, 8]),
        (LASTING, 0, 2, [2]),
        (LASTING, 0, None, []),
        (LASTING, 1, 5, [8]),
        (ROLLING, 1, None, [5]),
        (ROLLING, 2, None, [4, 5]),
        (ROLLING, 9, 3, [2, 3, 4, 5]),
        (ROLLING, 9, 2, [2, 4, 5]),
        ([], 1, 2, []),
    ],
)
def test_the_newest_of_those_that_last_and_the_best(records, num_newest, best_step, expected):
    assert [record.step for record in kept(records, num_newest, best_step)] == expected
