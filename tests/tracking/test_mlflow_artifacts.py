from pathlib import Path

import pytest

from harness.run_dir import RunDir
from harness.tracking.mlflow_artifacts import nll_curves
from harness.tracking.mlflow_mirror import sync
from tests.tracking.conftest import T0, end_attempt, mirrored, row, start_run


@pytest.fixture
def run_dir(tmp_path) -> RunDir:
    run_dir = start_run(tmp_path / "run")
    run_dir.append_metrics(row(0, 4.0) | {"test/nll": 3.9})
    run_dir.append_metrics(row(1, 3.5))
    end_attempt(run_dir, 1)
    return run_dir


def artifacts(client, run_id: str) -> dict[str, Path]:
    root = client.get_run(run_id).info.artifact_uri.removeprefix("file://")
    return {file.path: Path(root, file.path) for file in client.list_artifacts(run_id)}


def test_the_files_and_the_figure_are_artifacts(run_dir, uri, client):
    run_dir.write_examples("⟦yes⟧")
    there = artifacts(client, sync(run_dir, uri).run_id)
    assert set(there) == {"attempts.jsonl", "config.json", "examples.txt", "metrics.jsonl", "nll.png"}
    assert there["examples.txt"].read_text() == "⟦yes⟧"
    assert there["metrics.jsonl"].read_bytes() == (run_dir / "metrics.jsonl").read_bytes()
    assert there["nll.png"].read_bytes().startswith(b"\x89PNG")


def test_only_what_changed_is_uploaded_again(run_dir, uri, client):
    run_id = sync(run_dir, uri).run_id
    uploaded = mirrored(run_dir)["artifacts"]
    for file in artifacts(client, run_id).values():
        file.write_text("as it was uploaded")
    sync(run_dir)
    assert {file.read_text() for file in artifacts(client, run_id).values()} == {"as it was uploaded"}
    assert mirrored(run_dir)["artifacts"] == uploaded

    run_dir.append_metrics(row(2, 3.0))
    sync(run_dir)
    stale = {name for name, file in artifacts(client, run_id).items() if b"as it was uploaded" in file.read_bytes()}
    assert stale == {"attempts.jsonl", "config.json"}


def test_another_store_gets_them_all(run_dir, uri, tmp_path, client, database):
    import shutil

    sync(run_dir, uri)
    (tmp_path / "other").mkdir()
    shutil.copy(database, tmp_path / "other" / "mlflow.db")
    sync(run_dir, f"sqlite:///{tmp_path}/other/mlflow.db")
    there = {path.name for path in (tmp_path / "other").rglob("artifacts/*/artifacts/*")}
    assert there == {"attempts.jsonl", "config.json", "metrics.jsonl", "nll.png"}


def test_the_curves_of_the_figure(tmp_path):
    run_dir = start_run(tmp_path / "run")
    assert nll_curves(run_dir) == []
    run_dir.append_metrics({"step": 0, "ts": T0})
    assert nll_curves(run_dir) == []
    run_dir.append_metrics(row(1, 4.0))
    (curve,) = nll_curves(run_dir)
    assert (curve.train, curve.test) == (([1], [4.0]), ([], []))
    run_dir.append_metrics(row(2, 3.0) | {"test/a/nll": 2.0, "test/b/nll": 1.0})
    first, second = nll_curves(run_dir)
    assert (first.name, first.train, first.test) == ("test/a/nll", ([1, 2], [4.0, 3.0]), ([2], [2.0]))
    assert (second.name, second.train, second.test) == ("test/b/nll", ([], []), ([2], [1.0]))


def test_a_run_without_numbers_has_no_figure(tmp_path, uri, client):
    assert set(artifacts(client, sync(start_run(tmp_path / "run"), uri).run_id)) == {"attempts.jsonl", "config.json"}
