"""The main job on the real model and the real conversations: train, kill, resume, track, compare."""

import json
import signal
import subprocess

import pandas
import pytest

from harness.backends.base import ROUNDING
from harness.run_dir import RunDir
from tests.exportable import examples_of_test_set, score_in_a_plain_script

SMALL = (
    "max_steps=12",
    "dataset_builder.common_config.batch_size=4",
    "...max_length=64",
    "dataset_builder.test_size=8",
    "lora_rank=8",
    "--learning_rate",
    "1e-3",
)
ALWAYS_DIFFERENT = ("ts", "time/step", "time/data", "time/eval")


def recipe(run, *changes):
    return ("recipes.sl_basic", f"log_path={run}", *SMALL, *changes)


def same(rows):
    return [{k: v for k, v in row.items() if k not in ALWAYS_DIFFERENT} for row in rows]


@pytest.fixture(scope="module")
def whole(workplace):
    """A run that nothing interrupted."""
    done = workplace.run(*recipe("runs/whole"))
    run = RunDir(workplace.folder / "runs/whole")
    assert run.state() == "FINISHED"
    return run, done.stdout


def test_it_learns_and_tells_what_it_does(whole):
    run, said = whole
    frame = pandas.read_json(run / "metrics.jsonl", lines=True)
    assert frame["step"].tolist() == list(range(13))
    tested = frame["test/nll"].dropna()
    assert tested.index.tolist() == [0, 8, 12]
    assert tested.iloc[-1] < tested.iloc[0] - 0.1
    for part in ("conversations", "with loss, an epoch", "are cut at max_length", "⟦", "12 steps to train", "MLflow"):
        assert part in said


def test_killed_and_resumed_it_is_the_run_that_was_not(whole, workplace):
    run, _ = whole
    workplace.kill("row", "after", 7, *recipe("runs/killed"))  # between the saves at 5 and 8
    killed = RunDir(workplace.folder / "runs/killed")
    assert killed.state() == "KILLED"
    workplace.run(*recipe("runs/killed"))
    assert same(killed.metrics()) == same(run.metrics())
    assert killed.eval_examples() == run.eval_examples()
    _, resumed, end = killed.attempts()
    assert (resumed["resumed_from"], resumed["next_step"]) == ("000005", 5)
    assert (end["state"], end["exact"]) == ("FINISHED", True)
    assert end["verified_rows"] >= 2
    weights = "checkpoints/000012/adapter_model.safetensors"
    assert (killed / weights).read_bytes() == (run / weights).read_bytes()


def test_interrupted_it_says_how_to_go_on(workplace):
    process = workplace.start(*recipe("runs/interrupted"))
    workplace.stop_at_step(process, "runs/interrupted", 2, signal.SIGINT)
    assert process.returncode == 130
    assert "log_path=runs/interrupted resumes the run" in (workplace.folder / "started.log").read_text()
    interrupted = RunDir(workplace.folder / "runs/interrupted")
    assert interrupted.state() == "KILLED"
    assert not interrupted.is_locked()


def test_mlflow_holds_every_point_once(whole, workplace):
    run, _ = whole
    script = """
import json, sys, mlflow
client = mlflow.MlflowClient(sys.argv[1])
for run_id in sys.argv[2:]:
    run = client.get_run(run_id)
    history = {k: sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run_id, k))
               for k in run.data.metrics}
    print(json.dumps([run.info.status, run.data.params["learning_rate"], history]))
"""
    runs = [run, RunDir(workplace.folder / "runs/killed")]
    mirrors = [r.mirror() or {} for r in runs]
    done = subprocess.run(
        [*workplace.command("x")[:1], "-c", script, mirrors[0]["tracking_uri"], *(m["run_id"] for m in mirrors)],
        capture_output=True,
        text=True,
        env=workplace.env,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for files, line in zip(runs, done.stdout.splitlines()[-2:], strict=True):
        status, learning_rate, history = json.loads(line)
        assert (status, learning_rate) == ("FINISHED", "0.001")
        expected: dict[str, list[list[float]]] = {}
        for row in files.metrics():
            for key, value in row.items():
                if key not in ("step", "ts") and isinstance(value, (int, float)):
                    expected.setdefault(key, []).append([row["step"], row["ts"], value])
        totals = {key: history.pop(key)[-1][2] for key in history.keys() - expected.keys()}
        assert history == expected
        best = min(expected["test/nll"], key=lambda point: point[2])
        assert totals.pop("wall_seconds") == pytest.approx(sum(point[2] for point in expected["time/step"]))
        assert totals == {
            "total_tokens": sum(point[2] for point in expected["num_tokens"]),
            "best_test_nll": best[2],
            "best_step": best[0],
        }


def test_compare(whole, workplace):
    said = workplace.run("harness", "compare", "runs/whole", "runs/killed", "--out", "c.png").stdout
    assert "whole" in said and "killed" in said
    assert (workplace.folder / "c.png").read_bytes().startswith(b"\x89PNG")


def test_the_checkpoint_is_a_peft_adapter(whole):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from harness.backends.local.model import local_model_path

    run, _ = whole
    base = AutoModelForCausalLM.from_pretrained(local_model_path("SmolLM2-135M-Instruct.Q4_1"))
    model = PeftModel.from_pretrained(base, run / "checkpoints/000012")
    assert any("lora_B" in name and bool(p.abs().sum() > 0) for name, p in model.named_parameters())


@pytest.mark.parametrize("option", [[], ["--merge"]], ids=["adapter", "merged"])
def test_what_is_exported_scores_the_same_without_the_harness(whole, workplace, monkeypatch, option):
    """In a plain script; the full weights stand alone: the package that the model came in is not asked."""
    run, _ = whole
    monkeypatch.chdir(workplace.folder)
    out = f"runs/exported{''.join(option)}"
    workplace.run("harness", "export", "runs/whole", "--out", out, *option)
    env = workplace.env | ({"HOME": str(workplace.folder), "XDG_CACHE_HOME": str(workplace.folder)} if option else {})
    nll = score_in_a_plain_script(out, examples_of_test_set(run), peft=not option, env=env)
    assert nll == pytest.approx(run.test_nlls()[12], abs=ROUNDING[run.config()["numerics"]["dtype"]])
    refused = workplace.run("harness", "export", "runs/whole", "--out", out, *option, code=2)
    assert "there is something already: choose another folder" in refused.stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("dataset_builder.file_path=nowhere.jsonl",), "Data file not found: nowhere.jsonl"),
        (("...renderer_name=qwen9",), "renderer_name=qwen9: no such renderer"),
        (("learning_rat=1",), "did you mean learning_rate?"),
        (("learning_rate=1e-4",), "holds a run of another config (learning_rate: 0.001 there, 0.0001 here)"),
        (("model_name=nowhere/none",), "nowhere/none"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(whole, workplace, changes, says):
    done = workplace.run(*recipe("runs/whole" if "learning_rate=1e-4" in changes else "runs/mistake", *changes), code=2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (workplace.folder / "runs/mistake").exists()


@pytest.mark.parametrize("module", ["harness", "recipes.sl_basic"])
def test_help_is_instant(workplace, module):
    done = subprocess.run(
        [workplace.command("x")[0], "-X", "importtime", "-m", module, "--help"],
        cwd=workplace.folder,
        env=workplace.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "chz" in loaded or module == "harness"
    assert not loaded & {"torch", "mlflow", "transformers", "datasets", "tinker", "pandas", "peft"}
