import pytest

from harness.exceptions import BackendError
from harness.run_dir import RunDir
from harness.supervised.replay import Ledger, Noise, noise_of

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


@pytest.mark.parametrize("num_there, lost", [(0, 1), (1, 0)])
def test_evaluations_lost_before_the_checkpoint_are_told(run, caplog, num_there, lost):
    run.append_metrics({"step": 4, "test/nll": 1.0})
    run.append_eval_examples([{"step": 3, "set": ""}][:num_there])
    Ledger(run, next_step=4, attempt=2)
    told = f"{lost} evaluations of metrics.jsonl are not in eval_examples.jsonl"
    assert (told in caplog.text) is bool(lost)


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


def ledger_after(run, tolerance, **changes):
    ledger = Ledger(run, next_step=3, attempt=2, tolerance=tolerance)
    ledger.write(ROW | changes, [])
    return ledger


def test_a_loss_may_differ_by_the_tolerance_and_is_not_called_exact(run):
    ledger = ledger_after(run, 1e-3, **{"train_mean_nll": 2.5004, "test/nll": 1.9998})
    assert (ledger.num_verified, ledger.exact, ledger.is_inexact) == (1, False, False)
    assert ledger.largest_difference == pytest.approx(4e-4)
    assert run.metrics() == ROWS
    assert ledger.verdict().startswith("1 row equal within 4.0e-04 nats; one row cannot show")


@pytest.mark.parametrize("nll, is_inexact", [(2.0019, False), (2.0021, True)])
def test_the_noise_of_a_test_nll_is_that_of_its_own_number_of_tokens(run, nll, is_inexact):
    ledger = Ledger(run, next_step=3, attempt=2, tolerance=Noise(0.004))  # a mean over 4 tokens: 0.002
    ledger.write(ROW | {"test/nll": nll}, [{"set": "", "num_loss_tokens": [1, 3]}])
    assert ledger.is_inexact is is_inexact


@pytest.mark.parametrize("changes", [{"train_mean_nll": 2.502}, {"test/nll": 2.002}, {"num_tokens": 8}])
def test_beyond_the_tolerance_is_inexact_and_counts_have_none(run, changes):
    ledger = ledger_after(run, 1e-3, **changes)
    assert (ledger.num_verified, ledger.exact, ledger.is_inexact) == (0, False, True)
    assert run.is_superseded()


def test_noise_is_ten_deviations_of_the_mean():
    # variances 0.03 ** 2 / 2 and 0.04 ** 2 / 2
    noise = noise_of([[1.03, 2.0], [1.0, 2.04]], 50)
    assert noise.of_mean(50) == pytest.approx(10 * (25 / 2) ** 0.5 / 100 / 50)
    assert noise.of_mean(2) == pytest.approx(5 * noise.of_mean(50))  # a mean over 1/25 of the tokens
    assert noise_of([[1.0, 2.0]] * 3, 50).of_mean(1) == 0


def test_the_row_of_an_evaluation_alone_is_completed(run):
    alone = {"step": 4, "ts": 5, "epoch": 1, "progress": 1.0, "test/nll": 1.5}
    run.append_metrics(alone)
    trained = ROW | {"step": 4, "ts": 9, "epoch": 1, "progress": 0.5, "test/nll": 1.5}
    ledger = Ledger(run, next_step=4, attempt=2)
    assert ledger.num_to_replay == 0
    ledger.write(trained, [])
    assert run.metrics() == [*ROWS, trained | alone]
    assert (ledger.num_verified, ledger.exact) == (0, None)


def test_an_evaluation_alone_that_comes_out_differently_is_superseded(run):
    run.append_metrics({"step": 4, "ts": 5, "test/nll": 1.5})
    Ledger(run, next_step=4, attempt=2).write({"step": 4, "ts": 6, "test/nll": 1.6}, [])
    assert run.metrics()[-1] == {"step": 4, "ts": 6, "test/nll": 1.6}
    assert run.is_superseded()


def test_evaluations_since_the_best_one_do_not_look_ahead(run):
    for step, nll in ((4, 3.0), (5, 1.0)):
        run.append_metrics({"step": step, "ts": 0, "test/nll": nll})
    ledger = Ledger(run, next_step=4, attempt=2)
    assert ledger.evaluations_since_best(4, 3.0) == 1  # of steps 3 and 4; 5 is recorded, and later
    assert ledger.evaluations_since_best(6, 2.0) == 1
    assert ledger.evaluations_since_best(6, 0.5) == 0
