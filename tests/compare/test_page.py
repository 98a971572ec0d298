import html
import html.parser
import itertools
import json
import re

import numpy as np
import pytest

from harness.compare import judge, load_runs, make_report
from harness.compare.page import render_page
from tests.compare.made_runs import last_row, make_run, scored, train_row

EVIL = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }} & <!--"  # the path of a run can be called so


class Page(html.parser.HTMLParser):
    """A page's text without scripts, its scripts, and its tags with their attributes."""

    def __init__(self, source):
        super().__init__()
        self.scripts, self.tags, self.text, self._within = [], [], "", ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._within = ""

    def handle_data(self, data):
        if self._within == "script":
            self.scripts[-1] += data
        elif self._within != "style":
            self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Of two finished runs and two that were killed, one of which has a name that tries to end the script."""
    folder = tmp_path_factory.mktemp("runs")
    for name, nll in (("a", 2.0), ("b", 1.9)):
        rows = [train_row(0, 4.0, 4.5), last_row(1, nll)]
        make_run(folder / name, rows, examples=scored([nll * 5] * 30, [5] * 30))
    for path in (EVIL, EVIL.replace("<", "other", 1)):
        make_run(folder / path, [train_row(0, 4.0, 4.5)], state=None, dataset_builder__file_path=EVIL)
    return render_page(make_report(load_runs(folder), judgement=judge(load_runs(folder), baseline="a")))


def test_nothing_is_loaded_from_anywhere(page):
    tags = Page(page).tags
    assert not [attrs for _, attrs in tags if attrs.keys() & {"src", "href", "srcset", "action"}]
    assert not re.search(r"@import|url\(", page[: page.index("</style>")])
    (policy,) = [attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';") and "http" not in policy


def test_what_a_user_wrote_is_text_and_ends_no_script(page):
    parsed = Page(page)
    assert len(parsed.scripts) == 3  # plotly.js, the points, what draws them
    drawings = json.loads(parsed.scripts[1])
    assert [drawing["key"] for drawing in drawings] == ["curves", "gap", "against"]
    assert EVIL in {html.unescape(trace["name"]) for trace in drawings[0]["traces"]}
    assert parsed.text.count(EVIL) >= 3  # in the legend, in tables, in the config's difference


def test_all_that_the_terminal_says_stands_in_it_and_states_are_labelled(page):
    text = " ".join(Page(page).text.split())
    for words in (
        "4 runs compared",
        "Against a: last evaluations",
        "* best: b",
        "One run of each config compares these checkpoints, not the configs.",
        "The best step of several was chosen on the test set that it is reported on",
        "Config differences",
        f"Not finished then: {EVIL} (KILLED), ",
        "train NLL each batch mean of 11 points hidden",
    ):
        assert words in text


def test_an_empty_run_has_a_page_without_figures(tmp_path):
    make_run(tmp_path / "a", [])
    parsed = Page(render_page(make_report(load_runs(tmp_path))))
    assert json.loads(parsed.scripts[1]) == [] and "a compared" in parsed.text
    assert "legend" not in {attrs.get("class") for _, attrs in parsed.tags}


# Of severity 1, from Machado, Oliveira & Fernandes, A Physiologically-based Model for Simulation of Color Vision
# Deficiency, IEEE TVCG 15, 2009; and of Oklab (Ottosson, 2020).
_SEEN_BY = {
    "all": np.eye(3),
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopes": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
_LMS = [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069954, 0.10739696], [0.08830246, 0.28171884, 0.6299787]]
_LAB = [
    [0.21045426, 0.79361779, -0.00407205],
    [1.9779985, -2.42859221, 0.45059371],
    [0.02590404, 0.78277177, -0.80867577],
]


def linear(colour):
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_ten_runs_stay_apart_whatever_colours_one_sees_and_from_the_paper(page, scheme):
    colours = [linear(found) for found in re.findall(r"--run-\d: #(\w{6})", page)][10 * scheme :][:10]
    paper = linear(re.findall(r"--paper: #(\w{6})", page)[scheme])
    for seen in _SEEN_BY.values():
        lab = [np.cbrt(np.clip(np.array(seen) @ c, 0, 1) @ np.array(_LMS).T) @ np.array(_LAB).T for c in colours]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 0.09  # black to white is 1
    for colour in [*colours]:
        dim, bright = sorted(float(c @ [0.2126, 0.7152, 0.0722]) for c in (colour, paper))
        assert (bright + 0.05) / (dim + 0.05) > 2.7


def test_runs_and_judgements_show_themselves_in_a_notebook(tmp_path):
    for name, nll in (("a", 2.0), ("<b>", 1.9)):
        examples = scored([nll * 5] * 30, [5] * 30)
        make_run(
            tmp_path / name, [train_row(0, 4.0), last_row(1, {"math": nll})], test={"math": "f"}, examples=examples
        )
    runs = load_runs(tmp_path)
    shown = runs._repr_html_()
    assert "NLL in nats per token, test set math" in shown and "&lt;b&gt;" in shown and "* best: &lt;b&gt;" in shown
    assert "<script" not in shown and len(shown) < 5000
    shown = judge(runs, on="math")._repr_html_()
    assert "Against &lt;b&gt;: last evaluations" in shown and "This is about these checkpoints" in shown


def test_runs_that_were_not_evaluated_yet_show_themselves_too(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0)], test={"math": "f"})
    assert "4.0000" in load_runs(tmp_path)._repr_html_()
