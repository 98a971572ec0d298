"""How long a run goes on: raised and lowered when it is resumed, ended early."""

import pytest

from harness.exceptions import ConfigError
from harness.run_dir import RunDir
from harness.supervised.plan import Plan
from harness.tracking.mlflow_store import open_store
from tests.fakes import Died, FakeBackend, WordsBuilder
from tests.supervised.runs import config, run, same


def learning_rates(run_dir):
    return [row["learning_rate"] for row in run_dir.metrics() if "learning_rate" in row]


def without_plan(rows):
    return [{k: v for k, v in row.items() if k not in ("progress",)} for row in same(rows)]


def test_a_run_whose_max_steps_is_raised_is_the_longer_run(tmp_path):
    changes = {"lr_schedule": "constant"}
    whole = run(config(tmp_path / "whole", max_steps=12, **changes))
    short = run(config(tmp_path / "r", max_steps=5, **changes))
    assert [row["step"] for row in short.metrics()] == list(range(6))
    last = short.metrics()[-1]
    assert "train_mean_nll" not in last
    extended = run(config(tmp_path / "r", max_steps=12, **changes))
    rows = extended.metrics()
    assert [row["step"] for row in rows] == list(range(13))
    assert {k: v for k, v in rows[5].items() if k in last} == last  # completed, with its own time and evaluation
    completed = {k: v for k, v in rows[5].items() if k in whole.metrics()[5]}
    assert without_plan([*rows[:5], completed, *rows[6:]]) == without_plan(whole.metrics())
    assert [r.step for r in extended.checkpoints() if r.final] == [12]
    assert extended.attempts()[-1]["exact"] is None  # nothing was replayed
    assert extended.attempts()[-2]["changed"] == {"max_steps": 12}
    steps = [row["step"] for row in extended.eval_examples()]
    assert steps == [0, 4, 5, 8, 12]


def test_more_epochs_continue_too(tmp_path):
    whole = run(config(tmp_path / "whole", num_epochs=3, lr_schedule="constant"))
    run(config(tmp_path / "r", num_epochs=1, lr_schedule="constant"))
    extended = run(config(tmp_path / "r", num_epochs=3, lr_schedule="constant"))
    assert [row["batch_digest"] for row in extended.metrics()[:15]] == [
        row["batch_digest"] for row in whole.metrics()[:15]
    ]
    assert extended.metrics()[-1]["test/nll"] == whole.metrics()[-1]["test/nll"]


def test_the_schedule_is_drawn_anew_from_the_first_new_update_on(tmp_path):
    run(config(tmp_path / "r", max_steps=5))
    rates = learning_rates(run(config(tmp_path / "r", max_steps=10)))
    first, then = [0.1 * (1 - k / 5) for k in range(5)], [0.1 * (1 - k / 10) for k in range(5, 10)]
    assert rates == pytest.approx(first + then)


def test_lr_policy_keep_holds_the_last_rate_of_the_first_schedule(tmp_path):
    run(config(tmp_path / "r", max_steps=5))
    rates = learning_rates(run(config(tmp_path / "r", max_steps=8, lr_policy="keep")))
    assert rates == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02, 0.02, 0.02, 0.02])


@pytest.mark.parametrize("first, then", [("keep", "rescale"), ("rescale", "keep")])
def test_another_lr_policy_for_the_same_number_of_updates_is_refused(tmp_path, first, then):
    run(config(tmp_path / "r", max_steps=5))
    run(config(tmp_path / "r", max_steps=8, lr_policy=first))
    with pytest.raises(ConfigError, match=f"lr_policy={then} here, and its 8 updates were planned with .*={first},"):
        run(config(tmp_path / "r", max_steps=8, lr_policy=then))
    run(config(tmp_path / "r", max_steps=10, lr_policy=then))


def test_lr_policy_does_not_matter_before_the_number_of_updates_changes(tmp_path):
    with pytest.raises(Died):
        run(config(tmp_path / "r", max_steps=5, backend=FakeBackend(die_after=9)))
    assert len(run(config(tmp_path / "r", max_steps=5, lr_policy="keep")).metrics()) == 6


def test_an_extended_run_that_dies_replays_under_the_rates_it_had(tmp_path):
    run(config(tmp_path / "whole", max_steps=5))
    whole = run(config(tmp_path / "whole", max_steps=12))
    for die_after in range(len(FakeBackend.clients[-1].worked)):
        path = tmp_path / f"r{die_after}"
        run(config(path, max_steps=5))
        with pytest.raises(Died):
            run(config(path, max_steps=12, backend=FakeBackend(die_after=die_after)))
        resumed = run(config(path, max_steps=12))
        assert same(resumed.metrics()) == same(whole.metrics())
        assert resumed.eval_examples() == whole.eval_examples()
        assert not resumed.is_superseded()


