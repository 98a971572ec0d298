import numpy as np

from harness.compare import figures, judge, load_runs, make_report
from harness.compare.figures import make_figures, thin
from tests.compare.made_runs import last_row, make_run, scored, train_row


def drawn(runs, **judged):
    return {figure.key: figure for figure in make_figures(make_report(runs, judgement=judge(runs, **judged)))}


def points(figure, run, kind):
    """(x, y) of a run's trace."""
    found = [trace for trace in figure.traces if trace["meta"] == {"run": run, "kind": kind}]
    assert len(found) == 1
    return list(zip(found[0]["x"], found[0]["y"], strict=True))


def test_the_points_are_those_of_the_files(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 0.1 + 0.2), train_row(1, 1 / 3), last_row(2, 2.0)])
    make_run(tmp_path / "b", [train_row(0, 3.0)])
    found = drawn(load_runs(tmp_path))
    assert list(found) == ["curves", "gap"]
    assert points(found["curves"], 0, "train") == [(0, 4.0), (1, 1 / 3)]
    assert points(found["curves"], 0, "test") == [(0, 0.1 + 0.2), (2, 2.0)]
    assert points(found["curves"], 1, "train") == [(0, 3.0)] and points(found["curves"], 1, "test") == []
    assert points(found["gap"], 0, "gap") == [(0, 0.1 + 0.2 - 4.0), (2, 2.0 - 1 / 3)]
    assert found["curves"].layout["xaxis"]["title"]["text"] == "step (updates made)"
    assert found["curves"].layout["yaxis"]["title"]["text"] == "NLL (nats per token)"


def test_another_axis_keeps_the_step_for_the_hover(tmp_path):
    make_run(tmp_path / "a", [train_row(0, 4.0, 3.0), last_row(1, 2.0)])
    figure = drawn(load_runs(tmp_path), x="tokens")["curves"]
    test = figure.traces[1]
    assert (test["x"], test["customdata"]) == ([0, 100], [0, 1])
    assert test["hovertemplate"].startswith("<b>%{fullData.name}</b><br>step %{customdata:,}, tokens %{x:,.10~g}<br>")
    assert figure.layout["xaxis"]["title"]["text"] == "tokens trained on"


def test_a_resume_is_marked_where_it_went_on(tmp_path):
    run = make_run(tmp_path / "a", [train_row(k, 4.0 - k) for k in range(3)], state=None)
    run.supersede(2, attempt=2)
    run.append_metrics(train_row(2, 2.5))
    for attempt, step in ((2, 1), (3, 7)):  # the third was killed before its first update
        run.append_attempt({"attempt": attempt, "event": "start", "ts": 1, "next_step": step})
    figure = drawn(load_runs(tmp_path))["curves"]
    assert points(figure, 0, "resume") == [(1, 3.0)]
    assert figure.traces[-1]["text"] == ["attempt 2 went on at step 1<br>rows put aside: 1"]
    assert figure.notes[-1] == "Triangles that point right: an attempt went on here."


def test_differences_stand_in_a_row_each_by_their_verdicts(tmp_path):
    for name, nll in (("a", 2.0), ("b", 1.9), ("c", 2.1), ("d", 1.95)):
        make_run(tmp_path / name, [last_row(1, nll)], examples=scored([nll * 5] * 30, [5] * 30))
    make_run(tmp_path / "none", [train_row(0, 4.0)])
    runs = load_runs(tmp_path)
    figure = drawn(runs)["against"]
    assert {trace["name"]: trace["y"] for trace in figure.traces} == {"better": [0, 2], "worse": [1]}
    better = figure.traces[0]
    table = judge(runs).against
    assert better["x"] == [table["difference"]["b"], table["difference"]["d"]]
    ends = better["error_x"]
    assert ends["array"][1] == table["high"]["d"] - table["difference"]["d"]
    assert ends["arrayminus"][1] == table["difference"]["d"] - table["low"]["d"]
    assert better["text"][0] == "<b>b</b> better<br>-0.1000 (-0.1000 to -0.1000)<br>Holm p 0.0030"
    assert [label["text"] for label in figure.layout["annotations"]] == [
        "<b>b</b><br>better",
        "<b>c</b><br>worse",
        "<b>d</b><br>better",
    ]


