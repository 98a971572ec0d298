import dataclasses
import io
import json

import pytest
from rich.console import Console

from harness.disk_usage import in_words, size_of
from harness.exceptions import ConfigError
from harness.listing import COLUMNS, filtered, list_run, ordered, tab_separated, table
from harness.run_dir import CheckpointRecord, RunDir
from harness.run_tags import change_tags
from tests.compare.made_runs import last_row, make_run, train_row
from tests.compare.test_tinker_cookbook import make as make_theirs
from tests.compare.test_tinker_cookbook import row

STARTED = 1_790_000_000_000


def record(step, **more):
    return CheckpointRecord(f"{step:06d}", step, 0, step, f"checkpoints/{step:06d}", **more)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """a: finished, 2 of 2 updates; b: killed after 1 of them, no evaluation; c: a damaged one."""
    monkeypatch.chdir(tmp_path)
    rows = [train_row(0, 4.0, 4.5), train_row(1, 3.5, 2.5, tokens=120), last_row(2, 3.0)]
    a = make_run(tmp_path / "a", rows, document={"started": STARTED}, tags={"team": "x"}, learning_rate=1e-4)
    b = make_run(tmp_path / "b", [train_row(0, 4.0)], state=None, model_name="b", learning_rate=2e-4)
    with a.lock(), b.lock():
        a.append_attempt({"attempt": 2, "event": "start", "ts": 3, "argv": [], "total_steps": 2})
        a.append_attempt({"attempt": 2, "event": "end", "ts": 4, "state": "FINISHED", "error": None})
        b.append_checkpoint(record(1))
        for step in (1, 2):
            a.append_checkpoint(record(step))
        a.append_checkpoint(record(1, deleted=True))
    (tmp_path / "a" / "checkpoints" / "000002").mkdir(parents=True)
    (tmp_path / "a" / "checkpoints" / "000002" / "state").write_bytes(b"x" * 100_000)
    make_run(tmp_path / "c", [train_row(0, 4.0)])
    (tmp_path / "c" / "attempts.jsonl").write_text("nonsense\n{}\n")
    return [list_run(RunDir(tmp_path / name)) for name in "abc"]


def names(runs):
    return "".join(run.run for run in runs)


def test_what_is_said_of_a_run(runs):
    a, b, _ = runs
    said = {column: a.value(column) for column in COLUMNS if column != "size"}
    assert said == {
        "run": "a",
        "state": "FINISHED",
        "steps": 2,
        "planned": 2,
        "last": 3.0,
        "best": 2.5,
        "best_step": 1,
        "model": "HuggingFaceTB/SmolLM2-135M",
        "tokens": 220,
        "checkpoints": 1,
        "started": "2026-09-21 14:13:20",
        "tags": "team=x",
    }
    files = [path for path in RunDir("a").path.rglob("*") if path.is_file()]
    assert a.size == sum(path.stat().st_size for path in files) > 100_000
    assert (b.state, b.steps, b.planned, b.last, b.best, b.best_step, b.tokens) == (
        "KILLED",
        1,
        None,
        None,
        None,
        None,
        100,
    )


def test_a_damaged_run_does_not_stop_the_list(runs, tmp_path):
    damaged = runs[2]
    assert (damaged.run, damaged.state, damaged.steps) == ("c", "DAMAGED", None)
    assert str(damaged.problem).startswith(f"{tmp_path}/c/attempts.jsonl:1: not a JSON row")
    assert damaged.size == size_of(tmp_path / "c") > 0
    for document in ({"run_id": "x", "config": 5}, {"run_id": "x", "config": {}, "started": "then"}):
        (tmp_path / "b" / "config.json").write_text(json.dumps(document))
        odd = list_run(RunDir("b"))
        assert odd.state == "DAMAGED"
        assert str(odd.problem).startswith("b: not as the harness writes it (TypeError: ")


