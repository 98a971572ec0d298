"""The service backend against a scripted server, through the real SDK."""

import asyncio
import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import chz
import httpx
import numpy as np
import pytest
import tinker
from rich.console import Console

from harness.backends import chosen
from harness.backends.base import OpenBackend
from harness.backends.local.backend import LocalBackend
from harness.backends.tinker_service import failures
from harness.backends.tinker_service.backend import TinkerBackend
from harness.backends.tinker_service.server import Server
from harness.derive import make_fork
from harness.eval.evaluators import SamplingClientEvaluator
from harness.exceptions import CheckpointDamagedError, ConfigError, DataError, RunDirError, ServiceError
from harness.run_dir import RunDir
from harness.supervised import progress, train
from harness.supervised.train import with_backend
from tests.fakes import WordsBuilder, byte_datum
from tests.scripted_server import HTML, TRY_AGAIN, ScriptedServer, scripted_server
from tests.supervised.runs import config, run, same

KEY = "tml-marker-of-a-key-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where a key may be stored


@pytest.fixture
def server():
    with scripted_server() as made:
        yield made


def on(server: ScriptedServer, path, **changes):
    """A config of 5 updates on ``server``: evaluations and saves at 0, 2 and 4, a save at 3."""
    options: dict[str, Any] = {name: changes.pop(name) for name in [*changes] if name in chz.chz_fields(TinkerBackend)}
    values: dict[str, Any] = {"backend": TinkerBackend(base_url=server.url, **options), "num_epochs": 1}
    return config(path, **values | {"eval_every": 2, "save_every": 3} | changes)


def failure(config) -> str:
    with pytest.raises(ServiceError) as raised:
        run(config)
    return str(raised.value)


# ---- what is asked of the server


def test_a_run_is_trained_there(server, tmp_path):
    trained = run(on(server, tmp_path / "r", train_unembed=False, seed=7, lora_rank=4))
    assert trained.state() == "FINISHED"
    (created,) = server.asked("create_model")
    assert created["base_model"] == "unigram"
    asked = {"rank": 4, "seed": 7, "train_mlp": True, "train_attn": True, "train_unembed": False}
    assert created["lora_config"].items() >= asked.items()
    last = trained.checkpoints()[-1]
    assert (last.name, last.final) == ("000005", True)
    assert last.state_path == "tinker://session-1:train:0/weights/000005"
    assert last.sampler_path == "tinker://session-1:train:0/sampler_weights/000005"
    assert server.states[last.state_path] == 5
    assert [record.sampler_path for record in trained.checkpoints()[:-1]] == [None] * 3
    assert server.asked("sessions/finish")[-1]["reason"] == {"type": "success"}


def test_updates_are_submitted_before_the_last_one_is_answered(server, tmp_path):
    """The answer to update 1 is held back until update 2 has been asked for: without that the run would hang."""
    asked = []

    def mend_once_two_are_asked() -> None:
        asked.append(sum(isinstance(body, str) for body in server.asked("forward_backward")))
        if len(server.asked("optim_step")) >= 3:
            server.mend("future of optim_step")

    server.fail("future of optim_step", TRY_AGAIN, after=1, then=mend_once_two_are_asked)
    run(on(server, tmp_path / "r", eval_every=0, submit_ahead=1))
    assert len(server.asked("optim_step")) == 5


def test_saves_expire_and_say_what_they_are_and_the_last_ones_stay(server, tmp_path):
    server.fail("PUT training_runs/checkpoints/weights/000005/ttl", (200, {}))
    server.fail("PUT training_runs/checkpoints/sampler_weights/000005/ttl", (200, {}))
    trained = run(on(server, tmp_path / "r", ttl_seconds=86400))
    run_id = trained.config()["run_id"]
    saves = server.asked("save_weights")
    assert [(save["path"], save["ttl_seconds"]) for save in saves] == [
        ("000002", 86400), ("000003", 86400), ("000004", 86400), ("000005", 86400)
    ]  # fmt: skip
    assert all(save["user_metadata"]["run_id"] == run_id for save in saves)
    lasting = [(route, body) for route, body in server.requests if route.startswith("PUT")]
    assert [route for route, _ in sorted(lasting)] == [
        f"PUT training_runs/checkpoints/{kind}/000005/ttl" for kind in ("sampler_weights", "weights")
    ]
    assert all(body == {"ttl_seconds": None} for _, body in lasting)


