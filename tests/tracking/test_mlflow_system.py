import logging

from harness.tracking.live_mirror import LiveMirror
from harness.tracking.mlflow_mirror import sync
from harness.tracking.mlflow_store import Destination
from harness.tracking.mlflow_system import SystemMetrics
from tests.tracking.conftest import end_attempt, history, mirrored, row, start_run

CPU = "system/cpu_utilization_percentage"


def test_readings_stand_on_an_axis_of_their_own_that_a_resume_continues(tmp_path, uri, client):
    run_id = sync(start_run(tmp_path / "run"), uri).run_id
    for _ in range(2):  # attempts
        system = SystemMetrics(interval=0)
        for _ in range(2):
            system.log_if_due(client, run_id)
    points = history(client, run_id, CPU)
    assert [step for step, _, _ in points] == [0, 1, 2, 3]
    assert all(0 <= value <= 100 for _, _, value in points)
    assert 0 < history(client, run_id, "system/system_memory_usage_percentage")[0][2] < 100


def test_a_reading_waits_until_it_is_due_but_the_last_one_does_not(tmp_path, uri, client):
    run_id = sync(start_run(tmp_path / "run"), uri).run_id
    system = SystemMetrics(interval=3600)
    for _ in range(3):
        system.log_if_due(client, run_id)
    assert history(client, run_id, CPU) == []
    system.log_if_due(client, run_id, last=True)
    assert len(history(client, run_id, CPU)) == 1


def test_the_live_mirror_logs_them_on_request_and_says_nothing(tmp_path, uri, client, caplog):
    counts = {}
    for name, asked in (("without", False), ("with", True)):
        run_dir = start_run(tmp_path / name)
        run_dir.append_metrics(row(0, 4.0))
        mirror = LiveMirror(run_dir, Destination.of(run_dir.config(), uri), system_metrics=asked, interval=0.01)
        with caplog.at_level(logging.INFO):
            mirror.start()
            end_attempt(run_dir, 1)
            mirror.finish("FINISHED")
        run = client.get_run(mirrored(run_dir)["run_id"])
        counts[name] = len(history(client, run.info.run_id, CPU))
        assert run.info.status == "FINISHED"
    assert counts == {"without": 0, "with": 1}
    assert not [record for record in caplog.records if record.name.startswith("harness")]


def test_a_machine_that_cannot_be_read_is_one_warning(tmp_path, uri, client, caplog, monkeypatch):
    import psutil

    def fail():
        raise PermissionError("no /proc/meminfo here")

    monkeypatch.setattr(psutil, "virtual_memory", fail)
    run_dir = start_run(tmp_path / "run")
    mirror = LiveMirror(run_dir, Destination.of(run_dir.config(), uri), system_metrics=True, interval=0.01)
    mirror.start()
    end_attempt(run_dir, 1)
    mirror.finish("FINISHED")
    assert client.get_run(mirrored(run_dir)["run_id"]).info.status == "FINISHED"
    assert [record.message for record in caplog.records if record.name.startswith("harness")] == [
        "no system metrics: the machine's load cannot be read (PermissionError: no /proc/meminfo here)"
    ]
