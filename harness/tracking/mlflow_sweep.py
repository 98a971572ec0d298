"""The MLflow run of a sweep, brought up to date."""

from pathlib import Path

from harness.run_dir import RunDir
from harness.sweep_record import SweepRecord, read_record
from harness.tracking import mlflow_run, mlflow_store
from harness.tracking.mlflow_mirror import destination, locate
from harness.tracking.mlflow_parents import VALUES, sweep_run, sweep_runs, sweep_tags
from harness.tracking.mlflow_store import one_line_errors


def sync_sweep(root: Path, tracking_uri: str | None = None) -> str | None:
    """Set tags and status of the MLflow run of the sweep in ``root``; make it where it is missing.

    Args:
        tracking_uri: As for ``sync``, of the sweep's runs.

    Returns:
        The id of the MLflow run; None where none of the sweep's runs is in MLflow.

    Raises:
        TrackingError: where MLflow cannot be reached or written.
        RunDirError: where the files cannot be read.
    """
    record = read_record(root)
    runs = [run for name in record.runs if (run := RunDir(root / name)).exists()] if record else []
    if record is None or not runs:
        return None
    uri, _ = locate(runs[0], destination(runs[0], tracking_uri), Path.cwd())
    with one_line_errors(uri):
        client = mlflow_store.open_store(uri)
        mirrored = (mlflow_run.find_run(client, run, (run.mirror() or {}).get("run_id"))[0] for run in runs)
        child = next((run for run in mirrored if run is not None), None)
        if child is None:
            return None
        parent = sweep_run(client, root, record, child)
        wanted = sweep_tags(root, record)
        no_longer = {key: None for key in parent.data.tags if key.startswith(VALUES) and key not in wanted}
        mlflow_run.change_tags(client, parent.info.run_id, wanted | no_longer)
        if (state := _state(root, record)) == "RUNNING":
            client.update_run(parent.info.run_id, status=state)
        elif parent.info.status != state:
            client.set_terminated(parent.info.run_id, state)
    return parent.info.run_id


def close_stale_sweep(root: Path) -> bool:
    """:func:`sync_sweep` where the MLflow run says RUNNING and none of the sweep's runs is trained; whether it did.

    Raises:
        TrackingError, RunDirError: as :func:`sync_sweep`.
    """
    record = read_record(root)
    runs = [run for name in record.runs if (run := RunDir(root / name)).exists()] if record else []
    if record is None or not runs or _state(root, record) == "RUNNING":
        return False
    uri, _ = locate(runs[0], destination(runs[0]), Path.cwd())
    if mlflow_store.unless_gone(uri) is None:
        return False
    with one_line_errors(uri):
        found = sweep_runs(mlflow_store.open_store(uri), root, record)
    if not any(run.info.status == "RUNNING" for run in found):
        return False
    sync_sweep(root)
    return True


def _state(root: Path, record: SweepRecord) -> str:
    """RUNNING while one of the runs is; FINISHED once all are; else FAILED where one did, or KILLED."""
    states = {RunDir(root / name).state() for name in record.runs}
    if states == {"FINISHED"}:
        return "FINISHED"
    return next((state for state in ("RUNNING", "FAILED") if state in states), "KILLED")