def test_what_does_not_expire_needs_no_keeping(server, tmp_path, capsys):
    run(on(server, tmp_path / "r", ttl_seconds=0))
    assert all("ttl_seconds" not in save for save in server.asked("save_weights"))
    assert not [route for route, _ in server.requests if route.startswith("PUT")]
    assert "expiry" not in capsys.readouterr().out


def test_a_server_that_keeps_and_deletes_nothing_is_told_of_once(server, tmp_path, capsys):
    trained = run(on(server, tmp_path / "r"))
    assert trained.state() == "FINISHED"
    said = capsys.readouterr().out
    assert all(record.is_usable for record in trained.checkpoints()), "they are still there"
    asked = [route for route, _ in server.requests if route.startswith("DELETE")]
    assert len(asked) == len({*asked}) == 3
    assert said.count("it deletes no checkpoints on request: those that are not kept stay there") == 1
    assert said.count("it changes no expiry times: the best and the final checkpoint may expire") == 1


def test_checkpoints_that_are_not_kept_are_deleted(server, tmp_path):
    for number in (2, 3, 4):
        server.fail(f"DELETE training_runs/checkpoints/weights/{number:06d}", (200, {}))
    trained = run(on(server, tmp_path / "r"))
    deleted = sorted(route[-6:] for route, _ in server.requests if route.startswith("DELETE"))
    assert deleted == ["000002", "000003", "000004"]
    assert [record.step for record in trained.checkpoints() if record.is_usable] == [5]


def test_what_is_refused_stays_in_the_record_and_what_is_gone_already_does_not(server, tmp_path, capsys):
    server.fail("DELETE training_runs/checkpoints/weights/000002", (403, {"detail": "it is published"}))
    server.fail("training_runs/checkpoints", (200, {"checkpoints": []}))
    trained = run(on(server, tmp_path / "r"))
    assert [record.step for record in trained.checkpoints() if record.is_usable] == [2, 5]
    told = "checkpoints are not deleted (it is published): those that are not kept stay there"
    assert capsys.readouterr().out.count(told) == 1


# ---- going on


def stopped(server, path, monkeypatch, **changes) -> RunDir:
    """A run that lost its server after row 3: its checkpoint is that at 3, or the one before where it has none."""
    server.fail("optim_step", (403, {"detail": "stop"}), after=4)
    with pytest.raises(ServiceError):
        run(on(server, path, submit_ahead=0, **changes))
    server.mend("optim_step")
    return RunDir(path)


def test_a_resume_is_the_run_that_was_not_interrupted(server, tmp_path, monkeypatch):
    whole = run(on(server, tmp_path / "whole"))
    interrupted = stopped(server, tmp_path / "r", monkeypatch)
    assert [row["step"] for row in interrupted.metrics()] == [0, 1, 2, 3]
    last = [record for record in interrupted.checkpoints() if record.is_usable][-1]
    resumed = run(on(server, tmp_path / "r"))
    loaded = server.asked("load_weights")[-1]
    assert (loaded["path"], loaded["optimizer"]) == (last.state_path, True)
    assert same(resumed.metrics()) == same(whole.metrics())
    assert resumed.attempts()[-1]["exact"] is not False


def test_a_resume_without_the_state_goes_back_to_the_one_before(server, tmp_path, monkeypatch, capsys):
    interrupted = stopped(server, tmp_path / "r", monkeypatch, keep="all")
    *_, before, last = interrupted.checkpoints()
    del server.states[last.state_path]
    resumed = run(on(server, tmp_path / "r", keep="all"))
    assert resumed.attempts()[-2]["resumed_from"] == before.name
    assert resumed.attempts()[-1]["exact"] is True
    assert (
        f"going back before checkpoint {last.name}: {last.state_path}: no checkpoint at that path"
        in (resumed / "logs.log").read_text()
    )


def test_a_server_that_has_none_of_the_checkpoints_is_told_and_they_stay(server, tmp_path, monkeypatch):
    interrupted = stopped(server, tmp_path / "r", monkeypatch, keep="all")
    files = {path: path.read_bytes() for path in interrupted.path.glob("*.jsonl")}
    with scripted_server() as other, pytest.raises(RunDirError) as raised:
        run(on(other, tmp_path / "r", keep="all"))
    names = ", ".join(record.name for record in reversed(interrupted.checkpoints()))
    anew = f"train anew: python -m harness rerun {interrupted} log_path=…"
    assert str(raised.value) == (
        f"{interrupted}: tinker at {other.url} has none of its checkpoints ({names}), and they were saved on tinker at "
        f"{server.url}: give that one's base_url, or {anew}"
    )
    assert {path: path.read_bytes() for path in files} == files
    assert run(on(server, tmp_path / "r", keep="all")).attempts()[-2]["resumed_from"] == names[:6]


