import shutil

from harness.config_io import to_json
from harness.run_details import details
from harness.run_dir import RunDir
from harness.run_tags import change_tags
from tests.prunable import prunable, record
from tests.supervised.runs import config
from tests.tracking.conftest import T0, end_attempt, row, start_run


def parts(text):
    """The lines below each heading, without their indent."""
    found = {}
    for part in text.split("\n\n"):
        heading, *lines = part.splitlines()
        found[heading] = [line.removeprefix("  ") for line in lines]
    return found


def test_a_run_and_all_that_is_said_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = prunable(tmp_path / "r", {0: 5.0, 2: 4.0, 4: 3.0, 6: 3.5}, tags={"team": "x"}, note="first try")
    change_tags(run, {"team": None, "kind": "demo"}, 1)
    run.append_checkpoint(record(2, deleted=True))
    shutil.rmtree(run / "checkpoints" / "000004")
    run.append_checkpoint(record(5, state_path="tinker://a/b"))
    run.append_checkpoint(record(9, superseded=True))
    said = parts(details(run))

    identity = dict(line.split(maxsplit=1) for line in said["r"] if not line.startswith(("run id", "git commit")))
    assert identity["state"] == "FINISHED"
    assert identity["started"] == "2026-09-21 14:13:19 UTC by ann on node7"
    assert (identity["tags"], identity["note"]) == ("kind=demo", "first try")
    assert (identity["MLflow"], identity["exactness"]) == ("not there", "uninterrupted")
    assert f"run id      {run.config()['run_id']}" in said["r"]
    assert "git commit  abc123" in said["r"]

    assert said["Data"] == ["train  Builder    beef", "test   Builder    feed"]
    assert said["Metrics"] == [
        "6 updates, 0 tokens, 0 of them with loss, 0 s",
        "train_mean_nll  last 5.0000 at step 5",
        "test/nll        last 3.5000 at step 6  lowest 3.0000 at step 4",
    ]
    assert said["Attempts"] == ["1  2026-09-21 14:13 UTC, from the start, FINISHED"]
    size = sum(path.stat().st_size for path in (run / "checkpoints" / "000006").iterdir())
    assert said["Checkpoints"] == [
        "000002  test NLL 4.0000  deleted             checkpoints/000002",
        "000004  test NLL 3.0000  gone        0 B     checkpoints/000004",
        "000005                   kept                tinker://a/b",
        f"000006  test NLL 3.5000  final       {size / 1000:.1f} kB  checkpoints/000006",
        "000009                   superseded          checkpoints/000009",
    ]
    names = [line.split()[0] for line in said["Files"]]
    assert names == [
        "attempts.jsonl", "checkpoints.jsonl", "config.json", "metrics.jsonl", "tags.jsonl", "checkpoints/",
    ]  # fmt: skip
    assert said["To go on"] == [
        "fork     python -m harness fork r --at best log_path=NEW",
        "rerun    python -m harness rerun r log_path=NEW KEY=VALUE",
        "compare  python -m harness compare r OTHER",
        "mirror   python -m harness sync r",
    ]


def test_what_was_chosen_stands_before_what_nobody_chose(tmp_path):
    chosen = to_json(config(tmp_path / "r", tags={"team": "x"}))
    run = start_run(tmp_path / "r")
    document = run.config() | {"config": chosen}
    (run / "config.json").unlink()
    run.write_config(document)
    lines = parts(details(run))["Config"]
    first = next(i for i, line in enumerate(lines) if line.startswith("by default: "))
    values = dict(line.split(maxsplit=1) for line in lines[:first])
    assert values["learning_rate"] == "0.1" and values["backend"] == "tests.fakes:FakeBackend"
    assert values["dataset_builder.num_train"] == "23"  # tests.fakes is not imported to ask for its defaults
    assert not values.keys() & {"lora_rank", "adam_beta1", "tags.team"}
    by_default = " ".join(lines[first:]).removeprefix("by default: ").split(", ")
    assert {"lora_rank=32", "adam_beta1=0.9", "max_steps=None"} <= set(by_default)
    assert not {"learning_rate=0.1", "num_epochs=3"} & set(by_default)


