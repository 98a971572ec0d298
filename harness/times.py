"""Moments as people read them."""

import datetime


def utc(ts: float, timespec: str = "seconds") -> str:
    """``2026-11-22 21:06:05``, in UTC.

    Args:
        ts: Milliseconds since the epoch.
        timespec: The last part that is shown, as ``datetime.isoformat`` has it: "minutes", …
    """
    moment = datetime.datetime.fromtimestamp(ts / 1000, datetime.UTC)
    return moment.replace(tzinfo=None).isoformat(" ", timespec)