def test_states_that_are_all_gone_are_not_trained_again_unasked(server, tmp_path, monkeypatch):
    interrupted = stopped(server, tmp_path / "r", monkeypatch, keep="all")
    server.states.clear()
    with pytest.raises(RunDirError) as raised:
        run(on(server, tmp_path / "r", keep="all"))
    assert str(raised.value).startswith(f"{interrupted}: tinker at {server.url} has none of its checkpoints (00000")
    assert str(raised.value).endswith(f"): train anew: python -m harness rerun {interrupted} log_path=…")
    parent = run(on(server, tmp_path / "p", keep="all"))
    forked = make_fork(parent, "3", [f"log_path={tmp_path / 'f'}"], weights_only=False)
    server.states.clear()
    with pytest.raises(RunDirError, match=r"has none of its checkpoints \(000003\): fork its parent again$"):
        run(forked)


def test_a_fork_takes_the_state_where_it_is_and_never_deletes_it(server, tmp_path):
    parent = run(on(server, tmp_path / "r", keep="all"))
    changes = [f"log_path={tmp_path / 'f'}", "learning_rate=0.05", "keep=last"]
    forked = make_fork(parent, "3", changes, weights_only=False)
    fork = run(forked)
    assert server.asked("load_weights")[-1]["path"] == parent.checkpoints()[1].state_path
    assert fork.metrics()[:3] == parent.metrics()[:3]
    assert fork.state() == "FINISHED"
    inherited = fork.checkpoints()[0]
    assert (inherited.deleted, inherited.state_path) == (True, parent.checkpoints()[1].state_path)
    deleted = [route for route, _ in server.requests if route.startswith("DELETE")]
    assert deleted == ["DELETE training_runs/checkpoints/weights/000004"]  # the fork's own


def test_weights_alone_start_a_run(server, tmp_path, capsys):
    """There are servers that load the optimiser nevertheless, and say nothing."""
    state_path = run(on(server, tmp_path / "r")).checkpoints()[-1].state_path
    caution = "it may have loaded the optimiser with the weights"
    assert caution not in capsys.readouterr().out
    run(on(server, tmp_path / "s", load_checkpoint_path=state_path))
    loaded = server.asked("load_weights")[-1]
    assert (loaded["path"], loaded["optimizer"]) == (state_path, False)
    assert capsys.readouterr().out.count(caution) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_rank": 8}, "of lora_rank=32, not 8: set lora_rank=32"),
        ({"model_name": "unigram-large"}, "of model_name=unigram, not unigram-large: set model_name=unigram"),
        ({"load_checkpoint_path": "runs/a/checkpoints/000001"}, "backend=tinker loads tinker://… paths alone"),
    ],
)
def test_weights_of_something_else_are_refused(server, tmp_path, changes, said):
    server.states["tinker://a/weights/1"] = 3
    with pytest.raises(ConfigError) as raised:
        run(on(server, tmp_path / "s", **{"load_checkpoint_path": "tinker://a/weights/1"} | changes))
    assert said in str(raised.value)


def test_the_rank_of_weights_is_asked_for_where_the_model_does_not_say_it(server, tmp_path, capsys):
    """As SkyRL's does not."""
    server.states["tinker://a/weights/1"] = 3
    server.fail("get_info", (200, {"model_data": {"model_name": "unigram"}, "model_id": "a"}))
    server.fail("weights_info", (200, {"base_model": "unigram", "is_lora": True, "lora_rank": 4}))
    changes = {"load_checkpoint_path": "tinker://a/weights/1", "lora_rank": 2}
    with pytest.raises(ConfigError, match=r"^tinker://a/weights/1: of lora_rank=4, not 2: set lora_rank=4$"):
        run(on(server, tmp_path / "r", **changes))
    assert not (tmp_path / "r").exists()
    server.mend("weights_info")  # it does not know the question
    assert run(on(server, tmp_path / "r", **changes)).state() == "FINISHED"
    assert "tinker://a/weights/1: its lora_rank is not known: training goes on with it" in capsys.readouterr().out


