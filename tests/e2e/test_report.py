"""The page of ``python -m harness compare --out report.html`` in Debian's Chromium, offline; and in MLflow's UI."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from harness import metric_keys
from harness.metric_keys import NUM_TOKENS, TRAIN_NLL
from harness.run_dir import Row, RunDir
from tests.compare.made_runs import make_run, realistic_rows, scored
from tests.e2e.conftest import Workplace
from tests.e2e.test_browser import browser as browser
from tests.e2e.test_browser import serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page  # pyright: ignore[reportMissingImports]  # of the extra e2e

STEPS, EVAL_EVERY = 120, 20
CONFIGS = {"lr1e-4": (1.62, 0.6, 0.05), "lr3e-4": (1.5, 1.0, 0.1), "lr1e-3": (1.47, 1.9, 0.45)}  # floor, speed, overfit
BASELINE, RESUMED, KILLED = "lr1e-4-seed0", "lr1e-3-seed1", "lr3e-3 <b>&amp;"
TEST_NLL = metric_keys.test_key("", "nll")

Open = Callable[..., "Page"]
Scheme = Literal["light", "dark"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Workplace:
    """Two seeds of three configs, one run of which was resumed, and a run that was killed and is called like markup."""
    workplace = Workplace(tmp_path_factory.mktemp("report"))
    runs = workplace.folder / "runs"
    for name, (floor, speed, overfit) in CONFIGS.items():
        for seed in (0, 1):
            rows = realistic_rows(STEPS, EVAL_EVERY, floor + 0.01 * seed, speed, overfit, seed)
            learning_rate = float(name.removeprefix("lr"))
            make_run(runs / f"{name}-seed{seed}", rows, examples=fifty(rows), seed=seed, learning_rate=learning_rate)
    rows = realistic_rows(STEPS, EVAL_EVERY, 1.9, 2.5, 0.2, 7)[:50]
    make_run(runs / KILLED, rows, state=None, examples=fifty(rows), learning_rate=3e-3)
    resume(RunDir(runs / RESUMED))
    workplace.run("harness", "compare", "runs", "--baseline", f"runs/{BASELINE}", "--out", "report.html")
    return workplace


def fifty(rows: list[Row]) -> Row:
    """Examples of an evaluation that are as hard for every run, nearly; on the whole, as the last one measured."""
    last = [row[TEST_NLL] for row in rows if TEST_NLL in row][-1]
    hardness, noise = random.Random(0), random.Random(last)
    return scored([10 * (last + hardness.gauss(0, 0.4) + noise.gauss(0, 0.05)) for _ in range(50)], [10] * 50)


def resume(run: RunDir) -> None:
    """A second attempt from step 60 on, which could not reproduce the rows of step 70 and later."""
    rows = [row | ({TRAIN_NLL: row[TRAIN_NLL] + 0.02} if TRAIN_NLL in row else {}) for row in run.metrics_from(70)]
    evaluations = run.eval_examples_from(70)
    run.supersede(70, attempt=2)
    run.append_attempt({"attempt": 2, "event": "start", "ts": 3, "next_step": 60})
    run.append_eval_examples(evaluations)
    for row in rows:
        run.append_metrics(row)
    run.append_attempt({"attempt": 2, "event": "end", "ts": 4, "state": "FINISHED"})


def wait_until(page: "Page", expression: str, argument: Any = None) -> None:
    """Wait for what comes true in the page. Playwright's own way evaluates text there, which the page forbids."""
    deadline = time.monotonic() + 30
    while not page.evaluate(expression, argument):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)


@pytest.fixture
def open_page(browser: "Browser", workplace: Workplace) -> Iterator[Open]:
    """Opens the report as somebody does who has no network; nothing may be asked for, and nothing may break."""
    troubles: list[str] = []
    contexts = []

    def opened(**options: Any) -> "Page":
        options.setdefault("viewport", {"width": 1200, "height": 900})
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((workplace.folder / "report.html").as_uri())
        page.locator("#configs .scatterlayer").wait_for()
        return page

    requests: list[str] = []
    yield opened
    for context in contexts:
        context.close()
    assert not troubles
    assert {url.partition(":")[0] for url in requests} <= {"file", "data", "blob"}


