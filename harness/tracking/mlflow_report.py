"""A page about several runs, as an artifact of a run of its own in MLflow."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from harness.config_io import redact
from harness.tracking import mlflow_store
from harness.tracking.mlflow_run import TAG_LENGTH, experiment_id

PAGE = "report.html"
COMPARES = "harness.compares"  # the names of the runs that the report is about; a run with this tag trained nothing
_NAME_LENGTH = 80


def log_report(page: str, runs: Sequence[str], experiment: str) -> str:
    """Log a page to the store that ``MLFLOW_TRACKING_URI`` names, else to the embedded one.

    Args:
        page: HTML that needs no network: MLflow shows it in a frame of its own.
        runs: The names of those that it is about.
        experiment: Made where it is missing.

    Returns:
        Where it is, in a line.

    Raises:
        TrackingError: for a store that cannot be reached or written.
    """
    uri = mlflow_store.uri_here()
    names = ", ".join(runs)
    with mlflow_store.one_line_errors(uri):
        client = mlflow_store.open_store(uri)
        run_id = client.create_run(
            experiment_id(client, experiment, uri, "--log NAME"),
            tags={COMPARES: names[:TAG_LENGTH]},
            run_name=textwrap.shorten(f"compare {names}", _NAME_LENGTH, placeholder=" …"),
        ).info.run_id
        try:
            client.log_text(run_id, page, PAGE)
        except BaseException:
            client.set_terminated(run_id, "FAILED")
            raise
        client.set_terminated(run_id)
    return f"logged {PAGE} to run {run_id} of experiment {experiment} at {redact(uri)}"
