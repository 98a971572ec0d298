import io

import numpy as np
from rich.console import Console
from scipy import stats

from harness.compare import judge, load_runs, make_report, print_report
from harness.compare.judge import _SAME_DATA
from harness.compare.page import render_page
from harness.compare.report import Section
from tests.compare.made_runs import last_row, make_run, scored, train_row


def printed(runs, *, width=80, terminal=False, on=""):
    file = io.StringIO()
    print_report(make_report(runs, on), Console(file=file, width=width, force_terminal=terminal, color_system=None))
    return file.getvalue()


def rows_of(text, run):
    """The cells of every table row of a run."""
    return [line.split()[1:] for line in text.splitlines() if line.startswith(f"{run} ")]


def test_the_tables_hold_the_numbers_and_mark_the_best_run_and_the_one_past_its_best(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 4.5), train_row(1, 2.0, 2.25), train_row(2, 1.5), last_row(3, 2.5)])
    make_run(tmp_path / "b", [train_row(0, 4.0, 4.5), train_row(1, 2.87654321), last_row(2, 3.0)], lora_rank=8)
    make_run(tmp_path / "c", [train_row(0, 4.0, tokens=1_234_500)], state=None, lora_rank=8)

    text = printed(load_runs(tmp_path))

    assert rows_of(text, "a") == [
        ["2.5000^", "3", "2.2500*", "1", "2.0000", "1", "+0.2500"],
        ["FINISHED", "3", "300", "120", "1.5000"],
        ["2.2500", "1~", "2.0000", "1", "+0.2500"],
        ["3", "-", "-", "-", "baseline", "-", "-"],
    ]
    assert rows_of(text, "b") == [
        ["3.0000", "2", "3.0000", "2", "2.8765", "1", "+0.1235"],
        ["FINISHED", "2", "200", "80", "2.8765"],
        ["3.0000", "2", "2.8765", "1", "+0.1235"],
        ["2", "+0.0000", "-", "-", "no", "verdict", "0%", "1.0000"],
    ]
    assert rows_of(text, "c") == [
        ["-"] * 7,
        ["KILLED", "1", "1,234,500", "493,800", "4.0000"],
        ["-"] * 5,
        ["-", "-", "-", "-", "no", "verdict", "-", "-"],
    ]
    assert "At step 2 " in text and "~ the last evaluation before" in text and "!" not in text
    assert "b: no verdict: 1 of the 20 examples that a verdict takes: test on more\n" in text
    assert "c: no verdict: it has no evaluated examples at this point\n" in text
    assert rows_of(text, "lora_rank") == [["32", "a"]] and "8      b, c" in text
    assert "* best: a\n" in text
    assert "^ test NLL is higher at the last evaluation than at the best step\n" in text
    assert "not evaluated on this test set: c\n" in text
    assert "One run of each config compares these checkpoints, not the configs." in text
    assert "The best step of several was chosen on the test set that it is reported on" in text
    assert max(map(len, text.splitlines())) <= 80


def test_one_run_is_not_the_best(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 4.5), last_row(1, 4.0)])
    text = printed(load_runs(tmp_path))
    assert "*" not in text and "^" not in text and "do not differ" not in text


def test_runs_on_different_test_sets_are_told_apart_and_none_is_marked(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 3.0)], test={"": "aaaa1111"})
    make_run(tmp_path / "b", [train_row(0, 4.0, 2.0)], test={"": "bbbb2222"})
    make_run(tmp_path / "c", [train_row(0, 4.0, 1.0)], test={"": "aaaa1111"})
    text = printed(load_runs(tmp_path), width=100)
    assert "TEST SETS DIFFER: test NLLs compare only between runs of one line, and no best run is marked:" in text
    assert "  aaaa1111: a, c\n  bbbb2222: b\n" in text
    assert "*" not in text


def test_runs_without_config_are_labelled(tmp_path):
    for name in ("a", "b"):
        (make_run(tmp_path / name, [train_row(0, 4.0, 3.0)], evaluated=False) / "config.json").unlink()
    text = printed(load_runs(tmp_path), width=100)
    assert "no config.json: a, b\n" in text
    assert "TEST SETS UNKNOWN: no fingerprint says that these runs share one, and no best run is marked\n" in text
    assert "*" not in text


def test_equal_configs_and_the_chosen_test_set(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, [train_row(0, 4.0, {"math": 3.0})], test={"math": "aa"})
    text = printed(load_runs(tmp_path), on="math")
    assert "NLL in nats per token, test set math" in text
    assert "* best: a, b\n" in text
    assert "The configs do not differ.\n" in text


def test_what_a_config_has_not_is_no_value(tmp_path):
    make_run(tmp_path / "a", [], warmup_steps=None)
    make_run(tmp_path / "b", [], warmup_steps=3)
    make_run(tmp_path / "c", [])
    assert rows_of(printed(load_runs(tmp_path)), "warmup_steps") == [["-", "a,", "c"]]


