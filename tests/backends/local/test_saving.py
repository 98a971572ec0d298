"""Training goes on while a checkpoint is written: what is in it, what is answered when, and what a failure stops."""

import concurrent.futures
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.backends.local.client import LocalTrainingClient
from harness.backends.local.engine import Engine
from harness.exceptions import BackendError
from tests.backends.local.support import ADAM, VOCAB_SIZE, datum, files, random_data, train

Make = Callable[..., LocalTrainingClient]


class HeldWrites:
    """What was copied waits until ``go`` is set before any of it is serialised or written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.begun, self.go = threading.Event(), threading.Event()
        self.names: list[str] = []  # in the order in which they began
        snapshot = Engine.snapshot

        def snapshot_held(engine: Engine, **options: Any) -> Callable[[Path], None]:
            write = snapshot(engine, **options)

            def held(folder: Path) -> None:
                self.names.append(folder.name)
                self.begun.set()
                assert self.go.wait(60)
                write(folder)

            return held

        monkeypatch.setattr(Engine, "snapshot", snapshot_held)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldWrites]:
    held = HeldWrites(monkeypatch)
    yield held
    held.go.set()  # a client is closed once it has written


def test_a_save_is_of_its_place_in_the_queue_whenever_it_is_written(make: Make, tmp_path: Path, writes: HeldWrites):
    client, idle = make(), make()
    train(client, range(2))
    saved = [client.save_state("meanwhile"), client.save_weights_for_sampler("meanwhile-too")]
    train(client, range(2, 5))
    client.forward(random_data([5]), "cross_entropy").result()  # three more updates are made by then
    assert not any(save._future.done() for save in saved)
    assert not (tmp_path / "checkpoints").exists()
    writes.go.set()

    train(idle, range(2))
    expected = [idle.save_state("idle"), idle.save_weights_for_sampler("idle-too")]
    for save, other in zip(saved, expected, strict=True):
        assert files(tmp_path / save.result().path) == files(tmp_path / other.result().path)


def test_saves_are_written_and_answered_in_order(make: Make, writes: HeldWrites):
    client = make()
    saves = []
    for name in ("a", "b"):
        train(client, range(1))
        saves += [client.save_state(name), client.save_weights_for_sampler(name)]
    client.forward(random_data([5]), "cross_entropy").result()
    assert not any(save._future.done() for save in saves), "the sampler's answer is no earlier than the state it names"
    answered: list[str] = []
    for save in saves:
        save._future.add_done_callback(lambda future: answered.append(future.result().path))
    writes.go.set()
    saves[-1].result()
    client.close()  # the writer has told of every answer by then
    assert writes.names == ["a", "b"]
    assert answered == ["checkpoints/a", "checkpoints/a", "checkpoints/b", "checkpoints/b"]


def test_a_failed_write_fails_what_has_not_run_by_then(make: Make, tmp_path: Path, writes: HeldWrites):
    client = make()
    (tmp_path / "checkpoints").write_text("in the way")
    saved, sampler, later = client.save_state("a"), client.save_weights_for_sampler("a"), client.save_state("b")
    client.forward(random_data([5]), "cross_entropy").result()  # runs meanwhile
    writes.go.set()
    message = f"{tmp_path}/checkpoints/a: cannot be written (Not a directory): make room, then resume the run"
    with pytest.raises(BackendError) as error:
        saved.result()
    assert str(error.value) == message
    requests = {
        "save_weights_for_sampler": sampler,
        "save_state": later,
        "optim_step": client.optim_step(ADAM),
    }
    for name, future in requests.items():
        with pytest.raises(BackendError) as error:
            future.result()
        assert str(error.value) == f"{message} (in save_state; {name} after it was not run)"
    assert writes.names == ["a"]


def test_a_request_that_fails_does_not_fail_the_saves_before_it(make: Make, tmp_path: Path, writes: HeldWrites):
    client = make()
    saved, sampler = client.save_state("a"), client.save_weights_for_sampler("a")
    with pytest.raises(BackendError):
        client.forward([datum([1, VOCAB_SIZE], [1.0])], "cross_entropy").result()
    writes.go.set()
    assert saved.result() == sampler.result()
    assert "manifest.json" in files(tmp_path / saved.result().path)
    with pytest.raises(BackendError, match=r" \(in forward; save_state after it was not run\)$"):
        client.save_state("b").result()
    assert writes.names == ["a"]


def test_close_finishes_the_write_under_way_alone(make: Make, tmp_path: Path, writes: HeldWrites):
    client = make()
    under_way, waiting = client.save_state("a"), client.save_state("b")
    client.forward(random_data([5]), "cross_entropy").result()  # both are copied
    assert writes.begun.wait(60)
    closing = threading.Thread(target=client.close)
    closing.start()
    assert client._engine.closing.wait(60)
    writes.go.set()
    closing.join()
    assert "manifest.json" in files(tmp_path / under_way.result().path)
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    assert writes.names == ["a"]


def test_close_ends_a_request_at_its_next_micro_batch(make: Make, monkeypatch: pytest.MonkeyPatch):
    client = make(micro_batch_tokens=1)  # each datum by itself
    num_run = 0
    begun = threading.Event()
    micro_batch = client._engine._micro_batch

    def held(*args: Any, **options: Any) -> Any:
        nonlocal num_run
        num_run += 1
        begun.set()
        assert client._engine.closing.wait(60)
        return micro_batch(*args, **options)

    monkeypatch.setattr(client._engine, "_micro_batch", held)
    running = client.forward_backward(random_data([20] * 5), "cross_entropy")
    waiting = [client.optim_step(ADAM), client.save_state("a")]
    assert begun.wait(60)
    client.close()
    assert num_run == 1
    for future in (running, *waiting):
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()


def test_a_client_settles_what_a_killed_process_left(make: Make, tmp_path: Path):
    client = make()
    train(client, range(1))
    for name in ("a", "b"):
        client.save_state(name).result()
    saved = files(tmp_path / "checkpoints/a")
    folder = tmp_path / "checkpoints"
    (folder / "a").rename(folder / ".a.old")  # killed before the new one came in its place
    shutil.copytree(folder / "b", folder / ".a.tmp")
    shutil.copytree(folder / "b", folder / ".b.old")  # killed just after
    (folder / ".c.tmp").mkdir()  # killed while the first file was made
    for not_ours in (".mine", "mine.tmp", ".c.old.d"):
        (folder / not_ours).mkdir()
    (folder / ".d.tmp").write_text("a file is not ours either")

    resumed = make(state_path="checkpoints/a")
    assert sorted(p.name for p in folder.iterdir()) == [".c.old.d", ".d.tmp", ".mine", "a", "b", "mine.tmp"]
    assert resumed._engine.num_steps == 1
    assert files(folder / "a") == saved