def test_extending_in_the_middle_keeps_what_was_trained(tmp_path):
    """The rows beyond the checkpoint are replayed under the old schedule, the new one begins after them."""
    with pytest.raises(Died):  # 9 rows are there, the checkpoint is at 5
        run(config(tmp_path / "r", eval_every=0, save_every=5, submit_ahead=0, backend=FakeBackend(die_after=20)))
    before = RunDir(tmp_path / "r").metrics()
    resumed = run(config(tmp_path / "r", eval_every=0, save_every=5, num_epochs=6))
    assert resumed.metrics()[:9] == before
    assert learning_rates(resumed)[9:] == pytest.approx([0.1 * (1 - k / 30) for k in range(9, 30)])
    assert resumed.attempts()[-1]["verified_rows"] == 4
    assert Plan.of_resumed_run(resumed, 30, "rescale").schedule == ((0, 15), (9, 30))


def test_fewer_updates_than_are_trained_are_refused_and_the_way_on_is_named(tmp_path):
    run(config(tmp_path / "r", max_steps=8, keep="all"))
    with pytest.raises(ConfigError) as error:
        run(config(tmp_path / "r", max_steps=5))
    assert "8 updates are trained, and the config asks for 5" in str(error.value)
    assert f"or fork: python -m harness fork {tmp_path / 'r'} --at 4 log_path=" in str(error.value)
    with pytest.raises(ConfigError, match=r"choose another log_path$"):
        run(config(tmp_path / "r", max_steps=2))
    assert run(config(tmp_path / "r", max_steps=8)).state() == "FINISHED"


def test_a_run_can_be_ended_before_its_epochs_when_it_is_resumed(tmp_path):
    with pytest.raises(Died):
        run(config(tmp_path / "r", submit_ahead=0, backend=FakeBackend(die_after=12)))
    resumed = run(config(tmp_path / "r", max_steps=6))
    assert [row["step"] for row in resumed.metrics()] == list(range(7))


def test_the_same_extended_command_on_a_complete_run_does_nothing(tmp_path, capsys):
    run(config(tmp_path / "r", max_steps=4))
    run(config(tmp_path / "r", max_steps=6))
    capsys.readouterr()
    run(config(tmp_path / "r", max_steps=6))
    assert "complete, nothing to train" in capsys.readouterr().out


# ---- early stopping

EARLY = {"learning_rate": 3.0, "lr_schedule": "constant", "eval_every": 2, "early_stop_patience": 2}


def test_it_ends_after_evaluations_without_a_better_one_whatever_is_submitted_ahead(tmp_path):
    ended = [run(config(tmp_path / f"{ahead}", submit_ahead=ahead, **EARLY)) for ahead in (0, 1, 4)]
    rows = ended[0].metrics()
    tested = {row["step"]: row["test/nll"] for row in rows if "test/nll" in row}
    best = min(tested, key=tested.__getitem__)
    assert best == 6
    assert list(tested) == [0, 2, 4, 6, 8, 10]
    assert rows[-1]["step"] == 10
    assert "train_mean_nll" not in rows[-1]
    assert [same(r.metrics()) for r in ended[1:]] == [same(rows)] * 2
    assert [r.step for r in ended[0].checkpoints() if r.is_usable] == [6, 10]
    assert ended[0].checkpoints()[-1].final


def test_a_run_that_dies_decides_as_the_one_that_did_not(tmp_path):
    whole = run(config(tmp_path / "whole", **EARLY))
    num_requests = len(FakeBackend.clients[-1].worked)
    for die_after in range(num_requests):
        with pytest.raises(Died):
            run(config(tmp_path / f"r{die_after}", backend=FakeBackend(die_after=die_after), **EARLY))
        resumed = run(config(tmp_path / f"r{die_after}", **EARLY))
        assert same(resumed.metrics()) == same(whole.metrics())
        assert not resumed.is_superseded()


def test_more_patience_goes_on(tmp_path):
    run(config(tmp_path / "r", **EARLY))
    longer = run(config(tmp_path / "r", **(EARLY | {"early_stop_patience": 50})))
    whole = run(config(tmp_path / "whole", **(EARLY | {"early_stop_patience": 50})))
    assert without_plan(longer.metrics())[11:] == without_plan(whole.metrics())[11:]
    assert longer.metrics()[-1]["step"] == 15


def test_patience_needs_evaluations(tmp_path):
    with pytest.raises(ValueError, match="early_stop_patience without evaluations: set eval_every"):
        config(tmp_path / "r", eval_every=0, early_stop_patience=1)
    rows = run(config(tmp_path / "r", dataset_builder=WordsBuilder(num_test=0), early_stop_patience=1)).metrics()
    assert len(rows) == 15


def test_mlflow_holds_the_points_of_an_extended_run_once(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    changes = {"mirror": True, "tracking_uri": uri}
    run(config(tmp_path / "r", max_steps=5, **changes))
    extended = run(config(tmp_path / "r", max_steps=9, **changes))
    mirrored = extended.mirror()
    assert mirrored
    client = open_store(uri)
    for key in ("train_mean_nll", "test/nll", "progress", "learning_rate"):
        points = sorted((p.step, p.timestamp, p.value) for p in client.get_metric_history(mirrored["run_id"], key))
        assert points == [(row["step"], row["ts"], row[key]) for row in extended.metrics() if key in row]
    assert client.get_run(mirrored["run_id"]).info.status == "FINISHED"
