import dataclasses
import shutil

import pytest

from harness.backends import LocalBackend
from harness.backends.local import checkpoint
from harness.derive import make_fork
from harness.exceptions import BackendError, ConfigError, RunDirError
from harness.pruning import Keep, carry_out, plan
from harness.run_dir import RunDir
from tests.fakes import Died, FakeBackend
from tests.prunable import FILES, on_disk, prunable, record, save, tree
from tests.supervised.runs import config, same
from tests.supervised.runs import run as train

NLLS = {0: 5.0, 2: 4.0, 4: 3.0, 6: 3.5, 8: 3.6}


def prune(run, words):
    """As the command does it with --yes; the lines that it prints."""
    with run.lock():
        found = plan(run, Keep.of(words))
        carry_out(found)
    return found.lines()


def usable(run):
    return [r.step for r in run.checkpoints() if r.is_usable]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("best,final", [4, 8]),
        ("best", [4]),
        ("final", [8]),
        ("last", [8]),
        ("2", [6, 8]),
        ("best, 2", [4, 6, 8]),
        ("1,3", [4, 6, 8]),
        ("9", [2, 4, 6, 8]),
    ],
)
def test_what_stays_of_a_finished_run(tmp_path, words, expected):
    run = prunable(tmp_path / "r", NLLS)
    before = tree(run.path)
    prune(run, words)
    assert usable(run) == expected
    assert on_disk(run) == [f"{step:06d}" for step in expected]
    gone = [f"checkpoints/{r.name}/" for r in run.checkpoints() if r.deleted]
    after = tree(run.path)
    for path, content in before.items():
        if path == "checkpoints.jsonl":
            assert after[path].startswith(content)
        elif not path.startswith(tuple(gone)):
            assert after[path] == content
    assert after.keys() - before.keys() <= {".lock"}
    assert plan(run, Keep.of(words)).removals == []


def test_what_is_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = prunable(tmp_path / "r", NLLS | {6: None})
    size = sum(path.stat().st_size for path in (run / "checkpoints" / "000002").iterdir())
    found = plan(run, Keep.of("best,final"))
    assert found.lines() == [
        "r: keeps 000004 (best), 000008 (final)",
        f"  000002  step 2, test NLL 4.0000  {size / 1000:.1f} kB",
        f"  000006  step 6  {size / 1000:.1f} kB",
    ]
    assert found.size == 2 * size
    assert plan(run, Keep.of("9")).lines() == [
        "r: keeps 000002 (newest), 000004 (newest), 000006 (newest), 000008 (newest); nothing to remove"
    ]


def test_the_best_is_the_best_of_those_that_are_there(tmp_path):
    run = prunable(tmp_path / "r", {0: 1.0, 2: 4.0, 4: 3.0, 6: 3.5})  # never better than before it was trained
    prune(run, "best")
    assert usable(run) == [4]


@pytest.mark.parametrize("state", [None, "FAILED", "KILLED"])
def test_an_unfinished_run_keeps_the_state_that_it_resumes_from(tmp_path, state):
    run = prunable(tmp_path / "r", NLLS, state=state)
    lines = prune(run, "best,final")
    assert lines[0].endswith("r: keeps 000004 (best), 000008 (needed to resume)")
    assert usable(run) == [4, 8]


def test_that_state_is_the_newest_that_is_whole_and_has_its_rows(tmp_path):
    run = prunable(tmp_path / "r", NLLS, state=None)
    run.append_checkpoint(record(20))  # of rows that a power cut took
    save(run, 20)
    (run / "checkpoints" / "000008" / checkpoint.OPTIMIZER).write_bytes(b"damaged")
    prune(run, "best")
    assert usable(run) == [4, 6]


def test_a_run_that_was_killed_goes_on_from_there_as_if_nothing_had_been_pruned(tmp_path):
    whole = train(config(tmp_path / "whole"))
    with pytest.raises(Died):
        train(config(tmp_path / "r", keep="all", backend=FakeBackend(die_after=24)))
    killed = RunDir(tmp_path / "r")
    newest = killed.checkpoints()[-1].step
    prune(killed, "final")
    assert on_disk(killed) == [f"{newest:06d}"]
    resumed = train(config(tmp_path / "r", keep="all"))
    assert resumed.attempts()[-2]["next_step"] == newest
    assert same(resumed.metrics()) == same(whole.metrics())


