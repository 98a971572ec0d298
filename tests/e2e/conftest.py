"""End-to-end tests: the real recipe, model, data and MLflow, as processes of their own, in a folder of their own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


class Workplace:
    """A folder in which recipes run; it has its own runs/, data/ and mlruns/."""

    def __init__(self, folder: Path):
        self.folder = folder
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.env = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
        for name in [name for name in self.env if name == "MLFLOW_TRACKING_URI" or name.startswith("TINKER_")]:
            del self.env[name]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", *arguments]

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == code, f"{arguments} → {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "started.log").open("ab") as log:
            return subprocess.Popen(
                self.command(*arguments), cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, place: str, when: str, number: int, *arguments: str) -> None:
        """Run until the process dies by SIGKILL at a place that :mod:`tests.e2e.killed` names."""
        log = self.folder / "killed.log"
        with log.open("wb") as out:
            command = self.command("tests.e2e.killed", place, when, str(number), *arguments)
            code = subprocess.run(command, cwd=self.folder, env=self.env, stdout=out, stderr=out).returncode
        assert code == -signal.SIGKILL, log.read_text()[-2000:]

    def stop_at_step(self, process: subprocess.Popen[bytes], run: str, step: int, sig: signal.Signals) -> None:
        """Send ``sig`` once ``step`` stands in the run's metrics.jsonl, and wait for the end."""
        metrics = self.folder / run / "metrics.jsonl"
        while not (metrics.exists() and f'{{"step": {step},' in metrics.read_text()):
            assert process.poll() is None, (self.folder / "started.log").read_text()[-3000:]
            time.sleep(0.02)
        process.send_signal(sig)
        process.wait(timeout=120)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("workplace"))
