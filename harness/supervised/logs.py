"""The log of a run: every message in its logs.log, what a person should see on the console as well. No secret is in it.

The Tinker SDK's warnings go the same way: by itself it would print them across the progress bar.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from harness.config_io import redact
from harness.exceptions import RunDirError

_ROOT = logging.getLogger("harness")
_SDK = logging.getLogger("tinker")
_POLLING = "tinker.lib.api_future_impl"  # warns each time that it asks for an answer again


@contextlib.contextmanager
def logging_to(file: Path, console: Console) -> Iterator[None]:
    """Send what ``harness`` logs to ``file``, and its warnings to ``console``, while the context lasts."""
    try:
        to_file = _FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise RunDirError(
            f"{file}: cannot be written ({error.strerror}): mend it, or choose another log_path"
        ) from None
    to_file.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    to_console = _ConsoleHandler(console)
    level = _ROOT.level
    _ROOT.setLevel(logging.INFO)
    handlers = (to_file, to_console)
    for handler in handlers:
        handler.addFilter(_is_told)
        _ROOT.addHandler(handler)
        _SDK.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            _ROOT.removeHandler(handler)
            _SDK.removeHandler(handler)
            handler.close()
        _ROOT.setLevel(level)


def _is_told(record: logging.LogRecord) -> bool:
    return record.name != _POLLING or record.levelno > logging.WARNING


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _FileHandler(logging.FileHandler):
    """Lets go of lines for which there is no room: what stops for want of it says so, and is not stopped twice."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _ConsoleHandler(logging.Handler):
    """Prints above the progress bar, where a handler on stderr would tear it."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = f"{record.levelname.lower()}: {record.getMessage()}"
            self._console.print(Text(redact(text), style="yellow"))
        except Exception:  # a closed pipe, say: no reason to stop training or its mirror
            self.handleError(record)
