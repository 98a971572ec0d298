import json
import sys

import chz
import pytest

from harness.backends.local.backend import LocalBackend
from harness.config_io import to_json
from harness.exceptions import ConfigError
from harness.run_dir import RunDir
from harness.supervised.provenance import check_same_config
from tests.fakes import FakeBackend
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


def test_a_field_that_the_harness_had_not_yet_is_no_difference_at_its_default(tmp_path):
    begun = run(config(tmp_path / "r", num_epochs=1))
    document = begun.config()
    del document["config"]["grad_clip_norm"], document["config"]["backend"]["cut"]
    (begun / "config.json").write_text(json.dumps(document))
    run(config(tmp_path / "r", num_epochs=2))
    assert begun.num_steps_trained() == 2 * 5
    with pytest.raises(
        ConfigError, match=r"another config \(backend.cut: None there, 5 here; grad_clip_norm: None there"
    ):
        run(config(tmp_path / "r", num_epochs=2, grad_clip_norm=3.0, backend=FakeBackend(cut=5)))


def test_what_the_numerics_record_need_not_be_asked_for_again(tmp_path):
    begun = config(tmp_path / "r")
    check_same_config(run(begun), begun)
    three, left_open, two = (chz.replace(begun, backend=LocalBackend(num_threads=n)) for n in (3, None, 2))
    document = RunDir(tmp_path / "r").config() | {"numerics": {"num_threads": 3}}
    for asked, again in ((three, left_open), (left_open, three)):
        (tmp_path / "r" / "config.json").write_text(json.dumps(document | {"config": to_json(asked)}))
        check_same_config(RunDir(tmp_path / "r"), again)
        with pytest.raises(ConfigError, match=r"another config \(backend.num_threads: (3|None) there, 2 here\)"):
            check_same_config(RunDir(tmp_path / "r"), two)