@pytest.mark.parametrize("change", [{"model_name": 5}, {"model_name": ["x"]}])
def test_what_could_not_be_shown_is_damage(runs, tmp_path, change):
    document = RunDir("a").config()
    (tmp_path / "a" / "config.json").write_text(json.dumps(document | {"config": document["config"] | change}))
    odd = list_run(RunDir("a"))
    assert odd.state == "DAMAGED" and "(TypeError: its model is " in str(odd.problem)
    assert printed([odd], 100)


def test_a_run_of_tinker_cookbook_is_listed_as_what_it_is(tmp_path):
    rows = [row(k, 4, 3.0 - k / 2, **{"test/nll": nll}) for k, nll in enumerate((3.5, 2.0, 2.5))]
    theirs = list_run(RunDir(make_theirs(tmp_path / "theirs", rows)))
    assert (theirs.state, theirs.problem) == ("FINISHED", None)
    assert (theirs.steps, theirs.last, theirs.best, theirs.best_step) == (3, 2.5, 2.0, 1)
    assert theirs.model == "Qwen/Qwen3-8B"
    assert filtered([theirs], ["learning_rate=1e-4"]) == [theirs]


def test_a_run_without_a_config_and_one_that_did_not_begin(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(train_row(0, 4.0, 3.0)) + "\n" + '{"step": 1, "num_tokens": 7')
    alone = list_run(RunDir(tmp_path))
    assert (alone.state, alone.steps, alone.last, alone.tokens, alone.model) == ("NEW", 1, 3.0, 100, None)
    new = make_run(tmp_path / "new", [])
    (new / "attempts.jsonl").unlink()
    assert (list_run(new).state, list_run(new).steps, list_run(new).tokens) == ("NEW", 0, 0)


def test_a_fork_has_evaluations_of_its_own_and_not_its_parents(tmp_path):
    rows = [train_row(step, 4.0, nll) for step, nll in enumerate([1.0, 2.0, 4.0, 3.0])]
    parent = {"run_id": "p", "path": "/p", "step": 2}
    fork = list_run(make_run(tmp_path / "f", [*rows, last_row(4, 3.5)], document={"parent": parent}))
    assert (fork.last, fork.best, fork.best_step) == (3.5, 3.0, 3)
    begun = list_run(make_run(tmp_path / "g", rows[:2], document={"parent": parent}))
    assert (begun.last, begun.best, begun.best_step) == (None, None, None)


def test_tags_that_were_changed_later_count(runs, tmp_path):
    change_tags(RunDir("a"), {"team": "y", "kept": "yes"}, 5)
    now = list_run(RunDir("a"))
    assert now.tags == "team=y kept=yes"
    assert filtered([now], ["tags.team=y", "tags.kept=yes"]) == [now]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["state=FINISHED"], "a"),
        (["state==finished"], "a"),
        (["state!=FINISHED"], "bc"),
        (["learning_rate=1e-4"], "a"),
        (["learning_rate=0.00020"], "b"),
        (["learning_rate>=1e-4"], "ab"),
        (["learning_rate>1e-4", "state=KILLED"], "b"),
        (["learning_rate>1e-4", "state=FINISHED"], ""),
        (["best<3.5"], "a"),
        (["best<=2.5"], "a"),
        (["best<2.5"], ""),
        (["best=None"], "bc"),
        (["tags.team=x"], "a"),
        (["tags.team!=x"], "bc"),
        (["tags.nobodys=None"], "abc"),
        (["tags.nobodys!=none"], ""),
        (["model=*smollm2*"], "a"),
        (["run=[bc]"], "bc"),
        (["started>2026-09"], "a"),
        (["dataset_builder.common_config.batch_size=8"], "ab"),
        (["checkpoints = 1"], "ab"),
    ],
)
def test_filters(runs, conditions, expected):
    assert names(filtered(runs, conditions)) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("run", "abc"),
        ("-run", "cba"),
        ("tokens", "bac"),
        ("-tokens", "abc"),
        ("best", "abc"),
        ("-learning_rate", "bac"),
    ],
)
def test_orders_with_those_that_lack_it_last(runs, key, expected):
    assert names(ordered(runs, key)) == expected


COLUMNS_NAMED = (
    "(columns: run, state, steps, planned, last, best, best_step, model, tokens, size, checkpoints, started, tags)"
)


