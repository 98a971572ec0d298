import pytest
from click.testing import CliRunner

from harness.__main__ import main
from harness.listing import COLUMNS
from tests.commands.test_main import HEAVY, run_harness
from tests.compare.made_runs import last_row, make_run, train_row


@pytest.fixture
def runs(tmp_path, monkeypatch):
    for name, nll in (("a", 3.0), ("b", 2.0)):
        make_run(tmp_path / "runs" / name, [train_row(0, 4.0, 4.5), last_row(1, nll)], tags={"name": name})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def ls(*args):
    return CliRunner().invoke(main, ["ls", *args])


def names(result):
    assert (result.exit_code, result.stderr) == (0, "")
    head, *lines = result.stdout.splitlines()
    assert head == "\t".join(COLUMNS)
    return [line.split("\t")[0] for line in lines]


def test_the_runs_of_this_directory_or_of_others(runs):
    assert names(ls()) == ["runs/a", "runs/b"]
    assert names(ls("runs/b")) == ["runs/b"]
    assert names(ls("--sort", "best")) == ["runs/b", "runs/a"]
    assert names(ls("--sort", "-best")) == ["runs/a", "runs/b"]
    assert names(ls("--filter", "best<2.5", "--filter", "state=FINISHED")) == ["runs/b"]
    assert names(ls("--filter", "best<1", "--sort", "best")) == []


def test_nothing_heavy_is_loaded_and_nothing_is_changed(runs):
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    done, imported = run_harness("ls", runs)
    assert (done.returncode, done.stderr) == (0, "")
    assert not imported & HEAVY
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


def test_a_damaged_run_is_listed_and_told(runs):
    (runs / "a" / "metrics.jsonl").write_text("nonsense\n{}\n")
    result = ls()
    assert result.exit_code == 0
    assert [line.split("\t")[:2] for line in result.stdout.splitlines()[1:]] == [
        ["runs/a", "DAMAGED"], ["runs/b", "FINISHED"],
    ]  # fmt: skip
    assert result.stderr.startswith(f"damaged: {runs}/a/metrics.jsonl:1: not a JSON row")
    assert names(ls("--filter", "state=FINISHED")) == ["runs/b"]


def test_mistakes_are_one_line_and_exit_2(runs):
    (runs.parent / "empty").mkdir()
    columns = f"(columns: {', '.join(COLUMNS)})"
    for args, error in [
        (["nope"], "nope: no such run directory"),
        (["empty"], "empty: no run in it (a run directory holds config.json and metrics.jsonl)"),
        (
            ["--sort", "bst"],
            f"--sort bst: no column, and no field of these runs' configs; did you mean best? {columns}",
        ),
        (
            ["--filter", "lerning_rate=1"],
            "--filter lerning_rate: no column, and no field of these runs' configs; did you mean learning_rate? "
            + columns,
        ),
    ]:
        result = ls(*args)
        assert (result.exit_code, result.stderr, result.stdout) == (2, f"error: {error}\n", "")


def test_where_nothing_was_trained_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ls().stderr == "error: runs: no such run directory\n"
