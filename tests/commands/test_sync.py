import shutil

from click.testing import CliRunner

from harness.__main__ import main
from harness.run_dir import RunDir
from harness.tracking.mlflow_store import open_store
from tests.tracking.conftest import end_attempt, mirrored, row, start_run


def test_sync_takes_folders_prints_a_line_a_run_and_fails_for_those_that_fail(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    for name in ("a", "b"):
        run_dir = start_run(tmp_path / "runs" / name)
        run_dir.append_metrics(row(0, 4.0))
        end_attempt(run_dir, 1)

    result = CliRunner().invoke(main, ["sync", str(tmp_path / "runs"), "--to", uri])
    assert result.exit_code == 0, result.output
    ids = [mirrored(RunDir(tmp_path / "runs" / name))["run_id"] for name in ("a", "b")]
    assert result.stdout.splitlines() == [
        f"{tmp_path / 'runs' / name}: 1 points sent to run {run_id} at {uri}"
        for name, run_id in zip(("a", "b"), ids, strict=True)
    ]

    open_store(uri).delete_run(ids[0])
    result = CliRunner().invoke(main, ["sync", str(tmp_path / "runs")])
    assert result.exit_code == 2
    assert result.stdout == f"{tmp_path / 'runs' / 'b'}: 0 points sent to run {ids[1]} at {uri}\n"
    assert result.stderr.startswith(f"error: {tmp_path / 'runs' / 'a'}: its MLflow run {ids[0]} was deleted")
    assert len(result.stderr.splitlines()) == 1

    shutil.rmtree(tmp_path / "runs" / "a")
    assert CliRunner().invoke(main, ["sync", str(tmp_path / "runs" / "a")]).exit_code == 2
