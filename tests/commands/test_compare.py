import pytest
from click.testing import CliRunner

from harness.__main__ import main
from tests.commands.test_main import run_harness
from tests.compare.made_runs import last_row, make_run, train_row


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs in the folder ``runs`` of the current directory."""
    make_run(tmp_path / "runs" / "a", [train_row(0, 4.0, 4.5), last_row(1, 3.0)])
    make_run(tmp_path / "runs" / "b", [train_row(0, 4.0, 4.5), last_row(1, 2.0)], learning_rate=1e-3)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def compare(*args):
    return CliRunner().invoke(main, ["compare", *args])


def test_it_compares_and_draws_and_changes_nothing_in_the_runs(runs, tmp_path):
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    done, imported = run_harness("compare", runs, "--out", tmp_path / "nll.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert "* best: b\n" in done.stdout
    assert "learning_rate" in done.stdout
    assert done.stdout.endswith(f"\nwrote {tmp_path / 'nll.png'}\n")
    assert (tmp_path / "nll.png").read_bytes().startswith(b"\x89PNG")
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before
    assert {"pandas", "matplotlib"} <= imported
    assert not imported & {"tinker", "torch", "transformers", "mlflow", "datasets", "peft"}


def test_without_out_nothing_is_drawn(runs):
    done, imported = run_harness("compare", runs / "a", runs / "b")
    assert done.returncode == 0
    assert "wrote" not in done.stdout
    assert "matplotlib" not in imported


def test_mistakes_are_one_line_and_exit_2(runs):
    for args, error in [
        (["runs", "nope"], "error: nope: no such run directory\n"),
        (
            ["runs", "--out", "x.csv"],
            "error: x.csv: a figure is a .png, .svg, .pdf file: end its name in one of these\n",
        ),
        (
            ["runs", "--on", "math"],
            'error: no run has a test set named "math": choose one with --on: "" (2 of 2 runs)\n',
        ),
    ]:
        result = compare(*args)
        assert (result.exit_code, result.stderr, result.stdout) == (2, error, "")


def test_no_run_named_is_a_usage_error(runs):
    result = compare()
    assert result.exit_code == 2
    assert "Missing argument 'RUN...'" in result.stderr