def test_a_long_name_is_whole_in_a_pipe_and_folded_in_a_terminal(tmp_path):
    name = "sl_basic-" + "x" * 60 + "-[bold]-end"
    make_run(tmp_path / name, [train_row(0, 4.0, 3.0)])
    runs = load_runs(tmp_path)

    assert [len(cells) for cells in rows_of(printed(runs), name)] == [7, 5]
    lines = printed(runs, terminal=True).splitlines()
    assert max(map(len, lines)) == 80
    first = next(i for i, line in enumerate(lines) if line.startswith("sl_basic-"))
    assert "".join(line.split()[0] for line in lines[first : first + 4]).startswith(name)
    assert lines[first].endswith("-1.0000 ")


def of_30(nll):
    """Thirty examples of five loss-carrying tokens each."""
    return scored([nll * 5] * 30, [5] * 30)


def test_verdicts_say_what_was_shown_and_of_what(tmp_path):
    for name, nll in (("a", 2.0), ("b", 1.9), ("c", 2.1)):
        make_run(tmp_path / name, [train_row(0, 4.0), last_row(1, nll)], examples=of_30(nll))
    text = printed(load_runs(tmp_path))
    assert "\nAgainst a: last evaluations " in text
    assert rows_of(text, "b")[-1] == ["1", "-0.1000", "-0.1000", "to", "-0.1000", "0.0020", "better", "100%", "<.0001"]
    assert rows_of(text, "c")[-1] == ["1", "+0.1000", "+0.1000", "to", "+0.1000", "0.0020", "worse", "0%", "<.0001"]
    words = " ".join(text.split())
    assert "diff = test NLL - that of a, nats per token, on the same 30 examples; its interval (95 % for all 2" in words
    assert "This is about these checkpoints, on other examples like these." in words
    assert "One run of each config compares these checkpoints, not the configs." in words
    assert max(map(len, text.splitlines())) <= 80


def test_configs_are_compared_where_there_are_seeds(tmp_path):
    for seed, nll in enumerate((2.0, 2.1)):
        make_run(tmp_path / f"a{seed}", [last_row(1, nll)], examples=of_30(nll), seed=seed)
        make_run(tmp_path / f"b{seed}", [last_row(1, nll + 1)], examples=of_30(nll + 1), seed=seed, lora_rank=8)
    text = printed(load_runs(tmp_path))
    assert "\nConfigs, by the spread between their seeds: last evaluations " in text
    assert rows_of(text, "a0, a1") == [["a1", "2", "2.0500", "-", "-", "-", "baseline"]]
    assert rows_of(text, "b0, b1")[0][:3] == ["b1", "2", "3.0500"] and rows_of(text, "b0, b1")[0][-1] == "worse"
    words = " ".join(text.split())
    assert "Configs: Welch's t interval (95 %) and t test (Holm-corrected) over the test NLLs of their seeds." in words
    assert "This is about other seeds of these configs, on this test set." in words
    assert "One run of each config" not in words


def test_the_chosen_point_is_named(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, [train_row(0, 4.0, 3.0), last_row(1, 2.0)], examples=of_30(2.0))
    runs = load_runs(tmp_path)

    def titles(at, x="step"):
        file = io.StringIO()
        print_report(make_report(runs, judgement=judge(runs, at=at, x=x)), Console(file=file, width=80))
        return [
            line.rstrip() for line in file.getvalue().splitlines() if line.startswith(("At ", "Against ", "!", "~"))
        ]

    assert titles("last") == ["Against a: last evaluations"]
    assert titles("best") == ["Against a: best evaluations (chosen on this test set)"]
    assert titles("common", "tokens") == ["At tokens 100", "Against a: at tokens 100"]
    assert titles(0.5) == ["At step 0.5", "~ the last evaluation before", "Against a: at step 0.5"]
    assert titles(2) == ["At step 2", "! the run's last evaluation", "Against a: at step 2"]


def test_where_a_run_began_to_overfit_is_noted_and_where_it_may_have_is_not(tmp_path):
    nlls = (3.0, 2.0, 2.5, 2.6, 2.7)
    rows = [train_row(k, train, nlls[k]) for k, train in enumerate((4.0, 3.5, 3.4, 2.1, 2.0)[:5])]
    run = make_run(tmp_path / "a", rows, evaluated=False)
    for step, nll in enumerate(nlls):
        run.append_eval_examples([{"step": step, "set": "", "fingerprint": "feed"} | of_30(nll)])
    make_run(tmp_path / "b", rows)
    text = printed(load_runs(tmp_path), width=200)
    assert "test NLL turned up while train NLL fell: a (after step 1: +0.7000, +0.7000 to +0.7000)\n" in text
    assert "2.7000^" in text


def test_no_verdict_has_its_reason_and_no_table_of_nothing(tmp_path):
    make_run(tmp_path / "a", [last_row(1, 2.0)], examples=of_30(2.0))
    make_run(tmp_path / "b", [last_row(1, 1.0)], examples=of_30(1.0), test={"": "dead"})
    text = printed(load_runs(tmp_path), width=200)
    assert f"b: no verdict: tested on other data (dead, the baseline on feed): {_SAME_DATA}\n" in text
    assert "Against" not in text and "diff =" not in text
    make_run(tmp_path / "x" / "c", [train_row(0, 4.0)])
    make_run(tmp_path / "x" / "d", [train_row(0, 4.0)])
    assert "verdict" not in printed(load_runs(tmp_path / "x"))


