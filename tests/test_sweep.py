import asyncio
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from harness.exceptions import HarnessError
from harness.supervised import train
from harness.sweep import plan, report
from harness.sweep_record import read_record
from tests.compare.made_runs import make_run, train_row
from tests.sweeps import write_recipe

ROOT = Path("runs/sw")


@pytest.fixture(autouse=True)
def working(tmp_path, monkeypatch):
    write_recipe(tmp_path, monkeypatch)
    return tmp_path


def planned(*overrides, recipe="toy", root=ROOT):
    return plan(recipe, overrides, root)


def train_here(sweep, *names):
    """In this process: the recipe's own is tested with the command."""
    for run in sweep.runs:
        if not names or run.name in names:
            asyncio.run(train.main(run.config))


def refusal(*overrides, **where):
    with pytest.raises(HarnessError) as refused:
        planned(*overrides, **where)
    return str(refused.value)


def test_every_combination_has_a_directory_and_a_command_of_its_own():
    sweep = planned("learning_rate=[0.1,0.3]", "max_steps=3", "dataset_builder.batch_size=[2,4]", "seed=[0]")
    assert [run.name for run in sweep.runs] == [
        "batch_size=2,learning_rate=0.1,seed=0",
        "batch_size=4,learning_rate=0.1,seed=0",
        "batch_size=2,learning_rate=0.3,seed=0",
        "batch_size=4,learning_rate=0.3,seed=0",
    ]
    last = sweep.runs[-1]
    Builder = sys.modules["toy"].Builder
    assert last.settings == {"learning_rate": "0.3", "batch_size": "4", "seed": "0"}
    assert (last.config.learning_rate, last.config.max_steps, last.config.dataset_builder) == (
        0.3,
        3,
        Builder(batch_size=4),
    )
    assert last.command == [
        sys.executable, "-m", "toy", "max_steps=3", "learning_rate=0.3", "dataset_builder.batch_size=4", "seed=0",
        f"log_path=runs/sw/{last.name}",
    ]  # fmt: skip
    record = read_record(ROOT)
    assert record is not None
    assert record.grid == {"learning_rate": ["0.1", "0.3"], "batch_size": ["2", "4"], "seed": ["0"]}
    assert (record.recipe, record.runs) == ("toy", [run.name for run in sweep.runs])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lerning_rate=[0.1]"], "lerning_rate=0.1: lerning_rate: no such option; did you mean learning_rate? (--hel"),
        (
            ["seed=[0]", "max_stepps=4"],
            "seed=0: max_stepps: no such option; did you mean max_steps? (--help lists all)",
        ),
        (["learning_rate=[0.1,high]"], "learning_rate=high: learning_rate=high: not a float (--help lists all)"),
        (["seed=[0,1]", "learning_rate=[0.1,0]"], "learning_rate=0,seed=0: learning_rate=0.0: must be greater than 0"),
        (
            ["batch_size=[4,5]"],
            "batch_size=4: batch_size=4 cannot reach Builder, which has no common_config.batch_size",
        ),
        (
            ["learning_rate=[1e-4,0.0001]"],
            "learning_rate=0.0001 is the same config as learning_rate=1e-4: leave one of",
        ),
    ],
)
def test_a_mistake_in_any_combination_is_told_before_anything_is_written(overrides, message):
    assert refusal(*overrides).startswith(message)
    assert not ROOT.exists()


def test_a_sweep_keeps_to_its_folder():
    assert refusal("seed=[0]", recipe="toi") == (
        "seed=0: 'toi': no such module: give what stands after python -m, as recipes.sl_basic"
    )
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("")
    assert refusal("seed=[0]", root=Path("mine")) == (
        "mine: there is something in it, and no sweep's sweep.json: choose another --root"
    )
    assert refusal("seed=[0]", root=Path("toy.py")) == (
        "toy.py: cannot be read (Not a directory): choose another --root"
    )
    assert refusal("seed=[0]", root=Path("toy.py/sw")) == (
        "toy.py/sw: cannot be read (Not a directory): choose another --root"
    )
    planned("seed=[0]")
    Path("other.py").write_text(Path("toy.py").read_text())
    assert refusal("seed=[0]", recipe="other") == "runs/sw holds a sweep of toy: choose another --root"
    (ROOT / "sweep.json").write_text("{")
    assert "sweep.json: not a sweep's" in refusal("seed=[0]")


