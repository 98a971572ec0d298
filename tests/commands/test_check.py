from click.testing import CliRunner

from harness.__main__ import main
from tests.tracking.conftest import client as client
from tests.tracking.conftest import database as database
from tests.tracking.conftest import end_attempt, mirrored, row, start_run
from tests.tracking.conftest import uri as uri


def test_check_says_what_differs_and_how_to_mend_it(tmp_path, uri, client):
    run_dir = start_run(tmp_path / "runs" / "a")
    run_dir.append_metrics(row(0, 4.0))
    end_attempt(run_dir, 1)

    def harness(*args):
        return CliRunner().invoke(main, [*args, str(tmp_path / "runs")])

    result = CliRunner().invoke(main, ["check", str(run_dir), "--to", uri])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{run_dir}: not in MLflow at {uri}",
        f"  to mend it: python -m harness sync {run_dir} --to {uri}",
    ]
    assert CliRunner().invoke(main, ["sync", str(run_dir), "--to", uri]).exit_code == 0
    run_id = mirrored(run_dir)["run_id"]
    result = harness("check")
    assert (result.exit_code, result.stdout) == (0, f"{run_dir}: equal (1 points, run {run_id} at {uri})\n")

    client.log_metric(run_id, "train_mean_nll", 1.0, step=3)
    result = harness("check")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{run_dir}: not equal (1 points, run {run_id} at {uri})",
        "  points only in MLflow: 1 (train_mean_nll at step 3)",
        f"  to mend it: python -m harness sync --rebuild {run_dir}",
    ]
    result = harness("sync", "--rebuild")
    new_id = mirrored(run_dir)["run_id"]
    assert result.stdout == f"{run_dir}: 1 points sent to run {new_id} at {uri}, in the place of run {run_id}\n"
    assert harness("check").exit_code == 0
    assert "0 points sent" in harness("sync", "--rebuild").stdout
    assert "; there was nothing to rebuild\n" in harness("sync", "--rebuild").stdout


def test_a_store_that_cannot_be_reached_is_a_mistake(tmp_path):
    run_dir = start_run(tmp_path / "a")
    result = CliRunner().invoke(main, ["check", str(run_dir), "--to", "http://bob:s3cret@127.0.0.1:9"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: MLflow at http://127.0.0.1:9 cannot be reached (ConnectionError): is the server up?\n"
    )
