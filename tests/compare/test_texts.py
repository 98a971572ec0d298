import json

import pytest

from harness.compare import load_runs
from harness.compare.texts import find_conversations
from harness.exceptions import DataError, DataFileNotFoundError
from harness.supervised.conversation_files import read_conversations, split_by_content
from harness.supervised.data import FromConversationFileBuilder
from harness.supervised.datum import example_id
from harness.supervised.evaluators import NLLEvaluator
from harness.supervised.mapping import fingerprint
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from tests.compare.made_runs import last_row, make_run, scored
from tests.tiny_model import make_tiny_model


def talk(i, **more):
    words = [{"role": "user", "content": f"what of {i}"}, {"role": "assistant", "content": f"it is {i}"}]
    return {"messages": words} | more


def write(path, rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def run_on(folder, rows, ids, *, contents=None, **builder):
    """A run whose test set is the conversations ``rows``, and which scored examples of these ids."""
    contents = fingerprint(row["messages"] for row in rows) if contents is None else contents
    data = {"train": "beef", "test": {"": "feed"}, "test_contents": {"": contents} if contents else {}}
    fields = {f"dataset_builder__{name}": value for name, value in builder.items()}
    examples = scored([1.0] * len(ids), [1] * len(ids), ids)
    return make_run(folder / "r", [last_row(1, 1.0)], examples=examples, document={"data": data}, **fields)


def found(folder, on=""):
    runs = load_runs(folder / "r")
    evaluation = runs.evaluation("r", 1)
    assert evaluation
    return find_conversations(runs, "r", evaluation, on)


def test_those_of_a_test_file_are_found_by_their_place(tmp_path):
    rows = [talk(0), {"messages": talk(1)["messages"][:1]}, talk(2)]  # the second has nothing to score
    file = write(tmp_path / "test.jsonl", rows)
    run_on(tmp_path, rows, ["digest0", "digest2"], file_path="gone.jsonl", test_file_path=str(file))
    assert found(tmp_path) == {"digest0": rows[0]["messages"], "digest2": rows[2]["messages"]}


def test_those_held_out_are_found_by_their_content(tmp_path):
    file = write(tmp_path / "d.jsonl", [talk(i) for i in range(20)])
    _, test = split_by_content(read_conversations(str(file)), 5, 3)
    run_on(tmp_path, test, list("vwxyz"), file_path=str(file), test_size=5, shuffle_seed=3)
    assert list(found(tmp_path).values()) == [row["messages"] for row in test]
    write(file, [talk(i) for i in reversed(range(20))])
    with pytest.raises(DataError, match="does not hold the conversations that were tested on"):
        found(tmp_path)  # each is still there, and its place is not


def test_of_several_that_share_an_id_the_first_is_found(tmp_path):
    rows = [talk(0, id="a"), talk(1, id="a"), talk(2, id="b")]
    file = write(tmp_path / "d.jsonl", rows)
    run_on(tmp_path, rows, ["a", "a", "b"], test_file_path=str(file))
    assert found(tmp_path) == {"a": rows[0]["messages"], "b": rows[2]["messages"]}


def test_where_max_length_left_some_out_ids_tell_which(tmp_path):
    rows = [talk(0, id=7), talk(1), talk(2, id="b")]
    file = write(tmp_path / "d.jsonl", rows)
    run_on(tmp_path, rows, ["7", "digest"], test_file_path=str(file))
    assert found(tmp_path) == {"7": rows[0]["messages"], "b": rows[2]["messages"]}


def test_where_nothing_tells_which_none_is_guessed(tmp_path):
    rows = [talk(0), talk(1)]
    file = write(tmp_path / "d.jsonl", rows)
    run_on(tmp_path, rows, ["digest"], test_file_path=str(file))
    with pytest.raises(DataError) as error:
        found(tmp_path)
    assert str(error.value) == (
        f"max_length left nothing to score of 1 of the 2 test conversations in {file}, and only rendering tells "
        'which: give each an "id"'
    )


def test_lines_in_quarantine_are_left_out(tmp_path):
    rows = [talk(0), "nonsense", talk(1)]
    file = write(tmp_path / "d.jsonl", rows)
    made = run_on(tmp_path, [rows[0], rows[2]], ["x", "y"], test_file_path=str(file))
    with pytest.raises(DataError, match=r"d\.jsonl:2: not JSON"):
        found(tmp_path)
    made.write_quarantine([{"file": str(file), "line": 2}, {"file": "other.jsonl", "line": 1}, {"row": 1}])
    assert list(found(tmp_path)) == ["x", "y"]


def test_why_none_is_at_hand(tmp_path):
    rows = [talk(0), talk(1)]
    file = write(tmp_path / "d.jsonl", rows)
    builder = "harness.supervised.data:FromConversationFileBuilder"
    changed = (
        f"{file} does not hold the conversations that were tested on: it was changed since, or {builder} makes "
        "another test set of it"
    )
    for number, (reason, more) in enumerate(
        {
            "Data file not found: gone.jsonl": {"test_file_path": "gone.jsonl"},
            changed: {"test_file_path": str(file), "contents": "0" * 16},
            f"{changed} ": {"file_path": str(file)},  # no test set of this builder's
            f"{changed}  ": {"file_path": str(file), "test_size": 2},  # it has become too short for that
            "config.json does not say what the test conversations were": {"test_file_path": str(file), "contents": ""},
            f"{builder} reads no file of conversations": {"file_path": None},
        }.items()
    ):
        run_on(tmp_path / str(number), rows, ["x", "y"], **more)
        with pytest.raises((DataError, DataFileNotFoundError)) as error:
            found(tmp_path / str(number))
        assert str(error.value) == reason.rstrip()
    run_on(tmp_path, rows, ["x", "y"], test_file_path=str(file))
    with pytest.raises(DataError, match=r'^they are looked up for the unnamed test set, and not for "math"$'):
        found(tmp_path, on="math")
    (tmp_path / "r" / "config.json").unlink()
    with pytest.raises(DataError, match=r"^no config\.json names their file$"):
        found(tmp_path)


def test_a_file_of_other_rows_is_no_file_of_conversations(tmp_path):
    file = write(tmp_path / "d.jsonl", [{"prompt": "x"}])
    run_on(tmp_path, [talk(0)], ["x"], test_file_path=str(file))
    with pytest.raises(DataError, match="does not hold the conversations that were tested on"):
        found(tmp_path)


def test_each_is_the_one_that_was_scored(tmp_path):
    rows = [talk(i, slice="odd" if i % 2 else None) for i in range(30)]
    rows[3]["messages"] = rows[3]["messages"][:1]
    file = write(tmp_path / "d.jsonl", rows)
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=str(make_tiny_model(tmp_path / "model")),
        renderer_name="role_colon",
        max_length=64,
        batch_size=4,
    )
    builder = FromConversationFileBuilder(common_config=common, file_path=str(file), test_size=12, shuffle_seed=1)
    _, test_set = builder()
    assert test_set is not None
    evaluator = NLLEvaluator("", test_set, builder.tokenizer)
    ids = [example_id(datum) for datum in evaluator.data]
    options = {"file_path": str(file), "test_size": 12, "shuffle_seed": 1}
    run_on(tmp_path, [], ids, contents=test_set.fingerprint(), **options)
    conversations = found(tmp_path)
    assert list(conversations) == ids and len(ids) == 11  # one has nothing to score
    for name, messages in conversations.items():
        assert example_id(builder._datum({"messages": messages, "id": "", "slice": None, "where": ""})) == name
