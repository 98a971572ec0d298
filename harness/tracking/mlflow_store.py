"""Where in MLflow a run goes, and how that store is opened: at once, or with one clear line, and no password in it.

The embedded default is an SQLite database with its artifacts beside it, ``mlruns/`` in the working directory.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import logging
import os
import sqlite3
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config_io import redact
from harness.exceptions import HarnessError, TrackingError
from harness.run_dir import Row

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRACKING_URI_VARIABLE = "MLFLOW_TRACKING_URI"

_is_asking = contextvars.ContextVar("is_asking", default=False)  # whether this thread is in one_line_errors
_NOISY = ("urllib3.connectionpool", "mlflow.store.db.utils")
_STORES = "give sqlite:///FILE, postgresql://…, or the http(s)://… of a server"
_SQLALCHEMYS_OWN = "(raised as a result of Query-invoked autoflush"  # before the line that says what happened
_LOCK_SECONDS = 60  # making a database takes about 8 s, and others may be waiting to open it too


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where in MLflow a run goes.

    Attributes:
        tracking_uri: As chosen by the user; it may hold a password and is never written. None where nobody chose:
            the store that the run was mirrored to before, else the embedded one.
        experiment: Made where it is missing.
        run_name: What the MLflow UI lists.
        tags: The user's own.
        note: The run's description in the MLflow UI; "" for one made from the config.
    """

    tracking_uri: str | None
    experiment: str
    run_name: str
    tags: Mapping[str, str]
    note: str

    @classmethod
    def of(cls, document: Row, tracking_uri: str | None = None) -> Destination:
        """The destination that a run's config.json names.

        Args:
            document: ``RunDir.config()``.
            tracking_uri: Goes before the config's, which lost its user info when it was written. Where neither names
                one, the environment's ``MLFLOW_TRACKING_URI`` does.
        """
        config = document["config"]
        environment = os.environ.get(TRACKING_URI_VARIABLE)
        chosen = tracking_uri or config["tracking_uri"] or environment
        if environment and chosen == redact(environment):
            chosen = environment  # the same server, with its user info
        return cls(
            tracking_uri=chosen or None,
            experiment=config["experiment"],
            run_name=config["run_name"] or Path(config["log_path"]).name,
            tags=config["tags"],
            note=config["note"],
        )


def embedded_uri(folder: Path) -> str:
    """The embedded store of a working directory."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(folder / "mlruns" / "mlflow.db")).render_as_string()  # quotes ? and %


def uri_here() -> str:
    """The store that ``MLFLOW_TRACKING_URI`` names, else the embedded one of the working directory."""
    uri = os.environ.get(TRACKING_URI_VARIABLE) or embedded_uri(Path.cwd())
    with one_line_errors(uri):
        return absolute_uri(uri, Path.cwd())


def absolute_uri(uri: str, folder: Path) -> str:
    """A relative SQLite path taken from ``folder``; it would follow the working directory, and silently make a new,
    empty database there. Other URIs stay as they are."""
    from sqlalchemy import make_url

    path = _sqlite_path(uri)
    return make_url(uri).set(database=str(folder / path)).render_as_string() if path else uri


def unless_gone(uri: str | None) -> str | None:
    """``uri``, or None where it is a database file that is not there: run directories can be moved and copied."""
    path = _sqlite_path(uri) if uri else None
    return None if path and not os.path.exists(path) else uri  # nor where one may not look


def artifact_location(uri: str) -> str | None:
    """Where an experiment made in this store keeps artifacts: beside an SQLite database, where MLflow would take the
    working directory of the moment; None for the server's own choice."""
    path = _sqlite_path(uri)
    return path.with_name("artifacts").as_uri() if path else None


def open_store(uri: str) -> MlflowClient:
    """A client whose store answers; makes the database where it is SQLite and missing.

    Raises:
        TrackingError: where ``uri`` names no store, or an SQLite database cannot be opened for writing.
    """
    import filelock

    # MLflow would retry a dead server for minutes, and print the run's URL with the password in it.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    logging.getLogger("alembic").setLevel(logging.WARNING)  # else a line for each migration of a new database
    from mlflow import MlflowClient

    path = _sqlite_path(uri)
    if path is None:
        if "://" not in uri or uri.startswith(("sqlite", "file")):
            raise TrackingError(f"{redact(uri)}: names no store: {_STORES}")
        return MlflowClient(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS):
            _check_database(path)
            return MlflowClient(uri)  # makes the tables; two processes that do so at once crash
    except filelock.Timeout:
        raise TrackingError(f"{uri}: another process is opening the database: wait for it") from None
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrackingError(f"{uri}: cannot be opened ({reason}): choose another tracking URI") from None


@contextlib.contextmanager
def one_line_errors(uri: str) -> Iterator[None]:
    """MLflow's errors as TrackingErrors.

    It raises its own kinds, those of requests and SQLAlchemy, and each artifact store's; their texts name the URI with
    its password, therefore none is kept as the cause. What is logged on the way to an error is dropped: of every try
    to connect, with tracebacks of a database's.
    """
    for name in _NOISY:
        logging.getLogger(name).addFilter(_is_of_others)
    outside = _is_asking.set(True)
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        raise TrackingError(f"MLflow at {redact(uri)} {_reason(error)}") from None
    finally:
        _is_asking.reset(outside)


def _is_of_others(_: logging.LogRecord) -> bool:
    return not _is_asking.get()


def _reason(error: Exception) -> str:
    import requests

    for cause in (error, error.__context__):
        if isinstance(cause, (requests.ConnectionError, requests.Timeout)):
            return f"cannot be reached ({type(cause).__name__}): is the server up?"
    if isinstance(error, ModuleNotFoundError):
        return f"needs a database driver that is not installed ({error.name}): install it, or name one in the URI"
    match getattr(error, "error_code", None):
        case "UNAUTHENTICATED":
            return "refuses the user or the password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        case "PERMISSION_DENIED" if "Host header" in str(error):
            return "does not answer to this name: start it with it among its --allowed-hosts"
        case "PERMISSION_DENIED":
            return "does not let you do this: ask whoever keeps it for the permission"
    text = redact(str(error)).strip()
    if "unsupported URI" in text:
        return f"names no store: {_STORES}"
    lines = [line for line in text.splitlines() if line and not line.startswith(_SQLALCHEMYS_OWN)]
    first_line = lines[0] if lines else ""
    return f"failed ({type(error).__name__}: {textwrap.shorten(first_line, 300)})"


def _sqlite_path(uri: str) -> Path | None:
    """The file of an SQLite database; None for another store, and for a URI that names no file."""
    from sqlalchemy import make_url

    url = make_url(uri) if uri.startswith("sqlite") else None
    return Path(url.database) if url and url.database and not url.host else None


def _check_database(path: Path) -> None:
    """Raise sqlite3.Error at once where the database cannot be written: MLflow would retry for two minutes."""
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE may_be_written (here)")  # BEGIN alone succeeds on a file that is read-only
        connection.rollback()
