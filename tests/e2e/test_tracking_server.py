"""A team's server, as compose.yaml starts it: a run outlives its crash, and no password is left anywhere."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from harness.run_dir import RunDir
from tests.e2e.conftest import Workplace
from tests.e2e.servers import HOSTNAME, TrackingServer, tracking_server

RUN = "runs/tiny"
NUM_STEPS = 400  # the mirror sends once a second: it must send, fail, and find the server again before the last
TRAINING = (
    "recipes.sl_basic", f"log_path={RUN}", f"max_steps={NUM_STEPS}", "num_epochs=100", "eval_every=100",
    "save_every=100", "dataset_builder.test_size=8", "lora_rank=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[TrackingServer]:
    with tracking_server() as server:
        for name in ("trainer", "colleague"):
            server.add_user(name)
        yield server


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, offline_world: Path, server: TrackingServer) -> Workplace:
    """A machine that trains: it has the harness, no key to the S3 store, and no package that only the server needs."""
    workplace = Workplace(tmp_path_factory.mktemp("trainer"))
    absent = tmp_path_factory.mktemp("absent")
    for package in ("flask_wtf", "psycopg2"):
        (absent / f"{package}.py").write_text(f"raise ImportError('{package} is for the server alone')\n")
    workplace.env |= {
        "PYTHONPATH": os.pathsep.join([str(absent), str(offline_world / "packages"), workplace.env["PYTHONPATH"]]),
        "XDG_CACHE_HOME": str(offline_world / "cache"),
        "MLFLOW_TRACKING_URI": server.uri,
        "MLFLOW_TRACKING_USERNAME": "trainer",
        "MLFLOW_TRACKING_PASSWORD": server.password,
    }
    return workplace


def wait_until(condition: Callable[[], object], process, log: Path) -> None:
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def trained(server: TrackingServer, trainer: Workplace) -> RunDir:
    """A run whose server was killed in the middle of it, and started again before its end."""
    log = trainer.folder / "started.log"
    run_dir = RunDir(trainer.folder / RUN)
    with_password = server.uri.replace("://", f"://trainer:{server.password}@")  # the worst place for it
    process = trainer.start(*TRAINING, f"tracking_uri={with_password}")
    try:
        wait_until(lambda: (run_dir.mirror() or {}).get("sent_step"), process, log)
        server.mlflow.kill()
        wait_until(lambda: "training goes on" in log.read_text(), process, log)
        process.send_signal(signal.SIGSTOP)
        server.mlflow.start()
        process.send_signal(signal.SIGCONT)
        assert process.wait(timeout=120) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
    return run_dir


def expected_points(run_dir: RunDir) -> dict[str, list[tuple[int, int, float]]]:
    points: dict[str, list[tuple[int, int, float]]] = {}
    for row in run_dir.metrics():
        for key, value in row.items():
            if key not in ("step", "ts") and isinstance(value, (int, float)):
                points.setdefault(key, []).append((row["step"], row["ts"], value))
    return points


def assert_equal(run_dir: RunDir, server: TrackingServer) -> None:
    """The server and its stores hold what the files do: every point once, params, artifacts, status."""
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    run_id = (run_dir.mirror() or {})["run_id"]
    run = client.get_run(run_id)
    assert (run.info.status, run.data.params["lora_rank"]) == ("FINISHED", "4")
    expected = expected_points(run_dir)
    assert len(expected["train_mean_nll"]) == NUM_STEPS
    for key, points in expected.items():
        history = client.get_metric_history(run_id, key)
        assert sorted((point.step, point.timestamp, point.value) for point in history) == points, key

    folder = f"artifacts/{run.info.experiment_id}/{run_id}/artifacts"
    for name in ("config.json", "metrics.jsonl", "checkpoints.jsonl", "eval_examples.jsonl"):
        assert server.stored(f"{folder}/{name}") == (run_dir / name).read_bytes(), name


def test_everything_is_there_after_the_server_was_killed_and_came_back(trained, server, trainer, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", server.password)
    assert trained.state() == "FINISHED"
    assert_equal(trained, server)
    assert "0 points sent" in trainer.run("harness", "sync", RUN).stdout
    assert_equal(trained, server)
    assert f"{RUN}: equal (" in trainer.run("harness", "check", RUN).stdout


def test_the_password_is_in_no_file_and_not_in_what_was_said(trained, server, trainer):
    secret = server.password.encode()
    files = [path for path in trainer.folder.rglob("*") if path.is_file()]
    assert {"started.log", "logs.log", "config.json", "mirror.json"} <= {path.name for path in files}
    for path in files:
        assert secret not in path.read_bytes(), path
    assert server.password not in server.run_documented("pg_dump")
    assert secret not in server.mlflow.log.read_bytes()


def test_a_wrong_password_is_one_line(trained, server, trainer, monkeypatch):
    monkeypatch.setitem(trainer.env, "MLFLOW_TRACKING_PASSWORD", "not-the-password")
    assert trainer.run("harness", "sync", RUN, code=2).stderr == (
        f"error: MLflow at {server.uri} refuses the user or the password: "
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD\n"
    )


def test_who_may_do_what(trained, server):
    admin, colleague = ("admin", server.password), ("colleague", server.password)

    def post(what: str, who: tuple[str, str] | None, version: str = "2.0", **fields: str) -> int:
        return requests.post(f"{server.uri}/api/{version}/mlflow/{what}", json=fields, auth=who).status_code

    mirrored = trained.mirror()
    experiment_id, run_id = mirrored["experiment_id"], mirrored["run_id"]
    assert post("runs/create", None, experiment_id=experiment_id) == 401
    assert post("runs/create", colleague, experiment_id=experiment_id) == 200
    assert post("runs/delete", colleague, run_id=run_id) == 403
    assert post("users/create", colleague, username="another", password=server.password) == 403
    denied = {
        "username": "colleague",
        "resource_type": "experiment",
        "resource_id": experiment_id,
        "permission": "DENY",
    }
    assert post("users/permissions/grant", colleague, "3.0", **denied) == 403
    assert post("users/permissions/grant", admin, "3.0", **denied) == 200
    assert post("runs/create", colleague, experiment_id=experiment_id) == 403


def test_it_answers_to_its_names_alone(server):
    def status(**headers: str) -> int:
        search, everything = f"{server.uri}/api/2.0/mlflow/experiments/search", {"max_results": 1}
        return requests.post(search, json=everything, headers=headers, auth=("admin", server.password)).status_code

    assert [status(Host=host) for host in ("localhost:5000", "mlflow:5000", HOSTNAME)] == [200, 200, 200]
    assert status(Host="example.org") == 403
    assert status(Host=HOSTNAME, Origin=f"https://{HOSTNAME}") == 200  # a page of its own, as a browser asks
    assert status(Host=HOSTNAME, Origin="https://example.org") == 403


def test_the_documented_backup_restores(trained, server):
    """pg_dump and psql with the options of docs/tracking-server.md, into a second database."""
    backup = server.run_documented("pg_dump")
    server.run_documented("psql", database="restored", text=backup)
    restored = tables(server.run_documented("pg_dump", database="restored"))
    assert any(table.startswith("COPY public.metrics ") and "train_mean_nll" in table for table in restored)
    assert restored == tables(backup)


def tables(dump: str) -> list[str]:
    """The rows of each table; PostgreSQL rewords what it says around them."""
    return re.findall(r"^COPY .*?^\\\.$", dump, re.MULTILINE | re.DOTALL)
