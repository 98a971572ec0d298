import sys

from tests.supervised.runs import config, run


def test_the_command_is_recorded_once_a_run_and_once_an_attempt(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", type("Spec", (), {"name": "recipes.mine"})())
    monkeypatch.setattr(sys, "argv", ["/x/recipes/mine.py", "api_key=hidden"])
    first = run(config(tmp_path / "r"))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    run(config(tmp_path / "r", num_epochs=4))
    argv = ["/x/recipes/mine.py", "api_key=<redacted>"]
    found = [first.config(), *(row for row in first.attempts() if row["event"] == "start")]
    assert [(row["argv"], row["module"]) for row in found] == [
        (argv, "recipes.mine"), (argv, "recipes.mine"), (argv, None),
    ]  # fmt: skip
