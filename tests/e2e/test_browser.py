"""The MLflow UI in Debian's Chromium, as ``python -m harness ui`` serves it: two runs of the demo's kind, compared."""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.run_dir import RunDir
from tests.e2e.conftest import Workplace

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page  # pyright: ignore[reportMissingImports]  # of the extra e2e

CHROMIUM = shutil.which("chromium")
SMALL = (
    "max_steps=6",
    "eval_every=3",
    "dataset_builder.common_config.batch_size=4",
    "...max_length=48",
    "dataset_builder.test_size=4",
    "lora_rank=8",
)
RUNS = {"demo-lr5e-4": "learning_rate=5e-4", "demo-lr1e-4": "learning_rate=1e-4"}
DRAWN = {"train_mean_nll": 6, "test/nll": 3}  # and how many points of a run


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Workplace:
    """Where both runs are; its path has what an address of a database must quote."""
    workplace = Workplace(tmp_path_factory.mktemp("100% of it?"))
    for name, learning_rate in RUNS.items():
        workplace.run("recipes.sl_basic", f"log_path=runs/{name}", learning_rate, *SMALL)
    return workplace


def serve(workplace: Workplace) -> tuple[subprocess.Popen[str], int]:
    """The UI's process, the first of a group as in a terminal, and its port; once it has said that it is there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        workplace.command("harness", "ui", "--port", str(port)),
        cwd=workplace.folder,
        env=workplace.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"MLflow is at http://127.0.0.1:{port} (Ctrl-C ends it)\n"
    return process, port


@pytest.fixture(scope="module")
def ui(demo: Workplace) -> Iterator[str]:
    process, port = serve(demo)
    yield f"http://127.0.0.1:{port}/#"
    process.terminate()
    assert process.wait(60) == 143


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    if CHROMIUM is None:
        pytest.skip("no browser: apt-get install chromium")
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser") -> "Iterator[Page]":
    """A new user's page, on which nothing may break."""
    context = browser.new_context(viewport={"width": 1280, "height": 1080})
    page = context.new_page()
    page.set_default_timeout(120_000)  # milliseconds: other jobs may be at work on the machine
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("response", lambda answer: troubles.extend([answer.url] if answer.status >= 500 else []))
    yield page
    context.close()
    assert not troubles


@pytest.fixture
def experiment(page: "Page", ui: str) -> str:
    """The address of the runs' experiment, found by its name."""
    page.goto(f"{ui}/experiments")
    page.get_by_role("link", name="sl_basic", exact=True).click()
    page.wait_for_url("**/experiments/*")
    address = re.sub(r"(/experiments/\d+).*", r"\1", page.url)
    page.goto("about:blank")  # the UI has a view of its own to go to, some time later, wherever one is by then
    return address


def lines(chart: "Locator") -> list[list[str]]:
    """The points of every line in a chart, once there is one; each is drawn twice, to be lit up under the mouse."""
    chart.locator(".js-line").first.wait_for()
    paths = {line.get_attribute("d") or "" for line in chart.locator(".js-line").all()}
    return [path.removeprefix("M").split("L") for path in paths]


def test_two_runs_are_compared(page: "Page", experiment: str, tmp_path: Path):
    page.goto(f"{experiment}/runs")
    for name in RUNS:
        page.get_by_role("link", name=name, exact=True).wait_for()
    page.get_by_label("Select all runs").check()
    page.get_by_test_id("runs-compare-button").click()
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    page.screenshot(path=tmp_path / "comparison.png")

    for metric, num_points in DRAWN.items():
        page.get_by_role("link", name=metric, exact=True).click()
        chart = page.get_by_test_id("experiment-view-compare-runs-card")
        for name in RUNS:
            chart.get_by_text(f"{name} ({metric})").wait_for()
        page.screenshot(path=tmp_path / f"{metric.replace('/', '-')}.png")
        drawn = lines(chart)
        assert len(drawn) == len(RUNS)
        assert all(2 <= len(points) <= num_points for points in drawn)  # a point on a straight line is left out
        page.go_back()


def test_the_charts_of_an_experiment_show_both_runs(page: "Page", experiment: str, tmp_path: Path):
    page.goto(f"{experiment}/runs?compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill("nll")
    for metric in DRAWN:
        chart = page.get_by_test_id("experiment-view-compare-runs-card").filter(has_text=f"({metric})")
        chart.scroll_into_view_if_needed()
        assert len(lines(chart)) == len(RUNS)
    page.screenshot(path=tmp_path / "charts.png")


def test_the_page_of_a_run(page: "Page", experiment: str, demo: Workplace, tmp_path: Path):
    run = RunDir(demo.folder / "runs" / "demo-lr5e-4")
    page.goto(f"{experiment}/runs/{(run.mirror() or {})['run_id']}")
    shown = page.locator("body")
    shown.get_by_text("Finished", exact=True).wait_for()
    for text in (
        "Metrics (17)",
        "best_test_nll",
        "test/nll",
        str(run.metrics()[-1]["test/nll"]),
        "learning_rate",
        "0.0005",
    ):
        shown.get_by_text(text, exact=True).first.wait_for()
    page.screenshot(path=tmp_path / "run.png")
    assert page.get_by_role("alert").count() == 0

    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("metrics.jsonl", exact=True).click()
    page.get_by_text('"progress"').first.wait_for()
    page.screenshot(path=tmp_path / "artifacts.png")
    assert page.get_by_role("alert").count() == 0


@pytest.mark.parametrize("whom", [os.kill, os.killpg], ids=["the command alone", "as a terminal does"])
def test_ctrl_c_ends_all_of_it(demo: Workplace, whom: Callable[[int, int], None]):
    process, port = serve(demo)
    with pytest.raises(ConnectionRefusedError):  # it is at 127.0.0.1 and nowhere else
        socket.create_connection(("127.0.0.2", port))
    whom(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "interrupted\n")
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):  # no process of the group is left
        os.killpg(process.pid, 0)
