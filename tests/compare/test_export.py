import csv
import json

import pytest
from matplotlib.figure import Figure

from harness.compare import judge, load_runs, make_report, summarise, write_report
from harness.compare.export import check_outputs
from harness.exceptions import ConfigError
from tests.compare.made_runs import last_row, make_run, scored, train_row


@pytest.fixture
def report(tmp_path):
    """Of a baseline, a run that is better, and one that was never tested."""
    for name, nll in (("a", 2.0), ("b|_x_", 1.9)):
        rows = [train_row(0, 4.0), last_row(1, nll)]
        make_run(tmp_path / "runs" / name, rows, examples=scored([nll * 5] * 30, [5] * 30), learning_rate=nll)
    make_run(tmp_path / "runs" / "c", [train_row(0, 1 / 3)], state=None, note="", stop=["<|end|>"])
    runs = load_runs(tmp_path / "runs")
    return make_report(runs, judgement=judge(runs, at=1))


def written(report, path):
    write_report(report, path)
    return path.read_text()


def test_json_holds_every_number_as_it_is_and_null_where_there_is_none(report, tmp_path):
    document = json.loads(written(report, tmp_path / "report.json"))
    assert list(document) == [
        "made_by", "version", "test_set", "runs", "judgement", "config_differences", "notes", "footnotes",
    ]  # fmt: skip
    assert (document["made_by"], document["version"], document["test_set"]) == ("python -m harness compare", 1, "")
    a, b, c = document["runs"]
    assert a == {
        "run": "a", "state": "FINISHED", "steps": 1, "num_tokens": 100, "num_loss_tokens": 40, "last_test_nll": 2.0,
        "last_test_step": 1, "best_test_nll": 2.0, "best_step": 1, "train_nll": 4.0, "train_step": 0, "gap": -2.0,
        "last_train_nll": 4.0, "test_fingerprint": "feed", "is_best": False,
    }  # fmt: skip
    assert b["is_best"] and c["last_test_nll"] is None and c["best_step"] is None and c["last_train_nll"] == 1 / 3

    judgement = document["judgement"]
    assert {key: judgement[key] for key in ("baseline", "at", "x", "confidence", "configs")} == {
        "baseline": "a", "at": 1.0, "x": "step", "confidence": 0.95, "configs": [],
    }  # fmt: skip
    a, b, c = judgement["runs"]
    assert (a["run"], a["point"], a["step"], a["test_nll"], a["verdict"]) == ("a", "step 1", 1, 2.0, None)
    against = report.judgement.against.loc["b|_x_"]
    assert (b["difference"], b["low"], b["high"], b["p"]) == tuple(against[["difference", "low", "high", "p"]])
    assert (b["verdict"], b["num_examples"], b["lower"]) == ("better", 30, 1.0)
    assert c["difference"] is None and c["reason"] == "it has no evaluated examples at this point"

    differences = {row["path"]: row["values"] for row in document["config_differences"]}
    assert differences["learning_rate"] == {"a": 2.0, "b|_x_": 1.9, "c": 2e-4}
    assert differences["stop"] == {"a": None, "b|_x_": None, "c": ["<|end|>"]}
    assert "* best: b|_x_" in document["notes"] and any("these checkpoints" in note for note in document["footnotes"])


def test_csv_is_the_summary_a_row_a_run(report, tmp_path):
    rows = list(csv.DictReader(written(report, tmp_path / "report.csv").splitlines()))
    assert [row["run"] for row in rows] == ["a", "b|_x_", "c"]
    assert list(rows[0]) == ["run", *summarise(report.runs).columns]
    assert (rows[2]["last_train_nll"], rows[2]["best_test_nll"], rows[2]["best_step"]) == (repr(1 / 3), "", "")


def test_markdown_has_the_tables_with_names_as_text(report, tmp_path):
    lines = written(report, tmp_path / "report.md").splitlines()
    assert lines[0] == "<!-- python -m harness compare -->"
    at = lines.index("### NLL in nats per token")
    assert lines[at + 2 : at + 6] == [
        "| run | last test | step | best test | step | train | step | gap |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| a | 2.0000 | 1 | 2.0000 | 1 | 4.0000 | 0 | -2.0000 |",
        r"| **b\|\_x\_** | 1.9000 | 1 | 1.9000\* | 1 | 4.0000 | 0 | -2.1000 |",
    ]
    assert r"- \* best: b\|\_x\_" in lines
    assert r"|  | \['\<\|end\|\>'\] | c |" in lines or r"| stop | None | a, b\|\_x\_ |" in lines
    assert lines[-1].startswith("One run of each config compares these checkpoints")


def test_what_belongs_to_a_note_is_indented(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, [last_row(1, 2.0)], test={"": name})
    text = written(make_report(load_runs(tmp_path)), tmp_path / "report.md")
    assert "and no best run is marked:\n  - a: a\n  - b: b\n" in text


@pytest.mark.parametrize("suffix", [".html", ".json", ".csv", ".md", ".png", ".svg", ".pdf"])
def test_a_report_replaces_the_last_one_and_nothing_else(report, tmp_path, suffix):
    path = tmp_path / f"report{suffix}"
    check_outputs([path])
    write_report(report, path)
    check_outputs([path])
    path.write_text("of a user")
    with pytest.raises(
        ConfigError, match=rf"report\{suffix}: there already, and no report: choose another file, or remove it$"
    ):
        check_outputs([path])


def test_other_mistakes_are_found_before_anything_is_computed(tmp_path):
    (tmp_path / "folder.html").mkdir()
    for name, error in [
        ("x.txt", r"x\.txt: no form of a report: end its name in \.html, \.json, \.csv, \.md, \.png, \.svg, \.pdf$"),
        ("x", r"/x: no form of a report: end its name in "),
        ("no/x.md", r"no/x\.md: there is no folder .*/no: make it, or choose another file$"),
        ("/", r"^--out names no file: end its name in \.html, "),
        ("folder.html", r"folder\.html: cannot be written \(Is a directory\): choose another file$"),
    ]:
        with pytest.raises(ConfigError, match=error):
            check_outputs([tmp_path / "good.html", tmp_path / name])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.md", "# Notes\n\nMade with `python -m harness compare runs`: <!-- python -m harness compare -->\n"),
        ("mine.json", '{\n  "made_by": "me",\n  "with": "python -m harness compare"\n}\n'),
        ("mine.csv", "run,state,mood\na,FINISHED,good\n"),
        ("mine.html", '<title>x</title><meta name="generator" content="python -m harness compare">'),
        ("mine.svg", "<!-- by Matplotlib, for sft-harness -->"),
    ],
)
def test_a_file_that_only_mentions_a_report_is_the_users(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"{name}: there already, and no report: "):
        check_outputs([tmp_path / name])


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_figure_of_the_users_own_is_not_replaced(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    Figure().savefig(path)
    with pytest.raises(ConfigError, match=rf"mine\{suffix}: there already, and no report: "):
        check_outputs([path])


@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_a_report_that_cannot_be_written_leaves_the_last_one_whole(report, tmp_path, suffix):
    path = tmp_path / f"report{suffix}"
    path.write_text("the last one")
    (tmp_path / f".{path.name}.tmp").mkdir()  # in the way of what is then put in its place
    with pytest.raises(ConfigError, match=rf"report\{suffix}: cannot be written \(.*\): choose another file$"):
        write_report(report, path)
    assert path.read_text() == "the last one"