def test_more_values_find_the_runs_that_are_there_and_their_config_decides():
    train_here(planned("learning_rate=[0.1]", "seed=[0]"))
    sweep = planned("seed=[1,0]", "learning_rate=[0.1,0.3]")
    assert [run.name for run in sweep.runs if run.is_complete()] == ["learning_rate=0.1,seed=0"]
    # another parameter is another run, also where it has the value that it had
    wider = planned("seed=[0]", "learning_rate=[0.1]", "dataset_builder.batch_size=[4]")
    assert not any(run.run.exists() for run in wider.runs)
    # more steps of the same: it goes on
    longer = planned("learning_rate=[0.1]", "seed=[0]", "max_steps=5")
    assert longer.runs[0].run.exists() and not longer.runs[0].is_complete()

    before = read_record(ROOT)
    assert refusal("seed=[0]", "learning_rate=[0.1]", "lora_rank=4") == (
        "runs/sw/learning_rate=0.1,seed=0 holds a run of another config (lora_rank: 32 there, 4 here): restore these, "
        "choose another log_path, or train anew: python -m harness rerun runs/sw/learning_rate=0.1,seed=0 log_path=… "
        "key=value; or sweep under another --root"
    )
    assert read_record(ROOT) == before


def test_a_script_is_the_module_of_its_name_wherever_it_lies(working, monkeypatch):
    write_recipe(working, monkeypatch, "scripts/my-toy.py")
    sweep = planned("seed=[0]", recipe="scripts/my-toy.py")
    assert sweep.runs[0].command[:3] == [sys.executable, "-m", "my-toy"]
    assert sweep.environment["PYTHONPATH"].startswith(f"{working}/scripts:")
    assert type(sweep.runs[0].config.dataset_builder).__module__ == "my-toy"
    assert refusal("seed=[0]", recipe="scripts/none.py") == "scripts/none.py: no such script"
    for name in ("json", "v1.2", "toy"):  # the standard library's; no module's name; one that lies here too
        Path(f"scripts/{name}.py").write_text("")
        assert refusal("seed=[0]", recipe=f"scripts/{name}.py") == (
            f"scripts/{name}.py: python -m {name} is something else: rename the script"
        )


def test_a_number_that_is_written_otherwise_is_the_same_run():
    planned("learning_rate=[1e-1]", "seed=[0]")
    train_here(planned("learning_rate=[1e-1]", "seed=[0]"))
    sweep = planned("learning_rate=[0.1,0.2]", "seed=[0,1]")
    assert [(run.name, run.is_complete()) for run in sweep.runs] == [
        ("learning_rate=1e-1,seed=0", True),
        ("learning_rate=0.1,seed=1", False),
        ("learning_rate=0.2,seed=0", False),
        ("learning_rate=0.2,seed=1", False),
    ]
    assert sweep.runs[0].settings == {"learning_rate": "0.1", "seed": "0"}
    assert refusal("learning_rate=[1e-1,0.1]", "seed=[0]") == (
        "learning_rate=0.1,seed=0 is the same config as learning_rate=1e-1,seed=0: leave one of the values out"
    )


def test_a_script_is_the_same_however_its_path_is_written(working):
    planned("seed=[0]", recipe="./toy.py")
    for same in ("toy.py", f"{working}/toy.py"):
        assert planned("seed=[0]", recipe=same).runs
    assert refusal("seed=[0]", recipe="toy") == "runs/sw holds a sweep of " + f"{working}/toy.py: choose another --root"