@pytest.mark.parametrize(
    ("condition", "error"),
    [
        ("finished", "--filter finished: no condition: write KEY=VALUE, with =, !=, <, <=, > or >="),
        ("=x", "--filter =x: no condition: write KEY=VALUE, with =, !=, <, <=, > or >="),
        (
            "stat=x",
            f"--filter stat: no column, and no field of these runs' configs; did you mean state? {COLUMNS_NAMED}",
        ),
        (
            "batch_size=8",
            "--filter batch_size: no column, and no field of these runs' configs; did you mean "
            f"dataset_builder.common_config.batch_size? {COLUMNS_NAMED}",
        ),
        (
            "tags.tem=x",
            "--filter tags.tem: no column, and no field of these runs' configs; did you mean tags.team? "
            + COLUMNS_NAMED,
        ),
        ("zzz=x", f"--filter zzz: no column, and no field of these runs' configs {COLUMNS_NAMED}"),
        ("size>1GB", "--filter size>1GB: '1GB' is not a number"),
    ],
)
def test_conditions_that_cannot_be_used(runs, condition, error):
    with pytest.raises(ConfigError) as raised:
        filtered(runs, [condition])
    assert str(raised.value) == error


def test_an_order_by_what_nobody_has(runs):
    with pytest.raises(ConfigError, match=r"^--sort best_stp: no column, .*; did you mean best_step\? \("):
        ordered(runs, "-best_stp")


def test_for_programs_a_line_a_run_with_plain_values(runs):
    lines = [line.split("\t") for line in tab_separated(runs).splitlines()]
    assert tuple(lines[0]) == COLUMNS
    assert [len(line) for line in lines] == [len(COLUMNS)] * 4
    a, b = (dict(zip(lines[0], line, strict=True)) for line in lines[1:3])
    assert (a["best"], a["tokens"], a["size"], a["started"]) == ("2.5", "220", str(runs[0].size), "2026-09-21 14:13:20")
    assert (b["best"], b["state"]) == ("", "KILLED")


def printed(runs, width):
    console = Console(width=width, record=True, file=io.StringIO(), markup=False, highlight=False)
    console.print(table(runs, width))
    return console.export_text().splitlines()


def test_for_people_a_table(runs):
    head, a, b, c = [line.split() for line in printed(runs, 200)]
    assert head == [column for column in COLUMNS if column != "planned"]
    assert a[:8] == ["a", "FINISHED", "2/2", "3.0000", "2.5000", "1", "SmolLM2-135M", "220"]
    assert a[9:] == ["kB", "1", "2026-09-21", "14:13", "team=x"]
    assert b[:8] == ["b", "KILLED", "1", "-", "-", "-", "b", "100"]
    assert c[:3] == ["c", "DAMAGED", "-"]


def test_what_there_is_no_room_for_is_left_out_and_said(runs):
    width = max(map(len, printed(runs, 200)))
    assert len(printed(runs, width)) == 4
    *lines, note = printed(runs, width - 1)
    assert note.strip() == "no room for tokens: widen the window, or | cat"
    assert "tokens" not in lines[0] and "model" in lines[0]
    head, a, *_ = [line.split() for line in printed(runs, 60)]
    assert head == ["run", "state", "steps", "last", "best", "size", "tags"]
    assert a == ["a", "FINISHED", "2/2", "3.0000", "2.5000", *in_words(runs[0].size or 0).split(), "team=x"]


def test_long_names_and_many_tags_are_folded(runs):
    long = dataclasses.replace(runs[0], run="runs/" + "n" * 80, tags=" ".join(f"tag{i}=x" for i in range(9)))
    lines = printed([long], 100)
    assert "nnn  FINISHED" in lines[1] and max(map(len, lines)) <= 100
    assert sum(line.count("n") for line in lines[1:-1]) == 1 + 80  # of runs/, and the name
    assert [line[-40:].strip() for line in printed([long], 300)[1:]] == [
        "tag0=x tag1=x tag2=x tag3=x tag4=x", "tag5=x tag6=x tag7=x tag8=x",
    ]  # fmt: skip
