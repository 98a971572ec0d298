"""compose.yaml, without a container engine. tests/e2e/test_tracking_server.py runs its commands."""

import configparser
import re
import shutil
import subprocess
import sys

import pytest

from tests import compose
from tests.compose import COMPOSE, ENV_EXAMPLE

ROOT = COMPOSE.parent
EXAMPLE = compose.env_file(ENV_EXAMPLE.read_text())
FILLED = {name: value or f"secret-of-{name}" for name, value in EXAMPLE.items()}
SECRETS = {name for name, value in EXAMPLE.items() if not value}
SERVICE_KEYS = {  # of the Compose specification, those that are used
    "build", "command", "configs", "depends_on", "environment", "healthcheck", "image", "networks", "ports", "profiles",
    "restart", "volumes",
}  # fmt: skip


@pytest.fixture
def document():
    return compose.load(FILLED)


@pytest.fixture
def services(document):
    return document["services"]


def test_env_example_names_every_variable_and_no_other():
    assert compose.variables().keys() == EXAMPLE.keys()


def test_secrets_have_no_default_and_it_does_not_start_without_them():
    required = {name for name, is_required in compose.variables().items() if is_required}
    assert required == SECRETS
    assert required == {"POSTGRES_PASSWORD", "S3_SECRET_KEY", "MLFLOW_SECRET_KEY", "MLFLOW_ADMIN_PASSWORD"}
    for name in required:
        with pytest.raises(KeyError, match=rf"{name}: set it in \.env"):
            compose.load(FILLED | {name: ""})


def test_secrets_are_in_the_environment_alone(document, services):
    """A command line is shown by ``ps``, and an address is logged."""
    for service in services.values():
        del service["environment"]
    for name in SECRETS:
        assert FILLED[name] not in str(document)


def test_the_documented_command_gives_each_secret_a_value_of_its_own(tmp_path):
    command = re.search(r"^python3 (-c .+ > \.env)$", (ROOT / "docs/tracking-server.md").read_text(), re.MULTILINE)
    assert command
    shutil.copy(ENV_EXAMPLE, tmp_path)
    subprocess.run(f"{sys.executable} {command[1]}", shell=True, cwd=tmp_path, check=True)
    made = compose.env_file((tmp_path / ".env").read_text())
    assert made.keys() == EXAMPLE.keys()
    assert {name for name, value in made.items() if value != EXAMPLE[name]} == SECRETS
    assert {len(made[name]) for name in SECRETS} == {48} and len({made[name] for name in SECRETS}) == 4


def test_git_ignores_the_secrets():
    done = subprocess.run(["git", "check-ignore", ".env", ".env.example"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [".env"]


def test_only_known_keys(document, services):
    assert document.keys() == {"name", "services", "configs", "volumes", "networks"}
    for name, service in services.items():
        assert service.keys() <= SERVICE_KEYS, name


def test_images_are_pinned(services):
    for name, service in services.items():
        for image in [service["image"]] if "image" in service else re.findall(r"FROM (\S+)", str(service["build"])):
            assert re.search(r":v?\d+\.\d+", image), (name, image)


def test_mlflow_is_the_version_that_the_project_is_tested_with(services):
    pinned = re.search(r"^mlflow==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and f":v{pinned[1]}-" in services["mlflow"]["image"]


def test_each_service_says_when_it_is_healthy_and_waits_for_those_that_it_needs(services):
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        for needed, on in service.get("depends_on", {}).items():
            assert needed in services and on == {"condition": "service_healthy"}, name
    assert services["mlflow"]["depends_on"].keys() == {"postgres", "storage"}


def test_ports_are_published_on_this_machine_alone(services):
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]


def test_data_is_in_named_volumes_and_the_stores_are_reached_by_mlflow_alone(document, services):
    used = [mount.partition(":") for service in services.values() for mount in service.get("volumes", [])]
    assert sorted(name for name, _, _ in used) == sorted(document["volumes"])
    assert document["networks"]["stores"] == {"internal": True}
    assert {name for name, service in services.items() if "stores" in service.get("networks", [])} == {
        "mlflow", "postgres", "storage",
    }  # fmt: skip
    assert all(services[name]["networks"] == ["stores"] for name in ("postgres", "storage"))


def test_the_parts_agree(document, services):
    """One database, its user and its password; one bucket and its keys; a host that the server answers to."""
    mlflow, postgres, storage = (services[name]["environment"] for name in ("mlflow", "postgres", "storage"))
    options = dict(word.split("=", 1) for word in services["mlflow"]["command"] if "=" in word)
    address = f"postgresql+psycopg2://{postgres['POSTGRES_USER']}@postgres/{postgres['POSTGRES_DB']}"
    assert options["--backend-store-uri"] == address
    assert mlflow["PGPASSWORD"] == postgres["POSTGRES_PASSWORD"]
    assert options["--artifacts-destination"].startswith(f"s3://{storage['S3_BUCKET']}/")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert mlflow[key] == storage[key]

    auth = configparser.ConfigParser()
    auth.read_string(document["configs"]["basic_auth"]["content"])
    assert options["--app-name"] == "basic-auth"
    assert auth["mlflow"]["database_uri"] == address
    assert mlflow["MLFLOW_AUTH_CONFIG_PATH"] == services["mlflow"]["configs"][0]["target"]

    named = compose.load(FILLED | {"MLFLOW_HOSTNAME": "mlflow.example.org"})["services"]["mlflow"]["command"]
    assert "--allowed-hosts=localhost:*,127.0.0.1:*,mlflow:5000,mlflow.example.org" in named
    assert "--cors-allowed-origins=https://mlflow.example.org" in named


def test_docker_accepts_it(tmp_path):
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not here")
    command = ["docker", "compose", "--file", str(COMPOSE), "--profile", "*", "--env-file", str(tmp_path / ".env")]
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in FILLED.items()))
    done = subprocess.run([*command, "config", "--quiet"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / ".env").write_text(ENV_EXAMPLE.read_text())
    done = subprocess.run([*command, "config", "--quiet"], capture_output=True, text=True)
    assert done.returncode != 0 and "set it in .env" in done.stderr
