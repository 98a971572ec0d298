"""The services of compose.yaml started by hand: the same commands and environments, on free ports of 127.0.0.1.

PostgreSQL is the system's own, and moto stands in for the S3 store.
"""

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from tests import compose

DOCUMENT = compose.COMPOSE.parent / "docs" / "tracking-server.md"
HOSTNAME = "mlflow.example.org"


class Server:
    """A process and its children, which end together."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path, is_ready: Callable[[], bool]):
        self._command = command
        self._env = env
        self.log = log
        self._is_ready = is_ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._env, cwd=self.log.parent, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not self._is_ready():
            assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """End it as a crash does; nothing where it is not running."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, sig)
            self._process.wait()
            self._process = None


class TrackingServer:
    """What ``docker compose up`` starts.

    Attributes:
        uri: Where MLflow is found.
        password: Of the user admin, and of those that :meth:`add_user` makes.
        mlflow: The server, to be killed and started again.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.password = "correct-horse-battery"
        secrets = {name: f"secret-of-{name}" for name, required in compose.variables().items() if required}
        document = compose.load(secrets | {"MLFLOW_ADMIN_PASSWORD": self.password, "MLFLOW_HOSTNAME": HOSTNAME})
        self._services = document["services"]
        self._auth_config = document["configs"]["basic_auth"]["content"]
        self._environment = {name: service["environment"] for name, service in self._services.items()}
        ports = {name: free_port() for name in ("mlflow", "postgres", "storage")}
        self.uri = f"http://127.0.0.1:{ports['mlflow']}"
        self._s3_uri = f"http://127.0.0.1:{ports['storage']}"
        self._here = {  # what the services call one another in their network
            "@postgres/": f"@127.0.0.1:{ports['postgres']}/",
            "http://storage:8333": self._s3_uri,
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=5000": f"--port={ports['mlflow']}",
            "/etc/mlflow/basic_auth.ini": str(folder / "basic_auth.ini"),
        }
        self._postgres = self._make_postgres(ports["postgres"])
        moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(ports["storage"])]
        self._storage = Server(moto, dict(os.environ), folder / "storage.log", lambda: answers(self._s3_uri))
        self.mlflow = self._make_mlflow()

    def start(self) -> None:
        self._postgres.start()
        self._storage.start()
        self._s3().create_bucket(Bucket=self._environment["storage"]["S3_BUCKET"])
        self.mlflow.start()

    def stop(self) -> None:
        self.mlflow.kill()
        self._storage.kill()
        self._postgres.kill(signal.SIGQUIT)  # it gives its shared memory back

    def add_user(self, name: str) -> None:
        """As docs/tracking-server.md says."""
        answer = requests.post(
            f"{self.uri}/api/2.0/mlflow/users/create",
            json={"username": name, "password": self.password},
            auth=("admin", self.password),
        )
        answer.raise_for_status()

    def stored(self, key: str) -> bytes:
        """An object of the artifact store, asked for without MLflow."""
        return self._s3().get_object(Bucket=self._environment["storage"]["S3_BUCKET"], Key=key)["Body"].read()

    def run_documented(self, program: str, *, database: str | None = None, text: str = "") -> str:
        """Run what docs/tracking-server.md has run in PostgreSQL's container.

        Args:
            program: pg_dump or psql.
            database: In the place of the documented one; made where there is something to put into it.
            text: Its standard input.
        """
        command = re.search(rf"exec -T postgres {program} (.+) [<>] ", DOCUMENT.read_text())
        assert command, f"{DOCUMENT.name} has no command for {program}"
        *options, documented = command[1].split()
        assert documented == self._environment["postgres"]["POSTGRES_DB"]
        if database and text:
            self._run_postgres("createdb", database)
        return self._run_postgres(program, *options, database or documented, text=text)

    def _s3(self) -> Any:
        import boto3  # pyright: ignore[reportMissingImports]  # of the extra e2e

        keys = self._environment["storage"]
        return boto3.client(
            "s3",
            endpoint_url=self._s3_uri,
            region_name=self._environment["mlflow"]["AWS_DEFAULT_REGION"],
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        )

    def _here_is(self, text: str) -> str:
        for there, here in self._here.items():
            text = text.replace(there, here)
        return text

    def _make_mlflow(self) -> Server:
        (self._folder / "basic_auth.ini").write_text(self._here_is(self._auth_config))
        program, *arguments = [self._here_is(word) for word in self._services["mlflow"]["command"]]
        assert program == "mlflow"
        environment = {name: self._here_is(value) for name, value in self._environment["mlflow"].items()}
        return Server(
            [sys.executable, "-m", "mlflow", *arguments],
            {"PATH": os.environ["PATH"], "HOME": str(self._folder), **environment},
            self._folder / "mlflow.log",
            lambda: answers(f"{self.uri}/health"),
        )

    def _make_postgres(self, port: int) -> Server:
        """A new cluster. PostgreSQL refuses to run as root: there it runs as the user that its package made."""
        given = self._environment["postgres"]
        self._bin = postgres_programs()
        self._as_postgres = []
        data = self._folder / "postgres"
        data.mkdir()
        password = data.with_suffix(".password")
        password.write_text(given["POSTGRES_PASSWORD"])
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            self._as_postgres = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            for path in (self._folder, data, password):
                shutil.chown(path, user.pw_uid, user.pw_gid)
        self._connection = {
            "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": given["POSTGRES_USER"],
            "PGPASSWORD": given["POSTGRES_PASSWORD"],
        }  # fmt: skip
        self._run_postgres(
            "initdb", f"--pgdata={data}", f"--username={given['POSTGRES_USER']}", f"--pwfile={password}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync",
        )  # fmt: skip
        options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": self._folder}
        command = [*self._as_postgres, str(self._bin / "postgres"), "-D", str(data)]
        command += [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return Server(command, dict(os.environ), self._folder / "postgres.log", self._has_database)

    def _has_database(self) -> bool:
        """Whether PostgreSQL answers; makes the database, as the image does at its first start."""
        if subprocess.run([self._bin / "pg_isready", "--quiet"], env=self._connection).returncode:
            return False
        self._run_postgres("createdb", self._environment["postgres"]["POSTGRES_DB"])
        return True

    def _run_postgres(self, program: str, *arguments: str, text: str = "") -> str:
        done = subprocess.run(
            [*self._as_postgres, str(self._bin / program), *arguments],
            env=os.environ | self._connection, cwd=self._folder, capture_output=True, text=True, input=text,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def tracking_server() -> Iterator[TrackingServer]:
    """Running, and gone after it, whatever happens in between."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own folders are closed to the user postgres
        server = TrackingServer(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


def postgres_programs() -> Path:
    """Where initdb and the others are; Debian keeps them out of PATH."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve())
    assert found, "this test needs PostgreSQL: apt-get install postgresql"
    return max(found, key=lambda path: path.stat().st_mtime).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
