"""Checkpoints of runs that were trained with a service: deleted there."""

import dataclasses

import pytest
from click.testing import CliRunner

from harness.__main__ import main
from harness.derive import make_fork
from harness.run_dir import RunDir
from tests.backends.test_tinker_service import environment as environment
from tests.backends.test_tinker_service import on
from tests.backends.test_tinker_service import server as server
from tests.scripted_server import scripted_server
from tests.supervised.runs import run as trained


@pytest.fixture
def run(server, tmp_path, monkeypatch) -> RunDir:
    """Checkpoints at 2, 3, 4 and 5, the final one with weights for sampling."""
    monkeypatch.chdir(tmp_path)
    return trained(on(server, "runs/a", keep="all"))


def prune(*args: str):
    return CliRunner().invoke(main, ["prune", *args])


def deleted(server) -> list[str]:
    return [route.partition("checkpoints/")[2] for route, _ in server.requests if route.startswith("DELETE")]


def usable(run: RunDir) -> list[int]:
    return [record.step for record in run.checkpoints() if record.is_usable]


def allow(server, *names: str) -> None:
    for name in names:
        server.fail(f"DELETE training_runs/checkpoints/{name}", (200, {}))


def test_it_is_listed_and_nobody_is_asked(server, run):
    num_asked = len(server.requests)
    done = prune("runs", "--keep", "best")
    lines = done.stdout.splitlines()
    assert (done.exit_code, lines[0]) == (0, "runs/a: keeps 000005 (best)")
    assert [line.rpartition("  ")[2] for line in lines[1:4]] == ["with the service"] * 3
    assert lines[4] == "3 to remove, 0 B: add --yes to do it"
    assert len(server.requests) == num_asked


def test_with_yes_it_goes_there(server, run):
    allow(server, "weights/000002", "weights/000003", "weights/000004")
    done = prune("runs", "--keep", "best,final", "--yes")
    assert (done.exit_code, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "removed 3, 0 B")
    assert deleted(server) == ["weights/000002", "weights/000003", "weights/000004"]
    assert usable(run) == [5]
    assert prune("runs", "--keep", "best,final").stdout.splitlines()[-1] == "0 to remove, 0 B"


def test_weights_for_sampling_go_with_their_state(server, run):
    last = run.checkpoints()[-1]
    run.append_checkpoint(dataclasses.replace(last, superseded=True))
    allow(server, "weights/000005", "sampler_weights/000005")
    prune("runs", "--keep", "3", "--yes")
    assert deleted(server) == ["sampler_weights/000005", "weights/000005"]


def test_what_the_service_refuses_is_said_and_stays_in_the_record(server, run):
    allow(server, "weights/000003")
    server.fail("DELETE training_runs/checkpoints/weights/000004", (403, {"detail": "it is published"}))
    done = prune("runs", "--keep", "final", "--yes")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (2, "removed 1, 0 B")
    assert done.stderr == (
        "error: runs/a: not deleted with the service: 000002 (it deletes no checkpoints on request); "
        "runs/a: not deleted with the service: 000004 (it is published)\n"
    )
    assert usable(run) == [2, 4, 5]


def test_a_service_that_is_away_is_one_line(server, run):
    server.fail("healthz", (503, {"detail": "starting"}))
    done = prune("runs", "--keep", "final", "--yes")
    assert (done.exit_code, done.stderr) == (2, f"error: {server.url}: not ready (503): try again later\n")
    assert usable(run) == [2, 3, 4, 5]


def test_a_state_that_a_fork_goes_on_from_stays(server, run):
    """It has no copy: it names its parent's. Its own pruning never deletes that one."""
    forked = make_fork(run, "3", ["log_path=runs/f", "keep=all"], weights_only=False)
    done = prune("runs", "--keep", "final", "--yes")
    assert "  000003  runs/f goes on from it: left as it is" in done.stdout.splitlines()
    fork = RunDir("runs/f")
    assert fork.checkpoints()[0].is_usable
    assert "weights/000003" not in deleted(server)
    assert trained(forked).state() == "FINISHED"
    prune("runs/f", "--keep", "final", "--yes")
    assert "weights/000003" not in deleted(server)


def test_a_server_that_moved_is_asked_where_it_is_now(server, run):
    with scripted_server() as moved:
        allow(moved, "weights/000002", "weights/000003", "weights/000004")
        done = prune("runs", "--keep", "best", "--yes", "--base-url", moved.url)
        assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "removed 3, 0 B")
        assert len(deleted(moved)) == 3
    assert not deleted(server)


def test_an_evaluation_asks_where_it_is_now(server, run):
    """Nobody is there."""
    arguments = ["runs/a", "--data", "some.jsonl", "--name", "some", "--base-url", "http://127.0.0.1:9"]
    done = CliRunner().invoke(main, ["eval", *arguments])
    assert done.exit_code == 2
    assert "http://127.0.0.1:9: cannot be reached" in done.stderr