def traces(page: "Page", figure: str) -> list[dict[str, Any]]:
    """What Plotly holds of a figure."""
    return page.evaluate(
        """figure => document.getElementById(figure).data.map(
            ({name, meta, x, y, visible}) => ({name, meta, x: [...x], y: [...y], visible}))""",
        figure,
    )


def points(page: "Page", figure: str, kind: str) -> list[list[tuple[float, float]]]:
    """Of every run, in the order of the legend."""
    found = [trace for trace in traces(page, figure) if trace["meta"]["kind"] == kind]
    return [list(zip(trace["x"], trace["y"], strict=True)) for trace in found]


def test_the_curves_points_are_those_of_the_files(open_page: Open, workplace: Workplace):
    page = open_page()
    names = [button.inner_text() for button in page.locator(".legend button").all()]
    runs = sorted((workplace.folder / "runs").iterdir())
    assert len(names) == len(runs) == 7
    for name, path in zip(names, runs, strict=True):
        assert path.name in name
    for kind, key in (("train", TRAIN_NLL), ("test", TEST_NLL)):
        rows = [RunDir(path).metrics() for path in runs]
        assert points(page, "curves", kind) == [[(r["step"], r[key]) for r in of_run if key in r] for of_run in rows]


def test_another_axis_is_that_of_the_files_too(open_page: Open, workplace: Workplace):
    workplace.run("harness", "compare", "runs", "--x", "tokens", "--out", "tokens.html")
    page = open_page()
    page.goto((workplace.folder / "tokens.html").as_uri())
    page.locator("#curves .xtitle").get_by_text("tokens trained on").wait_for()
    for path, drawn in zip(sorted((workplace.folder / "runs").iterdir()), points(page, "curves", "test"), strict=True):
        rows = RunDir(path).metrics()
        before = [sum(row.get(NUM_TOKENS, 0) for row in rows[:i]) for i in range(len(rows))]
        assert drawn == [(x, row[TEST_NLL]) for x, row in zip(before, rows, strict=True) if TEST_NLL in row]


def test_a_mouse_over_an_evaluation_says_run_step_and_nll(open_page: Open, workplace: Workplace, tmp_path: Path):
    page = open_page()
    last = [row for row in RunDir(workplace.folder / "runs" / KILLED).metrics() if TEST_NLL in row][-1]
    page.get_by_role("button", name="none", exact=True).click()
    page.get_by_role("button", name=KILLED).click()
    page.locator("#curves .scatterlayer .points path").last.hover(force=True)
    said = page.locator("#curves .hovertext tspan.line")
    said.first.wait_for()
    assert said.all_text_contents() == [KILLED, f"step {last['step']}", f"test NLL {last[TEST_NLL]:.4f}"]
    page.screenshot(path=tmp_path / "hover.png")


def test_no_button_sends_the_points_to_anybody(open_page: Open):
    page = open_page()
    buttons = page.locator("#curves .modebar-btn")
    assert [button.get_attribute("data-title") for button in buttons.all()] == [
        "Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes",
    ]  # fmt: skip


def test_a_drag_zooms_and_runs_and_train_curves_can_be_hidden(open_page: Open, tmp_path: Path):
    page = open_page()
    axis = "document.getElementById('curves')._fullLayout.xaxis.range"
    whole = page.evaluate(axis)
    box = page.locator("#curves .nsewdrag").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.9, steps=5)
    page.mouse.up()
    wait_until(page, f"{axis}[0] > 10")
    zoomed = page.evaluate(axis)
    assert whole[0] < zoomed[0] < zoomed[1] < whole[1]

    def seen(kind: str) -> int:
        return sum(trace["visible"] for trace in traces(page, "curves") if trace["meta"]["kind"] == kind)

    assert (seen("train"), seen("test")) == (7, 7)
    page.locator(".legend button").nth(2).click()
    assert (seen("train"), seen("test")) == (6, 6) and page.evaluate(axis) == zoomed
    page.get_by_role("button", name="none", exact=True).click()
    assert (seen("train"), seen("test")) == (0, 0)
    page.get_by_role("button", name="all runs").click()
    page.locator("#train").select_option("hidden")
    assert (seen("train"), seen("test")) == (0, 7)
    page.locator("#train").select_option("mean")
    assert (seen("train"), seen("test")) == (7, 7)
    page.screenshot(path=tmp_path / "smoothed.png")