def test_parts_of_the_harness_have_defaults_of_their_own(tmp_path):
    backend = {"type": "harness.backends.local.backend:LocalBackend", "dtype": "float32", "lora_alpha": 32}
    builder = {"type": "harness.supervised.data:FromConversationFileBuilder", "file_path": "a.jsonl", "test_size": 0}
    gone = {"type": "harness.no_such_module:Thing", "x": 1}
    run = start_run(tmp_path / "r", backend=backend, dataset_builder=builder, evaluator_builders=gone)
    text = " ".join(parts(details(run))["Config"])
    given, _, by_default = text.partition("by default: ")
    assert "backend.dtype " in given and "backend.lora_alpha=32" in by_default
    assert "dataset_builder.file_path " in given and "dataset_builder.test_size=0" in by_default
    assert "evaluator_builders.x " in given


def test_a_fork_where_it_is_mirrored_and_what_resumes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parent = {"run_id": "p1", "path": "/runs/parent", "step": 2, "at": "2"}
    run = start_run(tmp_path / "a b", document={"parent": parent})
    run.write_mirror({"tracking_uri": "http://host:5000/", "experiment_id": "3", "run_id": "m1"})
    run.append_metrics(row(0, 4.0))
    run.append_attempt({"attempt": 1, "event": "end", "ts": T0, "state": "FAILED", "error": "OSError: full",
                        "verified_rows": 0, "exact": None})  # fmt: skip
    said = parts(details(run))
    assert "forked from  /runs/parent at step 2 (run id p1)" in said["a b"]
    assert "MLflow       run m1 at http://host:5000/#/experiments/3/runs/m1" in said["a b"]
    assert said["Attempts"][-1] == "1  failed: OSError: full"
    assert said["To go on"][0] == "resume   python train.py learning_rate=2e-4 'log_path=a b'"
    assert not any(line.startswith(("fork", "mirror")) for line in said["To go on"])


def resumed_by(tmp_path, argv, module=None):
    run = start_run(tmp_path / "r", document={"argv": argv, "module": module})
    text = parts(details(run))["To go on"][0]
    shutil.rmtree(run.path)
    return text.removeprefix("resume").strip()


def test_the_command_is_named_as_it_would_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = f"log_path={tmp_path}/r"
    for argv, module, expected in [
        ([f"{tmp_path}/recipes/sl.py", place], None, f"python recipes/sl.py {place}"),
        ([f"{tmp_path}/recipes/sl.py", place], "recipes.sl", f"python -m recipes.sl {place}"),
        (["/elsewhere/sl.py", "--log-path", "r"], None, "python /elsewhere/sl.py --log-path r"),
        (["/lib/harness/__main__.py", "rerun", "x"], "harness", "python -m harness rerun x log_path=r"),
        (["/venv/bin/harness", "fork", "x", "log_path=r"], None, "/venv/bin/harness fork x log_path=r"),
    ]:
        assert resumed_by(tmp_path, argv, module) == expected


def test_the_last_attempt_says_how_it_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = start_run(tmp_path / "r")
    run.append_attempt({"attempt": 2, "event": "start", "ts": T0, "argv": ["/x/sl.py", "log_path=r"], "module": "x.sl"})
    assert parts(details(run))["To go on"][0] == "resume  python -m x.sl log_path=r"


def test_the_lowest_of_a_fork_is_its_own(tmp_path):
    run = start_run(tmp_path / "r", document={"parent": {"run_id": "p", "path": "/p", "step": 2, "at": "2"}})
    for step, nll in enumerate([1.0, 2.0, 4.0, 3.0, 3.5]):
        run.append_metrics(row(step, 5.0) | {"test/nll": nll, "test/b/nll": nll + 1})
    assert parts(details(run))["Metrics"][1:] == [
        "train_mean_nll  last 5.0000 at step 4",
        "test/nll        last 3.5000 at step 4  lowest 3.0000 at step 3",
        "test/b/nll      last 4.5000 at step 4  lowest 4.0000 at step 3",
    ]


def test_a_run_that_did_nothing_yet(tmp_path):
    run = start_run(tmp_path / "r", document={"argv": []})
    (run / "attempts.jsonl").unlink()
    assert set(parts(details(RunDir(run.path)))) >= {str(run), "Config", "Files", "To go on"}
    end_attempt(run, 1)
    assert "FINISHED" in details(run)
