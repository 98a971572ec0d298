"""The errors that a user can mend. Each is also the stdlib kind that it resembles.

The text of an error says what is wrong, where, and how to mend it, in one line: ``harness.cli`` prints it
without a traceback and exits with 2. Anything else that is raised is a bug of ours and keeps its traceback.
"""

import contextlib
from collections.abc import Iterator


class HarnessError(Exception):
    """A mistake that the user can mend, or a circumstance that the user can change."""


class ConfigError(HarnessError, ValueError):
    """A config, an override or a command-line argument that cannot be used."""


class DataError(HarnessError, ValueError):
    """Training or test data that cannot be used."""


class DataFileNotFoundError(HarnessError, FileNotFoundError):
    """A data file that is not there."""


class RendererError(HarnessError, ValueError):
    """A conversation that a renderer cannot turn into tokens and weights."""


class RunDirError(HarnessError, RuntimeError):
    """A run directory that cannot be read, written or resumed."""


class BackendError(HarnessError, RuntimeError):
    """A backend that cannot run here, or a request that it could not serve."""


class ServiceError(BackendError):
    """A service that trains could not be reached, or refused or failed a request."""


class CheckpointDamagedError(BackendError):
    """A checkpoint that is not what was saved: a file is missing or its hash differs."""


class TrackingError(HarnessError, RuntimeError):
    """An MLflow store that cannot be reached or written."""


@contextlib.contextmanager
def as_written(where: object) -> Iterator[None]:
    """Read what the harness wrote: JSON of another shape, which reading it stumbles over, is a RunDirError."""
    try:
        yield
    except HarnessError:
        raise
    except OSError as error:
        raise RunDirError(f"{error.filename or where}: cannot be read ({error.strerror}): restore it") from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise RunDirError(
            f"{where}: not as the harness writes it ({type(error).__name__}: {error}): restore its files"
        ) from error