def test_layers_that_a_server_may_train_all_the_same_are_told(server, tmp_path, capsys, monkeypatch):
    run(on(server, tmp_path / "r", train_mlp=False, train_unembed=False, max_steps=1))
    assert (
        f"{server.url}: it does not say whether it heeds backend.train_mlp=false and backend.train_unembed=false: it "
        "may train all layers (SkyRL does)"
    ) in capsys.readouterr().out
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    assert Server(None).is_hosted_service and not Server(server.url).is_hosted_service


def test_another_renderer_than_the_checkpoints_is_warned_of(server, tmp_path, caplog):
    server.states["tinker://a/weights/1"] = 3
    backend = TinkerBackend(base_url=server.url)
    for theirs, ours in (("llama3", "llama3"), ("llama3", "role_colon")):
        server.metadata = {"renderer_name": theirs}
        client = backend.create_training_client(
            model_name="unigram", lora_rank=32, seed=0, numerics={}, run_path=tmp_path,
            weights_path="tinker://a/weights/1", describe=lambda ours=ours: {"renderer_name": ours},
        )  # fmt: skip
        backend.close(client)
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("harness")]
    assert warning == ("tinker://a/weights/1 was trained with renderer_name=llama3, and now goes on with role_colon")


# ---- which backend


def test_an_open_backend_is_the_service_where_there_is_an_address_or_a_key(monkeypatch, tmp_path):
    assert chosen("http://x") == (TinkerBackend(), "base_url is given")
    assert chosen(None) == (TinkerBackend(), "TINKER_API_KEY is set")
    monkeypatch.delenv("TINKER_API_KEY")
    assert chosen(None) == (LocalBackend(), None)
    monkeypatch.setenv("TINKER_BASE_URL", "http://x")
    assert chosen(None) == (TinkerBackend(), "TINKER_BASE_URL is set")
    monkeypatch.delenv("TINKER_BASE_URL")
    stored = tmp_path / "home" / ".tinker" / "credentials.json"
    stored.parent.mkdir(parents=True)
    stored.write_text("{}")
    assert chosen(None) == (TinkerBackend(), "~/.tinker/credentials.json is there")


def test_the_choice_is_recorded_and_kept_by_a_resume(server, tmp_path, monkeypatch, capsys):
    made = on(server, tmp_path / "r", max_steps=3)
    values: dict[str, Any] = {name: getattr(made, name) for name in chz.chz_fields(made) if name != "backend"}
    first = run(train.Config(**{**values, "base_url": server.url, "ttl_seconds": 7200}))
    assert "backend=tinker, since base_url is given" in capsys.readouterr().out
    recorded = first.config()["config"]["backend"]
    assert recorded["type"] == "harness.backends.tinker_service.backend:TinkerBackend"
    assert (recorded["base_url"], recorded["ttl_seconds"]) == (server.url, 7200)
    resumed = run(train.Config(**{**values, "max_steps": 5}))  # no base_url, and the backend left open
    assert resumed.state() == "FINISHED"
    assert len(server.asked("load_weights")) == 1


def test_a_resume_at_a_given_address_keeps_the_other_options_of_the_backend(server, tmp_path):
    made = on(server, tmp_path / "r", max_steps=3, train_mlp=False)
    run(made)
    values: dict[str, Any] = {name: getattr(made, name) for name in chz.chz_fields(made) if name != "backend"}
    resumed = run(train.Config(**{**values, "base_url": server.url, "max_steps": 5}))
    assert resumed.state() == "FINISHED"
    assert len(server.asked("load_weights")) == 1


def test_the_address_is_recorded_wherever_it_comes_from_and_kept_by_a_resume(server, tmp_path, monkeypatch):
    values: dict[str, Any] = {"backend": OpenBackend(), "num_epochs": 1, "max_steps": 3}
    monkeypatch.setenv("TINKER_BASE_URL", f"{server.url.replace('http://', 'http://me:secret@')}/")
    first = run(config(tmp_path / "r", **values))
    assert first.config()["config"]["backend"]["base_url"] == server.url
    assert [row["backend"] for row in first.attempts()[:1]] == [f"tinker at {server.url}"]
    assert "secret" not in (first / "config.json").read_text()
    for elsewhere in (True, False):
        if elsewhere:
            monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")
        for backend in (OpenBackend(), TinkerBackend()):
            resumed = with_backend(config(tmp_path / "r", **values | {"backend": backend}), first, Console(quiet=True))
            assert resumed.backend.described == f"tinker at {server.url}"


