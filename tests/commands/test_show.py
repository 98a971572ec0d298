import pytest
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


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("config.json", '{"run_id": "x", "config": 5}', "not as the harness writes it (AttributeError: "),
        ("config.json", '{"run_id": "x"}', "not as the harness writes it (KeyError: 'config')"),
        ("attempts.jsonl", '{"attempt": "a", "event": "start", "ts": "then"}\n', "not as the harness writes it (T"),
        ("metrics.jsonl", '{"step": 0, "num_tokens": "x"}\n', "not as the harness writes it (TypeError: "),
    ],
)
def test_a_damaged_run_is_one_line(tmp_path, file, content, error):
    run = start_run(tmp_path / "r")
    (run / file).write_text(content)
    result = CliRunner().invoke(main, ["show", str(run)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {run}: {error}") and len(result.stderr.splitlines()) == 1


def test_nulls_in_attempts_are_as_good_as_nothing(tmp_path):
    run = start_run(tmp_path / "r")
    run.append_attempt({"attempt": 1, "event": "end", "ts": None, "state": None})
    run.append_attempt({"attempt": 2, "event": "start", "ts": 1_790_000_000_000, "next_step": None, "changed": None})
    run.append_attempt({"attempt": 2, "event": "end"})
    result = CliRunner().invoke(main, ["show", str(run)])
    assert "2  2026-09-21 14:13 UTC, from the start, KILLED\n" in result.stdout


def test_no_run(tmp_path):
    result = CliRunner().invoke(main, ["show", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {tmp_path}: no config.json: not a run directory\n"