def test_nothing_goes_where_the_words_name_none_of_its_checkpoints(tmp_path):
    run = prunable(tmp_path / "r", {2: None, 4: None})
    lines = prune(run, "best")
    assert lines[1:] == ["  none of its 2 checkpoints is one to keep: all left as they are"]
    assert on_disk(run) == ["000002", "000004"]


def test_superseded_states_go_and_what_was_deleted_half_goes_wholly(tmp_path):
    run = prunable(tmp_path / "r", NLLS)
    run.append_checkpoint(dataclasses.replace(record(2), superseded=True))
    run.append_checkpoint(dataclasses.replace(record(6), deleted=True))  # and a crash came
    lines = prune(run, "best,final")
    assert [line.split("  ")[1:3] for line in lines[1:]] == [
        ["000002", "step 2, test NLL 4.0000, superseded"],
        ["000006", "deleted before, but still there"],
    ]
    assert on_disk(run) == ["000004", "000008"]
    assert [(r.step, r.deleted, r.superseded) for r in run.checkpoints() if not r.is_usable] == [
        (2, True, True), (6, True, False),
    ]  # fmt: skip
    assert plan(run, Keep.of("best,final")).lines()[0].endswith("nothing to remove")


def test_a_checkpoint_whose_state_is_gone_is_marked(tmp_path):
    run = prunable(tmp_path / "r", NLLS)
    shutil.rmtree(run / "checkpoints" / "000002")
    assert plan(run, Keep.of("best,final")).removals[0].size == 0
    prune(run, "best,final")
    assert usable(run) == [4, 8]