def test_an_address_is_not_for_the_local_backend(tmp_path):
    with pytest.raises(
        ConfigError, match="base_url=http://x is not for backend=local: leave it out, or backend=tinker"
    ):
        run(config(tmp_path / "r", backend=LocalBackend(), base_url="http://x"))


# ---- failures


@chz.chz
class Unread(WordsBuilder):
    def __call__(self):
        raise AssertionError("data is read before the key is looked at")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (None, "backend=tinker needs a key: set TINKER_API_KEY (a server of your own takes any that begins with tml-), "
         "or run tinker auth login, or train here with backend=local"),
        ("tml-a\nkey", "TINKER_API_KEY holds a line break, or a character that is in no key: copy the key alone"),
        ("tml-a…", "TINKER_API_KEY holds a line break, or a character that is in no key: copy the key alone"),
        ("sk-0123456789abcdef", "TINKER_API_KEY does not begin with tml-: copy the whole key from the console"),
    ],
)  # fmt: skip
def test_the_key_is_looked_at_first(server, tmp_path, monkeypatch, key, said):
    monkeypatch.delenv("TINKER_API_KEY")
    if key:
        monkeypatch.setenv("TINKER_API_KEY", key)
    with pytest.raises(ConfigError) as raised:
        run(on(server, tmp_path / "r", dataset_builder=Unread()))
    assert str(raised.value) == said
    assert not server.requests
    assert not (tmp_path / "r").exists()


def test_a_server_that_is_not_there_is_known_before_the_data_is_read(tmp_path):
    backend = TinkerBackend(base_url="http://127.0.0.1:9")
    said = failure(config(tmp_path / "r", backend=backend, dataset_builder=Unread()))
    assert said.startswith("http://127.0.0.1:9: cannot be reached (")
    assert said.endswith("): start the server, or mend base_url")


def test_an_address_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"base_url=here: not a URL \(.+\): give http\(s\)://HOST\[:PORT\]"):
        run(config(tmp_path / "r", backend=TinkerBackend(base_url="here")))


def test_a_server_that_is_not_ready(server, tmp_path):
    server.fail("healthz", (503, {"detail": "starting"}))
    assert failure(on(server, tmp_path / "r")) == f"{server.url}: not ready (503): try again later"


def test_a_server_that_does_not_know_the_question_of_its_health_is_used(server, tmp_path):
    server.fail("healthz", (404, {"detail": "Not Found"}))
    assert run(on(server, tmp_path / "r")).state() == "FINISHED"


def test_what_is_no_tinker_server_is_known_at_once(server, tmp_path):
    for route in ("healthz", "get_server_capabilities"):
        server.fail(route, (404, "<html>File not found</html>"))
    with pytest.raises(ConfigError) as raised:
        run(on(server, tmp_path / "r"))
    assert str(raised.value) == f"base_url={server.url}: what answers there is no Tinker server (404): mend it"