def test_resumes_are_noted_with_the_rows_that_they_put_aside(tmp_path):
    run = make_run(tmp_path / "a", [train_row(k, 4.0 - k) for k in range(3)], state=None)
    run.supersede(2, attempt=2)
    run.append_metrics(train_row(2, 2.5))
    run.append_attempt({"attempt": 2, "event": "start", "ts": 3, "next_step": 2})
    make_run(tmp_path / "b", [train_row(0, 4.0)])
    text = printed(load_runs(tmp_path))
    assert "resumed: a (at step 2)\n" in text
    assert "rows that a resume could not reproduce, and put aside: a (1)\n" in text


def test_a_part_that_is_made_elsewhere_is_shown_like_the_others(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 3.0)])
    report = make_report(load_runs(tmp_path))
    report.sections.append(Section("slices", "By slice", ("slice", "NLL"), [["maths", "2.0000"]], words=("slice",)))
    file = io.StringIO()
    print_report(report, Console(file=file, width=80))
    assert "\nBy slice      \nslice     NLL \n──────────────\nmaths  2.0000 \n" in file.getvalue()


def test_the_best_of_one_evaluation_was_not_chosen(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, [train_row(0, 4.0), last_row(1, 2.0)], examples=of_30(2.0))
    runs = load_runs(tmp_path)
    sections = make_report(runs, judgement=judge(runs, at="best")).sections
    assert [section.title for section in sections if section.key == "against"] == ["Against a: best evaluations"]


def test_another_test_set_is_offered_where_the_best_step_was_chosen_on_the_one_that_is_reported(tmp_path):
    row = last_row(1, {"": 2.0, "my set": 2.5})
    make_run(tmp_path / "a", [train_row(0, 4.0, 3.0), row], test={"": "feed", "my set": "aa"})
    runs = load_runs(tmp_path)
    footnote = make_report(runs).footnotes[0].splitlines()
    assert footnote[1].endswith("its NLL looks better than it is. There is another one: --on 'my set'.")
    assert len(make_report(runs, "my set").footnotes[0].splitlines()) == 1  # one evaluation on it: nothing was chosen


def test_a_point_before_every_evaluation_has_its_reason(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, [train_row(0, 4.0), last_row(1, 2.0)], examples=of_30(2.0))
    runs = load_runs(tmp_path)
    (section,) = [s for s in make_report(runs, judgement=judge(runs, at=0.5)).sections if s.key == "against"]
    assert section.notes == ["no run has an evaluation at or before step 0.5: choose another --at"]


def test_where_interval_and_p_do_not_agree_it_is_said(tmp_path):
    noise = np.random.default_rng(2).normal(size=30)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    between = stats.t.ppf(0.0105, 29) / np.sqrt(30)  # p 0.021: below 0.05 / 2, which Holm asks, and above 0.05 / 3
    for name, differences in (("a", 0 * noise), ("b", noise - 5), ("c", noise + between), ("d", noise)):
        nll = 20 + differences
        make_run(tmp_path / name, [last_row(1, float(nll.mean()) / 5)], examples=scored(nll.tolist(), [5] * 30))
    runs = load_runs(tmp_path)
    judgement = judge(runs)
    assert judgement.against["verdict"].to_dict() == {"b": "better", "c": "not told apart", "d": "not told apart"}
    assert judgement.against["p"].to_dict()["c"] < 0.05
    (section,) = [s for s in make_report(runs, judgement=judgement).sections if s.key == "against"]
    assert section.notes == [
        "interval and p do not agree on 0: c: all intervals hold at once, p are corrected one after another; better "
        "and worse take both"
    ]


def test_nulls_in_attempts_are_as_good_as_nothing(tmp_path):
    run = make_run(tmp_path / "a", [train_row(0, 4.0, 3.0)], state=None)
    run.append_attempt({"attempt": 2, "event": "start", "ts": None, "next_step": None, "changed": None})
    run.append_attempt({"attempt": 2, "event": "end", "ts": None, "state": None})
    report = make_report(load_runs(tmp_path))
    assert report.runs.states == {"a": "KILLED"} and "resumed: a (at step 0)" in report.sections[1].notes
    assert "KILLED" in printed(report.runs)
    assert render_page(report)


def test_what_a_terminal_would_obey_is_shown_and_not_done(tmp_path):
    names = ("a\x1b[2J", "[red]b\x07")
    for name in names:
        make_run(tmp_path / name, [train_row(0, 4.0), last_row(1, 2.0)], examples=of_30(2.0), note="\x1b]0;x\x07")
    make_run(tmp_path / "c", [], stop=["\x1b[1m"], state=None)
    text = printed(load_runs(tmp_path), width=200)
    assert not {"\x1b", "\x07"} & set(text)
    assert "* best: " in text and "a\\x1b[2J" in text and "Against [red]b\\x07: last evaluations" in text
