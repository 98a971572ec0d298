"""The load of this machine, as MLflow's ``system/…`` metrics of a run."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logger = logging.getLogger(__name__)

_COUNTED = "system/cpu_utilization_percentage"  # has a point at every step of this axis


class SystemMetrics:
    """CPU, memory, disk, network and GPU, read when they are due, on a step axis of their own.

    MLflow's monitor reads them. Its thread is not started: it ends at the first error, and logs that with the
    password in the tracking URI.
    """

    def __init__(self, interval: float = 10.0):
        """
        Args:
            interval: Seconds between readings.
        """
        self._interval = interval
        self._monitor: SystemMetricsMonitor | None = None
        self._step = 0
        self._read_at = 0.0
        self._is_off = False

    def log_if_due(self, client: MlflowClient, run_id: str, *, last: bool = False) -> None:
        """Log a reading where it is due, or is the ``last`` one of the run."""
        from mlflow.entities import Metric

        if self._monitor is None:
            self._open(client, run_id)
        if last or time.monotonic() - self._read_at >= self._interval:
            ts = time.time_ns() // 1_000_000
            values = self._read()
            metrics = [Metric(f"system/{key}", float(value), ts, self._step) for key, value in values.items()]
            client.log_batch(run_id, metrics=metrics, synchronous=True)
            self._step += 1

    def _open(self, client: MlflowClient, run_id: str) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        points = client.get_metric_history(run_id, _COUNTED)  # an earlier attempt's
        self._step = max((point.step for point in points), default=-1) + 1
        self._monitor = SystemMetricsMonitor(run_id, tracking_uri=client.tracking_uri)
        self._read()  # the first of psutil's CPU loads says nothing

    def _read(self) -> dict[str, float]:
        """What the machine does now; nothing, after one warning, where that cannot be read."""
        assert self._monitor is not None
        self._read_at = time.monotonic()
        if self._is_off:
            return {}
        try:
            self._monitor.collect_metrics()
            values = self._monitor.aggregate_metrics()
            for part in self._monitor.monitors:
                part.clear_metrics()
            return values
        except Exception as error:  # of psutil, of a GPU's driver: no reason to leave the run's mirror undone
            self._is_off = True
            logger.warning("no system metrics: the machine's load cannot be read (%s: %s)", type(error).__name__, error)
            return {}
