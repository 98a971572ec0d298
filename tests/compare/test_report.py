import io

from rich.console import Console

from harness.compare import load_runs, print_report
from tests.compare.made_runs import last_row, make_run, train_row


def printed(runs, *, width=80, terminal=False, on=""):
    file = io.StringIO()
    print_report(runs, Console(file=file, width=width, force_terminal=terminal, color_system=None), on)
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
    ]
    assert rows_of(text, "b") == [
        ["3.0000", "2", "3.0000", "2", "2.8765", "1", "+0.1235"],
        ["FINISHED", "2", "200", "80", "2.8765"],
    ]
    assert rows_of(text, "c") == [["-"] * 7, ["KILLED", "1", "1,234,500", "493,800", "4.0000"]]
    assert rows_of(text, "lora_rank") == [["32", "a"]] and "8      b, c" in text
    assert "* best: a\n" in text
    assert "^ test NLL is higher at the last evaluation than at the best step\n" in text
    assert "not evaluated on this test set: c\n" in text
    assert "One run of each config compares these checkpoints, not the configs." in text
    assert "The best step was chosen on the test set that it is reported on" in text
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