def test_a_long_name_is_shortened_to_what_a_phone_has_room_for(tmp_path):
    for name in ("a", "b" * 20 + "c" * 20):
        make_run(tmp_path / name, [last_row(1, 2.0)])
    (label,) = drawn(load_runs(tmp_path))["against"].layout["annotations"]
    assert label["text"] == f"<b>{'b' * 15}…{'c' * 15}</b><br>no verdict"


def test_curves_of_different_test_sets_are_said_not_to_compare(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, [last_row(1, 2.0)], test={"": name})
    first = drawn(load_runs(tmp_path))["curves"].notes[0]
    assert first == "Test sets differ or are unknown: test curves do not compare."


def test_too_few_examples_have_a_difference_and_no_interval(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, [last_row(1, 2.0)])
    (trace,) = drawn(load_runs(tmp_path))["against"].traces
    assert trace["name"] == "no verdict" and trace["x"] == [0.0] and "error_x" not in trace


def test_configs_are_drawn_where_there_are_seeds(tmp_path):
    for seed, nll in enumerate((2.0, 2.1)):
        make_run(tmp_path / f"a{seed}", [last_row(1, nll)], seed=seed)
        make_run(tmp_path / f"b{seed}", [last_row(1, nll + 1)], seed=seed, lora_rank=8)
    figure = drawn(load_runs(tmp_path))["configs"]
    assert figure.traces[0]["text"][0].startswith("<b>b0, b1</b> worse<br>+1.0000 (")
    assert figure.title == "Differences from the config of a0"


def test_what_a_user_named_is_text_for_plotly_too(tmp_path):
    for name in ("a", "<b>x&"):
        make_run(tmp_path / name, [train_row(0, 3.0), last_row(1, 2.0)])
    found = drawn(load_runs(tmp_path), baseline="a")
    assert [trace["name"] for trace in found["gap"].traces + found["curves"].traces if trace["meta"]["run"] == 0] == [
        "&lt;b&gt;x&amp;"
    ] * 3
    assert "&lt;b&gt;x" in found["against"].traces[0]["text"][0]
    assert found["against"].layout["annotations"][0]["text"] == "<b>&lt;b&gt;x&amp;</b><br>no verdict"


def test_runs_look_different_also_once_the_colours_are_used_up():
    looks = {(figures.colour(i), figures.symbol(i), figures.dash(i)) for i in range(50)}
    assert len(looks) == 50
    assert len({figures.colour(i) for i in range(10)}) == 10


def test_thinning_keeps_order_extremes_and_what_is_few():
    values = np.sin(np.arange(1000.0))
    values[[123, 877]] = -9, 9
    kept = thin(values, 100)
    assert 50 <= len(kept) <= 100 and {123, 877} <= set(kept.tolist()) and (np.diff(kept) > 0).all()
    assert thin(values[:7], 7).tolist() == list(range(7)) and thin(values[:0], 0).tolist() == []


def test_a_page_of_too_many_points_thins_train_and_no_evaluation_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "MAX_TRAIN_POINTS", 40)
    make_run(tmp_path / "a", [train_row(k, float(k % 7), 2.0) for k in range(60)])
    make_run(tmp_path / "b", [train_row(k, 1.0) for k in range(20)])
    figure = drawn(load_runs(tmp_path))["curves"]
    num = len(points(figure, 0, "train")) + len(points(figure, 1, "train"))
    assert 20 < num <= 40 and len(points(figure, 0, "test")) == 60
    assert any(note.startswith(f"Of 80 batches {num} are drawn, the lowest and the highest") for note in figure.notes)
