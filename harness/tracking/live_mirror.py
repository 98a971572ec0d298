"""The mirror of a run that is being trained: a thread that follows its files and never stands in training's way."""

import logging
import threading

from harness.config_io import redact
from harness.exceptions import HarnessError
from harness.run_dir import RunDir
from harness.tracking.mlflow_mirror import Mirror
from harness.tracking.mlflow_store import Destination
from harness.tracking.mlflow_system import SystemMetrics

log = logging.getLogger("harness.tracking")

_COMMAND = "python -m harness"


class LiveMirror:
    """Mirrors a run while it is trained, from a thread of its own. It warns and never raises: training goes on."""

    def __init__(
        self,
        run_dir: RunDir,
        destination: Destination,
        *,
        system_metrics: bool = False,
        interval: float = 1.0,
        max_interval: float = 60.0,
        patience: float = 20.0,
    ):
        """
        Args:
            system_metrics: Log the load of this machine too.
            interval: Seconds between passes.
            max_interval: Seconds to which the interval is doubled while MLflow is in trouble.
            patience: Seconds that :meth:`finish` waits.
        """
        self._run_dir = run_dir
        self._mirror = Mirror(run_dir, destination)
        self._system_metrics = SystemMetrics() if system_metrics else None
        self._interval = interval
        self._max_interval = max_interval
        self._patience = patience
        self._finish = threading.Event()
        self._end: tuple[str, str | None] = ("KILLED", None)
        self._warned = False
        self._trouble: str | None = f"MLflow was not done within {patience:g} s"  # of the last pass
        self._thread = threading.Thread(target=self._run, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        """Return at once: MLflow is imported and its store opened in the thread."""
        self._thread.start()

    def finish(self, state: str, error: str | None = None) -> None:
        """Send the rest, upload the files and set the status; one warning where that does not succeed in time, unless
        this trouble was warned of.

        Args:
            state: FINISHED, FAILED or KILLED.
            error: Why it failed.
        """
        self._end = (state, error)
        self._finish.set()
        self._thread.join(self._patience)
        if self._trouble:
            level = logging.INFO if self._warned else logging.WARNING
            log.log(level, "%s: %s sync %s completes the MLflow run", self._trouble, _COMMAND, self._run_dir)

    def where(self) -> str | None:
        """Experiment, name and address of the MLflow run, for the user; None until it is open, or after trouble."""
        return None if self._finish.is_set() and self._trouble else self._mirror.where

    def _run(self) -> None:
        delay = self._interval
        while not self._finish.is_set():
            trouble = self._attempt(last=False)
            if trouble and not self._warned:
                self._warned = True
                sync = "" if _COMMAND in trouble else f", or by {_COMMAND} sync {self._run_dir}"
                log.warning("%s: training goes on, and MLflow catches up once that is mended%s", trouble, sync)
            if self._warned and not trouble:
                self._warned = False
                log.info("MLflow works again: %s is mirrored", self._run_dir)
            delay = min(2 * delay, self._max_interval) if trouble else self._interval
            self._finish.wait(delay)
        self._trouble = self._attempt(last=True)

    def _attempt(self, *, last: bool) -> str | None:
        """Send, and close at last; what went wrong in one line, or None."""
        try:
            self._mirror.send()
            if self._system_metrics:
                self._mirror.log_system_metrics(self._system_metrics, last=last)
            if last:
                self._mirror.close(*self._end)
        except HarnessError as error:
            return str(error)
        except Exception as error:  # not even a bug of ours may stop training
            log.debug("the MLflow mirror failed", exc_info=True)
            return f"the MLflow mirror failed ({type(error).__name__}: {redact(str(error))})"
        return None
