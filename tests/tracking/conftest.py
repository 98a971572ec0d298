"""Run directories with hand-written rows, an SQLite store that is already migrated, and MLflow's own server."""

import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.run_dir import RunDir
from harness.tracking.mlflow_mirror import Mirror
from harness.tracking.mlflow_store import Destination, open_store

T0 = 1_790_000_000_000  # ts of step 0; each step takes a second


def row(step: int, nll: float, *, ts: int | None = None, **more: Any) -> dict[str, Any]:
    return {"step": step, "ts": T0 + 1000 * step if ts is None else ts, "train_mean_nll": nll} | more


def config(**changes: Any) -> dict[str, Any]:
    """A config as ``config_io.to_json`` writes it."""
    return {
        "type": "harness.supervised.train:Config",
        "model_name": "tiny/model",
        "log_path": "runs/first",
        "dataset_builder": {
            "type": "my.data:Builder",
            "common_config": {
                "type": "harness.supervised.types:Common",
                "renderer_name": "role_colon",
                "batch_size": 8,
            },
        },
        "backend": {"type": "harness.backends.local.backend:LocalBackend"},
        "learning_rate": 2e-4,
        "max_steps": None,
        "experiment": "exp",
        "run_name": None,
        "tags": {},
        "note": "",
        "tracking_uri": None,
        "mirror": True,
    } | changes


def start_run(path: Path, *, document: dict[str, Any] | None = None, **changes: Any) -> RunDir:
    """A run directory as it is once its first attempt has begun.

    Args:
        document: What else config.json says beside the config, which ``changes`` change.
    """
    run_dir = RunDir(path)
    path.mkdir(parents=True)
    run_dir.write_config(
        {
            "run_id": uuid.uuid4().hex,
            "recipe": "sl_basic",
            "started": T0 - 500,
            "argv": ["train.py", "learning_rate=2e-4"],
            "config": config(**changes),
            "git_commit": "abc123",
            "host": "node7",
            "user": "ann",
        }
        | (document or {})
    )
    start_attempt(run_dir, 1)
    return run_dir


def start_attempt(run_dir: RunDir, attempt: int) -> None:
    run_dir.append_attempt({"attempt": attempt, "event": "start", "ts": T0 + attempt, "next_step": 0})


def end_attempt(run_dir: RunDir, attempt: int, state: str = "FINISHED", **more: Any) -> None:
    run_dir.append_attempt(
        {"attempt": attempt, "event": "end", "ts": T0 + 60_000, "state": state, "verified_rows": 0, "exact": None}
        | more
    )


def history(client: Any, run_id: str, key: str) -> list[tuple[int, int, float]]:
    """Every point of a key in MLflow, as (step, ts, value)."""
    return sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run_id, key))


def mirrored(run_dir: RunDir) -> dict[str, Any]:
    """mirror.json, which is there."""
    document = run_dir.mirror()
    assert document is not None
    return document


def mirror_to(run_dir: RunDir, uri: str) -> Mirror:
    return Mirror(run_dir, Destination.of(run_dir.config(), uri))


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: migrating one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(database: Path, tmp_path: Path) -> str:
    """A store of this test's own."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(database, tmp_path / "mlruns" / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlruns/mlflow.db"


@pytest.fixture
def client(uri: str) -> Any:
    return open_store(uri)


@pytest.fixture(scope="session")
def serve(database: Path) -> Iterator[Callable[[int], Any]]:
    """MLflow's own server in this process: ``serve(port)`` gives its werkzeug server; port 0 is any free one."""
    with pytest.MonkeyPatch.context() as patch:
        folder = database.parent
        shutil.copy(database, folder / "served.db")
        patch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{folder}/served.db")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
        patch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(folder / "artifacts"))
        patch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
        from mlflow.server import app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it logs every request
        servers = []

        def start(port: int) -> Any:
            server = make_server("127.0.0.1", port, app, threaded=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            servers.append(server)
            return server

        yield start
        for server in servers:
            server.shutdown()
            server.server_close()