def test_what_stands_in_the_place_of_a_run_or_a_record_is_one_line():
    planned("seed=[0]")
    (ROOT / "seed=1").write_text("mine")
    assert refusal("seed=[0,1]") == (
        f"{ROOT.absolute()}/seed=1/metrics.jsonl: cannot be read (Not a directory): choose another --root"
    )
    (ROOT / "sweep.json").unlink()
    (ROOT / "sweep.json").mkdir()
    assert refusal("seed=[0]") == "runs/sw/sweep.json: cannot be read (Is a directory): choose another --root"


def test_a_figure_of_the_users_own_is_not_replaced():
    planned("learning_rate=[0.1,0.3]")
    (ROOT / "responses.png").write_bytes(b"mine")
    assert refusal("learning_rate=[0.1,0.3]") == (
        "runs/sw/responses.png: there already, and no sweep drew it: move it, or choose another --root"
    )
    assert (ROOT / "responses.png").read_bytes() == b"mine"


def test_a_recipe_that_trains_elsewhere_is_refused(working):
    text = (working / "toy.py").read_text().replace("def build_config_blueprint", "def blueprint")
    text += """
def build_train_config(cli_config: train.Config) -> train.Config:
    return chz.replace(cli_config, log_path="runs/fixed")
"""
    (working / "fixed.py").write_text(text)
    arguments = ["model_name=m", "dataset_builder=tests.fakes:WordsBuilder", "backend=tests.fakes:FakeBackend"]
    assert refusal("seed=[0]", *arguments, recipe="fixed") == (
        "fixed trains into runs/fixed, not the log_path that it is given: a sweep needs it to"
    )


def test_no_secret_is_noted(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["harness", "sweep", "toy", "tracking_uri=http://ann:hidden@host", "seed=[0]"])
    planned("seed=[0]", "tracking_uri=http://ann:hidden@host")
    assert "hidden" not in (ROOT / "sweep.json").read_text()


def printed(sweep):
    out = io.StringIO()
    report(sweep, Console(file=out, width=60))
    return out.getvalue()


def test_the_report_compares_what_is_there_and_draws_the_responses():
    sweep = planned("learning_rate=[0.1,0.3]", "seed=[0,1]")
    assert printed(sweep) == ""  # nothing was trained
    train_here(sweep, "learning_rate=0.1,seed=0", "learning_rate=0.1,seed=1", "learning_rate=0.3,seed=0")
    said = printed(sweep)
    assert "NLL in nats per token" in said and "Config differences" in said
    cells = [line.split() for line in said.splitlines()]
    assert ["learning_rate", "0.1", "2"] in [row[:3] for row in cells] and ["0.3", "1"] in [row[:2] for row in cells]
    assert said.endswith("wrote runs/sw/responses.png\n")
    assert (ROOT / "responses.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_alone_draw_nothing_and_named_test_sets_are_judged_by_the_first():
    sweep = planned("seed=[0,1]", "dataset_builder.named_test_sets=true")
    train_here(sweep)
    said = printed(sweep)
    assert "NLL in nats per token, test set first" in said and "Response" not in said
    assert not (ROOT / "responses.png").exists()


def test_runs_without_a_test_set_are_compared_too():
    sweep = planned("learning_rate=[0.1,0.3]", "dataset_builder.num_test=0")
    train_here(sweep)
    assert "Trained" in printed(sweep) and not (ROOT / "responses.png").exists()
    assert json.loads((ROOT / "sweep.json").read_text())["runs"] == ["learning_rate=0.1", "learning_rate=0.3"]


def test_runs_that_were_never_evaluated_are_reported_too():
    """They died before it, on a test set that has a name."""
    sweep = planned("seed=[0,1]")
    for run in sweep.runs:
        make_run(run.run.path, [train_row(0, 4.0)], state="FAILED", test={"hard": "feed"}, evaluated=False)
    report(sweep, Console(file=(out := io.StringIO()), width=100))
    assert "seed=0" in out.getvalue() and "Response" not in out.getvalue()
