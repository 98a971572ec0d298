"""The artifacts of an MLflow run: the run directory's small files and the figure of its NLL."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.metric_keys import STEP, TRAIN_NLL, is_test_nll
from harness.plot import Curve, draw_nll
from harness.run_dir import (
    ATTEMPTS,
    CHECKPOINTS,
    CONFIG,
    EVAL_EXAMPLES,
    EXAMPLES,
    LATER_EVALUATIONS,
    METRICS,
    SAMPLES,
    RunDir,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

FIGURE = "nll.png"
FILES = (CONFIG, METRICS, CHECKPOINTS, EVAL_EXAMPLES, SAMPLES, LATER_EVALUATIONS, ATTEMPTS, EXAMPLES)


def upload(client: MlflowClient, run_id: str, run_dir: RunDir, uploaded: Mapping[str, str]) -> dict[str, str]:
    """Upload what changed; return what the run has now, for the next time: a digest by the artifact's name.

    The figure has the digest of the rows that it shows.

    Args:
        uploaded: What the last call returned.
    """
    there = {file.path for file in client.list_artifacts(run_id)}
    uploaded = {name: digest for name, digest in uploaded.items() if name in there}
    digests = {name: _digest(run_dir / name) for name in FILES if (run_dir / name).exists()}
    for name, digest in digests.items():
        if uploaded.get(name) != digest:
            client.log_artifact(run_id, str(run_dir / name))
    rows = digests.get(METRICS)
    if rows and uploaded.get(FIGURE) != rows and (curves := nll_curves(run_dir)):
        with tempfile.TemporaryDirectory() as folder:
            figure = Path(folder, FIGURE)
            draw_nll(figure, curves, title="train (thin) and test (dots)")
            client.log_artifact(run_id, str(figure))
    return digests | ({FIGURE: rows} if rows else {})


def nll_curves(run_dir: RunDir) -> list[Curve]:
    """A curve for each test set, the first with the train NLL; none where nothing was measured yet."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in run_dir.iter_metrics():
        for key, value in row.items():
            if (key == TRAIN_NLL or is_test_nll(key)) and isinstance(value, (int, float)):
                steps, nlls = found.setdefault(key, ([], []))
                steps.append(row[STEP])
                nlls.append(value)
    train = found.pop(TRAIN_NLL, ([], []))
    if not found:
        return [Curve(TRAIN_NLL, train, ([], []))] if train[0] else []
    first = next(iter(found))
    return [Curve(key, train if key == first else ([], []), test) for key, test in found.items()]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