def test_a_smoothed_curve_is_the_mean_of_eleven_points(open_page: Open, workplace: Workplace):
    page = open_page()
    page.locator("#train").select_option("mean")
    nlls = [row[TRAIN_NLL] for row in RunDir(sorted((workplace.folder / "runs").iterdir())[0]).metrics()[:-1]]
    drawn = [y for _, y in points(page, "curves", "train")[0]]
    assert drawn[60] == pytest.approx(sum(nlls[55:66]) / 11)
    assert drawn[0] == pytest.approx(sum(nlls[:6]) / 6) and len(drawn) == len(nlls)
    hover = page.evaluate("document.getElementById('curves').data[0].hovertemplate")
    assert "train NLL, mean of 11 points, %{y" in hover


def test_differences_resumes_and_states_are_shown(open_page: Open):
    page = open_page()
    labels = " ".join(page.locator("#against .annotation").all_text_contents())
    verdicts = [trace["name"] for trace in traces(page, "against")]
    assert {*verdicts} == {"better", "worse", "not told apart"} and all(verdict in labels for verdict in verdicts)
    assert len(points(page, "curves", "resume")) == 1 and points(page, "curves", "resume")[0][0][0] == 60
    text = page.locator("main").inner_text()
    for words in (
        f"{KILLED} (KILLED)",
        f"resumed: {RESUMED} (at step 60)",
        f"put aside: {RESUMED} (51)",
        "Configs, by the spread between their seeds",
        "This is about other seeds of these configs, on this test set.",
    ):
        assert words in text


PAPERS = {"light": "#ffffff", "dark": "#14171c"}


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_page_and_figures_follow_the_colour_scheme(open_page: Open, tmp_path: Path, scheme: Scheme, other: Scheme):
    page = open_page(color_scheme=scheme)

    page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
    paper = "document.getElementById('against')._fullLayout.paper_bgcolor"
    rgb = ", ".join(str(int(PAPERS[scheme][i : i + 2], 16)) for i in (1, 3, 5))
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == f"rgb({rgb})"
    assert page.evaluate(paper) == PAPERS[scheme]
    page.emulate_media(color_scheme=other)
    wait_until(page, f"{paper} === '{PAPERS[other]}'")


WITHIN = """width => {
  const labels = [...document.querySelectorAll(".annotation-text, .xtitle")];
  const boxes = labels.map(label => label.getBoundingClientRect());
  return boxes.length > 0 && boxes.every(box => box.width > 0 && box.left >= 0 && box.right <= width);
}"""


def test_it_is_readable_on_a_phone(open_page: Open, tmp_path: Path):
    page = open_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.getElementById('curves').getBoundingClientRect().width") > 340
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    page.set_viewport_size({"width": 320, "height": 640})
    wait_until(page, "document.getElementById('against').getBoundingClientRect().width < 320")
    wait_until(page, WITHIN, 320)  # once all of it is drawn again


def test_it_opens_in_mlflow(browser: "Browser", workplace: Workplace, tmp_path: Path):
    said = workplace.run("harness", "compare", "runs", "--log", "reports").stdout.splitlines()[-1]
    run_id = said.split()[4]
    process, port = serve(workplace)
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    try:
        page = context.new_page()
        page.set_default_timeout(120_000)
        troubles: list[str] = []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/#/experiments")
        page.get_by_role("link", name="reports", exact=True).click()
        page.wait_for_url("**/experiments/*")
        page.goto(f"{page.url.partition('?')[0]}/runs/{run_id}/artifacts/report.html")
        frame = page.frame_locator("iframe.mlflow-html-iframe")
        frame.locator("#curves .scatterlayer .points path").first.wait_for()
        assert frame.locator(".legend button").count() == 7
        page.screenshot(path=tmp_path / "mlflow.png")
        assert not troubles
    finally:
        context.close()
        process.terminate()
        process.wait(60)
