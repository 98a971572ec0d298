import pytest

from harness.compare import load_runs, plot
from harness.exceptions import ConfigError
from tests.compare.made_runs import last_row, make_run, realistic_rows, train_row

STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", STARTS)
def test_the_suffix_chooses_the_format_and_a_file_is_replaced(tmp_path, suffix):
    for i, floor in enumerate((1.5, 1.4)):
        make_run(tmp_path / f"run{i}", realistic_rows(40, 10, floor=floor, speed=0.8, overfit=0.2, seed=i))
    path = tmp_path / f"nll{suffix}"
    path.write_text("of an earlier comparison")
    plot(load_runs(tmp_path), path)
    assert path.read_bytes().startswith(STARTS[suffix])


def svg(tmp_path, runs, on="", x="step"):
    """The figure as SVG, which names each text that it draws in a comment."""
    path = tmp_path / "figure.svg"
    plot(runs, path, on, x)
    return path.read_text()


def test_every_run_stands_in_the_legend_under_its_own_name(tmp_path):
    for name in ("_hidden", "$a_$", "plain"):
        make_run(tmp_path / name, [train_row(0, 4.0, 3.0), last_row(1, 2.0)])
    make_run(tmp_path / "without-test", [train_row(0, 4.0)])
    drawn = svg(tmp_path, load_runs(tmp_path))
    for text in ("_hidden", "$a_$", "plain", "without-test", "step (updates made)", "NLL (nats per token)"):
        assert f"<!-- {text} -->" in drawn
    assert "test sets" not in drawn


def test_names_in_any_script_are_drawn_without_a_word_of_fonts(tmp_path, recwarn):
    make_run(tmp_path / "学习率-ไทย", [train_row(0, 4.0, 3.0), last_row(1, 2.0)])
    plot(load_runs(tmp_path), tmp_path / "x.png")
    assert not recwarn.list


def test_the_title_names_the_test_set(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, {"math": 3.0})], test={"math": "aa"})
    assert "test set math" in svg(tmp_path, load_runs(tmp_path / "a"), on="math")


def test_the_figure_says_that_test_sets_differ(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, [train_row(0, 4.0, 3.0)], test={"": name})
    assert "test sets differ or are unknown: test curves do not compare" in svg(tmp_path, load_runs(tmp_path))


def test_the_axis_is_the_users(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 3.0), last_row(1, 2.0)])
    assert "<!-- tokens trained on -->" in svg(tmp_path, load_runs(tmp_path / "a"), x="tokens")
    with pytest.raises(ConfigError, match=r"^no run's NLLs have a place on the epoch axis: choose another --x$"):
        plot(load_runs(tmp_path / "a"), tmp_path / "x.png", x="epoch")


@pytest.mark.parametrize("name", ["nll.csv", "nll"])
def test_another_suffix_is_refused(tmp_path, name):
    make_run(tmp_path / "a", [train_row(0, 4.0, 3.0)])
    with pytest.raises(ConfigError, match=rf"{name}: a figure is a \.png, \.svg, \.pdf file: end its name in one"):
        plot(load_runs(tmp_path), tmp_path / name)


def test_a_folder_that_is_not_there_and_runs_without_numbers_are_refused(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 3.0)])
    make_run(tmp_path / "empty", [])
    with pytest.raises(
        ConfigError, match=r"x\.png: cannot be written \(No such file or directory\): choose another file"
    ):
        plot(load_runs(tmp_path), tmp_path / "nowhere" / "x.png")
    with pytest.raises(ConfigError, match=r"^no run holds a train or test NLL yet: nothing to draw$"):
        plot(load_runs(tmp_path / "empty"), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
