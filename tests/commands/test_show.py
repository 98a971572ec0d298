from click.testing import CliRunner

from harness.__main__ import main
from tests.commands.test_main import HEAVY, run_harness
from tests.tracking.conftest import end_attempt, row, start_run


def test_one_run(tmp_path):
    run = start_run(tmp_path / "r")
    run.append_metrics(row(0, 4.0))
    end_attempt(run, 1)
    done, imported = run_harness("show", run)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{run}\n  state       FINISHED\n")
    assert not imported & HEAVY


def test_no_run(tmp_path):
    result = CliRunner().invoke(main, ["show", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {tmp_path}: no config.json: not a run directory\n"
