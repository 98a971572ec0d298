"""Answers of a server that are not what was asked for, or that do not come."""

import logging
import subprocess
import sys
import threading

import pytest
import tinker

from harness.backends.tinker_service import server as server_module
from harness.backends.tinker_service.backend import TinkerBackend
from harness.backends.tinker_service.server import Server
from harness.exceptions import ServiceError
from tests.backends.test_tinker_service import environment as environment
from tests.backends.test_tinker_service import failure, on
from tests.backends.test_tinker_service import server as server
from tests.scripted_server import TRY_AGAIN


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (lambda lengths: ("logprobs", lengths[1:]), "its answer has 3 outputs, not 4"),
        (lambda lengths: ("logprobs", [*lengths[:-1], lengths[-1] - 1]),
         "its answer has {1} log-probabilities for the {2} tokens of example 4"),
        (lambda lengths: ("losses", lengths), "its answer has 0 log-probabilities for the {0} tokens of example 1"),
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_is_one_line_with_the_last_checkpoint(server, tmp_path, outputs, said):
    seen = []

    def of_another_shape_after_two_updates(lengths: list[int]) -> tuple[str, list[int]]:
        if len(server.asked("optim_step")) < 2:
            return "logprobs", lengths
        seen.append(lengths)
        return outputs(lengths)

    server.outputs = of_another_shape_after_two_updates
    message = failure(on(server, tmp_path / "r", eval_every=0, save_every=2, submit_ahead=0))
    first, *_, last = seen[0]
    assert message == (
        f"{server.url}: forward_backward of 4 examples: {said.format(first, last - 1, last)} (tinker "
        f"{tinker.__version__}): check base_url, and that server and SDK are of versions that fit together; last "
        f"checkpoint: 000002: the same command with log_path={tmp_path / 'r'} goes on from there"
    )


def test_what_was_saved_before_an_error_is_logged(server, tmp_path):
    saved = threading.Event()

    def none_after_two_updates(lengths: list[int]) -> tuple[str, list[int]]:
        if len(server.asked("optim_step")) < 2:
            return "logprobs", lengths
        threading.Timer(0.5, saved.set).start()
        return "logprobs", []

    server.outputs = none_after_two_updates
    server.fail("future of save_weights", TRY_AGAIN, when=lambda _: not saved.is_set())
    message = failure(on(server, tmp_path / "r", eval_every=0, save_every=2, submit_ahead=0))
    assert "; last checkpoint: 000002: " in message


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (None, "no answer within 1 s: try again later, or give backend.timeout_seconds to wait longer"),
        (0.5, "no answer within backend.timeout_seconds: raise it, or leave it out to wait for ever"),
    ],
)
def test_a_server_that_never_answers_is_given_up(server, monkeypatch, limit, said):
    monkeypatch.setattr(server_module, "_PROBE_SECONDS", 0.1)
    monkeypatch.setattr(server_module, "_MOST_SECONDS", 0.6)
    answering = threading.Event()
    server.fail("healthz", (200, {}), then=answering.wait)  # those after it wait behind it
    there = Server(server.url, limit)
    with pytest.raises(ServiceError) as raised:
        there.check_reachable()
    assert str(raised.value) == f"{server.url}: its models: {said}"
    answering.set()
    there.worker.submit(lambda: None).result()  # what was given up is answered: nothing is left behind
    server.mend("healthz")
    there.check_reachable()


def test_what_is_not_deleted_is_never_told_by_the_worker(server, caplog):
    """It may outlive the run, and what it says would come after the run's last word."""
    caplog.set_level(logging.WARNING, "harness")
    server.fail("DELETE training_runs/checkpoints/weights/1", (403, {"detail": "it is published"}))
    there = Server(server.url)
    there.remove("tinker://a/weights/1")
    there.worker.submit(lambda: None).result()  # the answer is there
    assert not caplog.messages
    there.remove("tinker://a/weights/2")
    assert caplog.messages == [
        f"{server.url}: checkpoints are not deleted (it is published): those that are not kept stay there"
    ]


LEFT = """
import atexit, logging, sys, threading, time
import tinker

@atexit.register  # before those of the SDK's threads: called after them
def left():
    print([thread.name for thread in threading.enumerate()])

from harness.backends.tinker_service.backend import TinkerBackend

logging.disable()
backend = TinkerBackend(base_url=sys.argv[1])
client = backend.create_training_client(model_name="unigram", lora_rank=4, seed=0, numerics={}, run_path=None)
targets = dict(target_tokens=[2, 3], weights=[1.0, 1.0])
datum = tinker.Datum(model_input=tinker.ModelInput.from_ints([1, 2]), loss_fn_inputs=targets)
client.forward_backward([datum], "cross_entropy")
time.sleep(0.5)
raise SystemExit(2)
"""


def test_work_of_the_sdk_ends_before_the_interpreter_does(server):
    """What is at work then aborts the process."""
    server.fail("future of forward_backward", TRY_AGAIN)
    ended = subprocess.run([sys.executable, "-c", LEFT, server.url], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (2, "")
    assert ended.stdout == "['MainThread', 'tinker-service']\n"  # ours is idle


def test_a_conversation_that_is_ended_is_no_interrupted_session(server, tmp_path):
    backend = TinkerBackend(base_url=server.url)

    def conversation():
        client = backend.create_sampling_client(
            model_name="unigram", lora_rank=4, seed=0, numerics={}, run_path=tmp_path, weights_path=None
        )
        try:
            yield client
        finally:
            backend.close(client)

    talking = conversation()
    next(talking)
    talking.close()
    assert server.asked("sessions/finish")[-1]["reason"] == {"type": "success"}
