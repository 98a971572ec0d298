import pytest

from harness.exceptions import BackendError
from harness.run_dir import RunDir
from harness.supervised.replay import Ledger

ROW = {
    "step": 3,
    "ts": 1,
    "batch_digest": "ab",
    "learning_rate": 0.1,
    "num_sequences": 2,
    "num_tokens": 9,
    "num_loss_tokens": 5,
    "train_mean_nll": 2.5,
    "test/nll": 2.0,
    "time/step": 1.0,
}


ROWS = [*({"step": step, "ts": 0} for step in range(3)), ROW]


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "r")
    with run.lock():
        run.write_config({"run_id": "x"})
        for row in ROWS:
            run.append_metrics(row)
        yield run


def test_an_equal_row_is_verified_and_the_recorded_one_stays(run):
    ledger = Ledger(run, next_step=3, attempt=2)
    ledger.write(ROW | {"ts": 2, "time/step": 9.0}, [])
    assert (ledger.num_verified, ledger.exact) == (1, True)
    assert run.metrics() == ROWS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_digest", "cd"),
        ("learning_rate", 0.2),
        ("num_sequences", 1),
        ("num_tokens", 8),
        ("num_loss_tokens", 4),
        ("train_mean_nll", 2.5000000000000004),
        ("test/nll", 2.1),
    ],
)
def test_every_key_that_the_config_cannot_change_is_held(run, key, value):
    ledger = Ledger(run, next_step=3, attempt=2)
    assert (ledger.num_verified, ledger.exact) == (0, None)
    ledger.write(ROW | {key: value}, [])
    assert (ledger.num_verified, ledger.exact) == (0, False)
    assert run.metrics() == [*ROWS[:3], ROW | {key: value}]
    assert run.is_superseded()


def test_the_best_step_is_of_the_rows_that_stand(run):
    ledger = Ledger(run, next_step=3, attempt=2)
    assert ledger.best_step == 3
    ledger.write(ROW | {"train_mean_nll": 3.0, "test/nll": 9.0}, [])
    ledger.write(ROW | {"step": 4, "test/nll": 8.0}, [])
    assert ledger.best_step == 4


def test_what_is_not_finite_is_refused_before_anything_is_written(run):
    with pytest.raises(BackendError, match="test/nll is inf at step 4: lower learning_rate"):
        Ledger(run, next_step=4, attempt=1).write({"step": 4, "test/nll": float("inf")}, [{"set": ""}])
    assert run.metrics() == ROWS
    assert run.eval_examples() == []