def test_a_crash_between_mark_and_removal_leaves_what_the_next_call_removes(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    run = prunable(tmp_path / "r", NLLS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalBackend, "remove_checkpoint", die)
        prune(run, "best,final")
    assert (usable(run), on_disk(run)) == ([4, 6, 8], ["000002", "000004", "000006", "000008"])
    prune(run, "best,final")
    assert (usable(run), on_disk(run)) == ([4, 8], ["000004", "000008"])


# ---- what a killed process left


def test_leftovers_are_listed_and_go(tmp_path):
    run = prunable(tmp_path / "r", NLLS)
    save(run, 9)  # no record of it
    half = run / "checkpoints" / ".000010.tmp"
    half.mkdir()
    (half / checkpoint.ADAPTER).write_bytes(b"x" * 500)
    shutil.copytree(run / "checkpoints" / "000008", run / "checkpoints" / ".000008.old")
    found = plan(run, Keep.of("9"))
    assert [(removal.name, removal.about) for removal in found.removals] == [
        (".000008.old", "half written"),
        (".000010.tmp", "half written"),
        ("000009", "never logged"),
    ]
    prune(run, "9")
    assert on_disk(run) == ["000002", "000004", "000006", "000008"]


def test_what_only_looks_like_a_leftover_stays(tmp_path):
    run = prunable(tmp_path / "r", NLLS)
    folder = run / "checkpoints"
    shutil.copytree(folder / "000008", folder / "my-favourite")
    shutil.copytree(folder / "000008", folder / "000011")
    (folder / "000011" / "notes.txt").write_text("mine")
    shutil.copytree(folder / "000008", folder / "000012")
    (folder / "000012" / checkpoint.MANIFEST).unlink()
    (folder / ".000013.tmp").mkdir()
    (folder / ".000013.tmp" / "thesis.tex").write_text("mine")
    shutil.copytree(folder / "000008", folder / ".000014.old")  # its new one is missing: the next attempt takes it back
    (folder / "000015").write_text("a file")
    (folder / ".mine.tmp").mkdir()
    assert plan(run, Keep.of("9")).removals == []


# ---- links


def test_links_lead_no_removal_outside(tmp_path):
    run, other = prunable(tmp_path / "r", NLLS), prunable(tmp_path / "other", NLLS)
    before = tree(other.path)
    shutil.rmtree(run / "checkpoints" / "000002")
    (run / "checkpoints" / "000002").symlink_to(other / "checkpoints" / "000002")
    (run / "checkpoints" / "000009").symlink_to(other / "checkpoints" / "000004")
    (run / "checkpoints" / ".000010.tmp").symlink_to(other / "checkpoints" / "000004")
    (run / "checkpoints" / "000006" / checkpoint.ADAPTER).unlink()
    (run / "checkpoints" / "000006" / checkpoint.ADAPTER).symlink_to(
        other / "checkpoints" / "000006" / checkpoint.ADAPTER
    )
    (run / "checkpoints" / "000006" / "folder").symlink_to(other.path)
    run.append_checkpoint(record(7, state_path="../other/checkpoints/000004"))
    lines = prune(run, "best,final")
    assert [line for line in lines if "outside" in line] == [
        f"  000002  {run / 'checkpoints/000002'} lies outside of {run / 'checkpoints'}: left as it is",
        f"  000007  {run / '../other/checkpoints/000004'} lies outside of {run / 'checkpoints'}: left as it is",
    ]
    assert tree(other.path) == before
    assert on_disk(run) == [".000010.tmp", "000002", "000004", "000008", "000009"]
    assert usable(run) == [2, 4, 7, 8]


def test_checkpoints_that_lie_elsewhere_as_a_whole_stay(tmp_path):
    run = prunable(tmp_path / "r", NLLS)
    (run / "checkpoints").rename(tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    save(run, 9)
    before = tree(tmp_path / "disk")
    assert len(prune(run, "best,final")) == 3
    assert tree(tmp_path / "disk") == before


def test_a_link_to_a_run_is_the_run(tmp_path):
    run = prunable(tmp_path / "r", NLLS)
    (tmp_path / "latest").symlink_to(run.path)
    prune(RunDir(tmp_path / "latest"), "best,final")
    assert usable(run) == [4, 8]


# ---- refused


def test_a_run_without_a_backend_and_one_of_a_later_version(tmp_path):
    run = prunable(tmp_path / "r", NLLS, backend=None)
    with pytest.raises(RunDirError, match=r"r: its config\.json names no backend: restore it$"):
        plan(run, Keep.of("best"))
    later = prunable(tmp_path / "later", NLLS, state=None)
    manifest = later / "checkpoints" / "000008" / checkpoint.MANIFEST
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(BackendError, match="format 2, this harness reads up to 1: upgrade it"):
        plan(later, Keep.of("best"))


def test_what_cannot_be_removed_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    run = prunable(tmp_path / "r", NLLS)
    monkeypatch.setattr(LocalBackend, "remove_checkpoint", refuse)
    with pytest.raises(RunDirError) as raised:
        prune(run, "best,final")
    place = run / "checkpoints/000002"
    assert str(raised.value) == f"{place}: cannot be removed (Permission denied): mend it, then prune again"


@pytest.mark.parametrize("word", ["bst", "best_and_last", "0", "-1", "best,", "", "²"])
def test_an_unknown_word(word):
    with pytest.raises(ConfigError, match=r"^--keep .*: '.*' is none of best, last, final, or how many of the newest$"):
        Keep.of(word)


def test_a_fork_does_not_need_its_parents_checkpoint(tmp_path):
    parent = train(config(tmp_path / "parent", keep="all"))
    fork = make_fork(parent, "4", [f"log_path={tmp_path / 'fork'}"], weights_only=False)
    prune(parent, "final")
    assert on_disk(parent) == ["000015"]
    assert same(train(fork).metrics()) == same(parent.metrics())


def test_the_files_of_a_checkpoint_here_are_those_of_the_backend(tmp_path):
    run = prunable(tmp_path / "r", NLLS)
    assert checkpoint.read(run / "checkpoints" / "000008") == FILES
