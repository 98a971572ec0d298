import shutil

from harness.run_dir import RunDir
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_store import Destination, absolute_uri, artifact_location, embedded_uri
from tests.tracking.conftest import config, mirror_to, row, start_run


def chosen(tracking_uri: str | None, given: str | None = None) -> str | None:
    return Destination.of({"config": config(tracking_uri=tracking_uri)}, given).tracking_uri


def test_the_given_uri_goes_before_the_configs_before_the_environments(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment")
    assert chosen("http://config", given="http://given") == "http://given"
    assert chosen("http://config") == "http://config"
    assert chosen(None) == "http://environment"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert chosen(None) is None


def test_user_info_that_a_file_lost_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://bob:s3cret@host")
    assert chosen("http://host") == "http://bob:s3cret@host"
    assert chosen("http://other") == "http://other"


def test_names_come_from_the_config():
    document = {"config": config(run_name="named", tags={"a": "b"}, note="n", experiment="e")}
    assert Destination.of(document, "http://h") == Destination("http://h", "e", "named", {"a": "b"}, "n")
    assert Destination.of({"config": config(log_path="runs/x-1/")}).run_name == "x-1"


def test_the_embedded_store_is_absolute_and_quotes_its_path(tmp_path):
    assert embedded_uri(tmp_path) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert embedded_uri(tmp_path / "50% of?") == f"sqlite:///{tmp_path}/50%25 of%3F/mlruns/mlflow.db"
    assert absolute_uri("sqlite:///my.db", tmp_path) == f"sqlite:///{tmp_path}/my.db"
    assert absolute_uri("http://host/x", tmp_path) == "http://host/x"
    assert artifact_location(embedded_uri(tmp_path)) == (tmp_path / "mlruns" / "artifacts").as_uri()
    assert artifact_location("http://host") is None


def test_nobody_chose_a_store(tmp_path, database, monkeypatch):
    """The one that the run was mirrored to, wherever the command is run; another embedded one once that is gone."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stores = {}
    for name in ("first ?%", "second"):
        (tmp_path / name / "mlruns").mkdir(parents=True)
        shutil.copy(database, tmp_path / name / "mlruns")
        stores[name] = embedded_uri(tmp_path / name)
    run_dir = start_run(tmp_path / "run")
    run_dir.append_metrics(row(0, 4.0))

    monkeypatch.chdir(tmp_path / "first ?%")
    first = sync(run_dir)
    assert first.tracking_uri == stores["first ?%"]
    assert {
        p.name for p in (tmp_path / "first ?%" / "mlruns" / "artifacts" / first.run_id / "artifacts").iterdir()
    } == {
        "attempts.jsonl",
        "config.json",
        "metrics.jsonl",
        "nll.png",
    }

    monkeypatch.chdir(tmp_path / "second")
    live = mirror_to(run_dir, "")
    assert (live.send(), live.tracking_uri, live.run_id) == (0, first.tracking_uri, first.run_id)
    assert sync(run_dir) == first.__class__(0, first.run_id, first.tracking_uri)

    shutil.rmtree(tmp_path / "first ?%")
    moved = RunDir(run_dir.path.rename(tmp_path / "second" / "run"))
    assert sync(moved).tracking_uri == stores["second"]


def test_the_working_directory_counts_when_the_mirror_is_made(tmp_path, uri, monkeypatch):
    run_dir = start_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    mirror = mirror_to(run_dir, "sqlite:///mlruns/mlflow.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mirror.send()
    assert mirror.tracking_uri == uri