@pytest.mark.parametrize("stored", ["not json", "[]"])
def test_stored_credentials_that_cannot_be_read(server, tmp_path, monkeypatch, stored):
    monkeypatch.delenv("TINKER_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".tinker").mkdir()
    (tmp_path / ".tinker/credentials.json").write_text(stored)
    with pytest.raises(ConfigError) as raised:
        run(on(server, tmp_path / "r", dataset_builder=Unread()))
    assert str(raised.value) == (
        "~/.tinker/credentials.json: cannot be read: run tinker auth login again, or set TINKER_API_KEY"
    )


def test_a_server_of_ones_own_may_not_clip_gradients(server, tmp_path, capsys):
    run(on(server, tmp_path / "r", grad_clip_norm=1.0))
    assert capsys.readouterr().out.count("it does not say whether it heeds grad_clip_norm") == 1


START = "making a model of unigram with lora_rank=32"
FIRST_CALLS = [
    ("client/config", (401, {"detail": "no such key"}), "its models: the key was refused (401: no such key): set "
     "TINKER_API_KEY to a key that is valid there"),
    ("client/config", (403, {"message": "not in the beta"}), "its models: not allowed (403: not in the beta): ask for "
     "access, or use another key"),
    ("client/config", HTML, "its models: its answer is not what this SDK understands (tinker {sdk}: "),
    ("create_session", (401, {"detail": "no such key"}), f"{START}: the key was refused (401: no such key): set "
     "TINKER_API_KEY to a key that is valid there"),
    ("create_session", (402, {"detail": "no card"}), f"{START}: billing (402: no card): mend the account's billing in "
     "the console"),
    ("create_model", (402, {"detail": "no card"}), f"{START}: billing (402: no card): mend the account's billing in "
     "the console"),
    ("create_model", (422, {"detail": [{"loc": ["body", "rank"], "msg": "too large"}]}), f"{START}: rejected (422: "
     "body.rank too large): mend that"),
    ("future of create_model", (200, {"error": "out of memory", "category": "server"}), f"{START}: the server failed: "
     "out of memory: try again later"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "answer", "said"), FIRST_CALLS, ids=[f"{r} {a[0]}" for r, a, _ in FIRST_CALLS])
def test_what_fails_before_the_first_update(server, tmp_path, route, answer, said):
    server.fail(route, answer)
    assert failure(on(server, tmp_path / "r")).startswith(f"{server.url}: {said.format(sdk=tinker.__version__)}")
    assert not (tmp_path / "r").exists()  # nothing was started


def test_a_model_that_is_not_there_is_told_with_those_that_are(server, tmp_path):
    """Before it is asked for: there are servers that take any name, and train what they have."""
    with pytest.raises(ConfigError) as raised:
        run(on(server, tmp_path / "r", model_name="unigramm"))
    assert str(raised.value) == (
        f"model_name=unigramm: {server.url} has no such model; did you mean unigram or unigram-large?: it has unigram, "
        "unigram-large; or train here with backend=local"
    )
    assert not server.asked("create_model")


@pytest.mark.parametrize("answer", [(404, {"detail": "Not Found"}), (200, {"supported_models": []})])
def test_a_server_that_does_not_list_its_models_is_asked_for_any(server, tmp_path, answer):
    server.fail("get_server_capabilities", answer)
    assert run(on(server, tmp_path / "r")).state() == "FINISHED"
    said = failure(on(server, tmp_path / "s", model_name="unigramm"))
    assert said.endswith("rejected (400: unknown base model unigramm): mend that")


def test_an_example_beyond_the_context_is_told_before_anything_is_paid_for(server, tmp_path, monkeypatch):
    server.fail("get_server_capabilities", (200, {"supported_models": [
        {"model_name": "unigram", "max_context_length": 4}]}))  # fmt: skip
    with pytest.raises(DataError, match="the context of unigram is 4: set max_length=4"):
        run(on(server, tmp_path / "r"))
    assert not server.asked("create_model")


LATER = [
    ("future of forward_backward", (404, {"detail": "unknown request"}), "forward_backward of 4 examples: the server "
     "has forgotten the request (404: unknown request): go on from the last checkpoint"),
    ("future of optim_step", (410, {"detail": "expired"}), "optim_step: the server has forgotten the request (Promise"),
    ("future of optim_step", (400, {"detail": "no gradient"}), "optim_step: rejected (400: no gradient): mend that"),
    ("future of optim_step", (400, {"detail": "Model m not loaded (likely stale request)"}), "optim_step: the server "
     "has let go of the model (Model m not loaded (likely stale request)): go on from the last checkpoint"),
    ("future of optim_step", (200, {"error": "node died", "category": "server"}), "optim_step: the server failed: node "
     "died: try again later"),
    ("future of forward_backward", (200, {"loss_fn_outputs": []}), "forward_backward of 4 examples: Server returned a "
     "JSON payload"),
    ("future of optim_step", HTML, "optim_step: its answer is not what this SDK understands"),
    ("optim_step", (401, {"detail": "revoked"}), "optim_step: the key was refused (401: revoked)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("route", "answer", "said"), LATER, ids=[f"{r} {a[0]} {i}" for i, (r, a, _) in enumerate(LATER)]
)
def test_what_fails_later_names_the_checkpoint_and_the_command(server, tmp_path, monkeypatch, route, answer, said):
    monkeypatch.chdir(tmp_path)
    server.fail(route, answer, after=3)
    message = failure(on(server, "runs/r", eval_every=0, save_every=2, submit_ahead=0))
    assert message.startswith(f"{server.url}: {said}")
    assert message.endswith("; last checkpoint: 000002: the same command with log_path=runs/r goes on from there")
    ended = RunDir("runs/r")
    assert ended.attempts()[-1]["state"] == "FAILED"
    server.mend(route)
    assert run(on(server, "runs/r", eval_every=0, save_every=2)).state() == "FINISHED"


def test_rejected_data_is_named(server, tmp_path):
    """The batch is rejected, then each of its examples is asked for alone: the second one is rejected again. One that
    was alone is what was rejected."""
    some = np.frombuffer(b"some", np.uint8).astype(np.int32).tobytes()
    refused = (400, {"detail": "token 111 is not in the vocabulary"})
    server.fail("forward_backward", refused, when=lambda asked: some in asked)
    backend = TinkerBackend(base_url=server.url)
    client = backend.create_training_client(
        model_name="unigram", lora_rank=32, seed=0, numerics={}, run_path=tmp_path
    )  # fmt: skip
    refused_one = dataclasses.replace(byte_datum("some words"), example_id="q7", where="data.jsonl:12")

    async def ask(*data: tinker.Datum) -> str:
        with pytest.raises(ServiceError) as raised:
            await client.forward_backward(list(data), "cross_entropy").result_async()
        return str(raised.value).removeprefix(f"{server.url}: ")

    said = (
        "(q7, data.jsonl:12, 10 tokens) was rejected: token 111 is not in the vocabulary: leave it out, or lower "
        "max_length"
    )
    of_three, alone = asyncio.run(ask(byte_datum("a b"), refused_one, byte_datum("c"))), asyncio.run(ask(refused_one))
    backend.close(client)
    assert of_three == f"forward_backward of 3 examples: example 2 of 3 {said}"
    assert alone == f"forward_backward of 1 example: example 1 of 1 {said}"


def test_where_all_examples_are_rejected_it_is_not_the_data(server, tmp_path):
    server.fail("future of forward_backward", (400, {"detail": "the model is frozen"}), after=2)
    said = failure(on(server, tmp_path / "r", eval_every=0))
    assert "forward_backward of 4 examples: rejected (400: the model is frozen): mend that; no checkpoint yet" in said


def test_an_answer_that_never_comes_is_shown_and_ends_the_run_where_the_user_set_a_limit(
    server, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(progress, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_FIRST_TOLD", 0.2)
    server.fail("future of optim_step", TRY_AGAIN, after=3)
    said = failure(on(server, tmp_path / "r", timeout_seconds=1.0, eval_every=0))
    assert "waiting for step 3 for 0 s" in capsys.readouterr().out
    assert "optim_step: no answer within backend.timeout_seconds: raise it, or leave it out to wait for ever" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_while_an_answer_does_not_come(server, tmp_path, number):
    """Each time that the answer is asked for again, a signal arrives: the first is noted, the second leaves."""
    server.fail("future of optim_step", TRY_AGAIN, after=3, then=lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        run(on(server, tmp_path / "r", eval_every=0))
    server.mend("future of optim_step")
    ended = RunDir(tmp_path / "r")
    assert ended.attempts()[-1]["state"] == "KILLED"
    assert not ended.is_locked()
    assert run(on(server, tmp_path / "r", eval_every=0)).state() == "FINISHED"


STATUSES = {
    402: "billing (402: why): mend the account's billing in the console",
    409: "in conflict with another request (409: why): try again later",
    413: "rejected (413: why): mend that",
    429: "quota or rate limit (429: why): wait, or raise the account's limits",
    500: "the server failed (500: why): try again later",
    503: "the server failed (503: why): try again later",
}  # those among them that the SDK tries again for minutes are not waited for here


@pytest.mark.parametrize("status", STATUSES)
def test_what_each_status_means(status):
    request = httpx.Request("POST", "http://x")
    response = httpx.Response(status, request=request)
    error = tinker.APIStatusError("Error code", response=response, body={"detail": "why"})
    with pytest.raises(ServiceError) as raised, failures.in_plain_words("optim_step", "http://x"):
        raise error
    assert str(raised.value) == f"http://x: optim_step: {STATUSES[status]}"


def test_a_connection_that_is_lost_and_a_request_after_one_that_failed():
    lost = tinker.APIConnectionError(request=httpx.Request("POST", "http://x"))
    poisoned = RuntimeError("A previous request failed")
    poisoned.__cause__ = lost
    for error in (lost, poisoned):
        with pytest.raises(ServiceError) as raised, failures.in_plain_words("optim_step", "http://x"):
            raise error
        assert str(raised.value) == (
            "http://x: optim_step: it cannot be reached any more (Connection error.): go on when it is back"
        )


def test_a_bug_of_ours_stays_one():
    with pytest.raises(KeyError), failures.in_plain_words("optim_step", "http://x"):
        raise KeyError("bug")


def test_the_key_reaches_no_file_no_screen_and_no_error(server, tmp_path, monkeypatch, capfd, caplog):
    """Also where the server repeats it."""
    monkeypatch.setattr(sys, "argv", ["recipe", f"api_key={KEY}", f"tags.a={KEY}"])
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    server.fail("optim_step", (403, {"detail": f"key {KEY} is not allowed"}), after=3)
    changes = {"mirror": True, "tracking_uri": uri, "experiment": "keys", "tags": {"a": KEY}}
    said = failure(on(server, tmp_path / "r", **changes))
    assert KEY not in said and "<redacted> is not allowed" in said
    server.mend("optim_step")
    run(on(server, tmp_path / "r", **changes))
    assert any(headers.get("x-api-key") == KEY for headers in server.headers)  # it was used
    shown = capfd.readouterr()
    assert KEY not in shown.out + shown.err
    assert KEY not in caplog.text
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in written)
    for path in written:
        assert KEY.encode() not in path.read_bytes(), path


# ---- sampling


class Samples(SamplingClientEvaluator):
    """The scripted server's samples are the number of updates in the weights."""

    async def __call__(self, sampling_client):
        prompt, params = tinker.ModelInput.from_ints([1, 2]), tinker.SamplingParams(max_tokens=2)
        await asyncio.sleep(0.05)  # updates go on meanwhile
        present = await sampling_client.sample(prompt, 1, params)
        older = await sampling_client.sample_async(prompt=prompt, num_samples=2, sampling_params=params)
        assert [sequence.tokens for sequence in older.sequences] == [present.sequences[0].tokens] * 2
        assert sampling_client.get_base_model() == "unigram"  # the SDK's own
        return {"updates": present.sequences[0].tokens[0]}


def test_evaluators_sample_with_the_weights_of_their_step(server, tmp_path):
    trained = run(on(server, tmp_path / "r", submit_ahead=3, evaluator_builders=[Samples]))
    assert [(row["step"], row["updates"]) for row in trained.metrics() if "updates" in row] == [
        (0, 0), (2, 2), (4, 4), (5, 5)
    ]  # fmt: skip
    ephemeral = [save for save in server.asked("save_weights_for_sampler") if save.get("path") is None]
    assert len(ephemeral) == 4


def test_a_sample_that_is_rejected_is_one_line_with_the_last_checkpoint(server, tmp_path, capsys):
    rejected = (400, {"detail": "max_tokens is too large"})
    server.fail("asample", rejected, when=lambda asked: asked["sampling_session_id"] == "sampler-2")  # of step 4
    said = failure(on(server, tmp_path / "r", evaluator_builders=[Samples]))
    assert said.startswith(f"{server.url}: a sample after 2 tokens: rejected (400: max_tokens is too large): mend that")
    assert "; last checkpoint: 00000" in said
    assert "max_tokens is too large" not in capsys.readouterr().out  # it is told once, by who catches it


def test_a_sample_that_never_comes_is_given_up_after_the_limit(server, tmp_path):
    server.fail("future of asample", TRY_AGAIN)
    said = failure(on(server, tmp_path / "r", timeout_seconds=0.5, evaluator_builders=[Samples]))
    assert "a sample after 2 tokens: no answer within backend.timeout_seconds" in said


def sampled(server, path: str | None) -> list[int]:
    backend = TinkerBackend(base_url=server.url)
    client = backend.create_sampling_client(
        model_name="unigram", lora_rank=32, seed=0, numerics={}, run_path=Path("r"), weights_path=path
    )
    params = tinker.SamplingParams(max_tokens=1)
    tokens = client.sample(tinker.ModelInput.from_ints([1]), 1, params).result().sequences[0].tokens
    backend.close(client)
    return tokens


def test_saved_weights_are_sampled_with_and_a_state_is_loaded_for_it(server, tmp_path):
    trained = run(on(server, tmp_path / "r"))
    *_, before, last = trained.checkpoints()
    assert last.sampler_path and before.sampler_path is None
    assert sampled(server, last.sampler_path) == [5]
    assert len(server.asked("load_weights")) == 0
    assert sampled(server, before.state_path) == [4]
    assert len(server.asked("load_weights")) == 1
    assert sampled(server, None) == [0]
    with pytest.raises(CheckpointDamagedError, match="tinker://a/sampler_weights/b: no checkpoint at that path: take"):
        sampled(server, "tinker://a/sampler_weights/b")
