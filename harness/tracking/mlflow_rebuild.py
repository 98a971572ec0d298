"""A clean MLflow run where the one there is holds what cannot be taken from it."""

from harness.exceptions import TrackingError
from harness.run_dir import RunDir
from harness.tracking.mlflow_check import check
from harness.tracking.mlflow_mirror import Mirror, SyncResult, sync


def rebuild(run_dir: RunDir, tracking_uri: str | None = None) -> tuple[SyncResult, str | None]:
    """Compare all. Where MLflow holds what the files do not, or the MLflow run was deleted, make another, which and
    the old one name each other; else send what is missing.

    Args:
        tracking_uri: As for ``sync``.

    Returns:
        As ``sync``, and the MLflow run in whose place another was made; None where there was nothing to rebuild.

    Raises:
        TrackingError: where MLflow cannot be reached or written, or the run is still being trained.
        RunDirError: where ``run_dir`` is none, or its files cannot be read or written.
    """
    if run_dir.is_locked():  # its mirror would go on with the old one
        raise TrackingError(f"{run_dir}: still being trained: rebuild its MLflow run once that has ended")
    found = check(run_dir, tracking_uri)
    if found.needs_rebuild:
        return sync(run_dir, tracking_uri, Mirror.rebuild), found.run_id
    return sync(run_dir, tracking_uri, Mirror.send if found.sync_sends else Mirror.send_all), None
