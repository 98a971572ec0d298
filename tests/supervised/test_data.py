import json
import random
import re
from typing import Any

import datasets
import pytest

from harness.exceptions import DataError, DataFileNotFoundError, RendererError
from harness.renderers import TrainOnWhat, get_renderer
from harness.supervised.data import (
    FromConversationFileBuilder,
    SupervisedDatasetFromHFDataset,
    SupervisedDatasetFromRows,
    conversation_to_datum,
    read_conversations,
)
from harness.supervised.datum import example_id, loss_weights, target_tokens
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from tests.fakes import byte_datum
from tests.tiny_model import make_tiny_model, make_tiny_tokenizer

TALK = [{"role": "user", "content": "how are you"}, {"role": "assistant", "content": "fine"}]


def talk(answer):
    return [TALK[0], {"role": "assistant", "content": answer}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def builder(model, tmp_path):
    def make(rows, **changes):
        common = ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer=model, renderer_name="chat_template", max_length=64, batch_size=2
        )
        return FromConversationFileBuilder(common_config=common, file_path=write(tmp_path / "d.jsonl", rows), **changes)

    return make


def texts(dataset):
    return [example_id(datum) for batch in dataset.all_batches() for datum in batch]


def test_conversation_to_datum_takes_the_seeds_and_the_cookbook_s_names():
    renderer = get_renderer("chat_template", make_tiny_tokenizer())
    by_position = conversation_to_datum(TALK, renderer, 64, TrainOnWhat.ALL_ASSISTANT_MESSAGES)
    for named in (
        conversation_to_datum(messages=TALK, renderer=renderer, max_length=64, train_on_what=None),
        conversation_to_datum(conversation=TALK, renderer=renderer, max_length=64),
    ):
        assert example_id(named) == example_id(by_position)
    with pytest.raises(TypeError, match="needs a renderer"):
        conversation_to_datum(TALK)
    with pytest.raises(RendererError, match="messages must be a list of roles and contents, found NoneType"):
        conversation_to_datum(None, renderer)


def test_a_conversation_is_cut_at_max_length_and_says_so():
    renderer = get_renderer("chat_template", make_tiny_tokenizer())
    whole = conversation_to_datum(TALK, renderer, None)
    num_tokens = whole.model_input.length + 1
    cut = conversation_to_datum(TALK, renderer, num_tokens - 3)
    assert (cut.num_truncated, cut.end_cut_off) == (3, True)
    assert not conversation_to_datum(TALK, renderer, num_tokens - 1).end_cut_off  # the line break after the turn
    assert cut.model_input.to_ints() == whole.model_input.to_ints()[:-3]
    assert target_tokens(cut).tolist() == target_tokens(whole).tolist()[:-3]
    assert loss_weights(cut).tolist() == loss_weights(whole).tolist()[:-3]
    assert not loss_weights(conversation_to_datum(TALK, renderer, 4)).any()


def test_rows_are_shuffled_by_the_seed_alone_and_the_tail_differs():
    dataset = SupervisedDatasetFromRows([{"t": f"row{i}"} for i in range(7)], 3, lambda row: byte_datum(row["t"]))
    assert (len(dataset), dataset.num_left_over) == (2, 1)

    def epoch(seed):
        dataset.set_epoch(seed)
        return [example_id(datum) for index in range(2) for datum in dataset.get_batch(index)]

    first = epoch(0)
    assert epoch(1) != first
    assert epoch(0) == first
    assert len(set(first) | set(epoch(1)) | set(epoch(2))) == 7
    assert sorted(texts(dataset)) == sorted(set(texts(dataset)))
    assert len(texts(dataset)) == 7  # evaluation drops none
    with pytest.raises(IndexError):
        dataset.get_batch(2)


def test_a_hugging_face_dataset():
    hf_dataset = datasets.Dataset.from_list([{"prompt": f"p{i}", "n": i} for i in range(5)])
    dataset = SupervisedDatasetFromHFDataset(
        hf_dataset=hf_dataset, batch_size=2, map_fn=lambda row: byte_datum(row["prompt"] + str(row["n"]))
    )
    assert len(dataset) == 2
    assert [d.model_input.to_ints() for d in dataset.get_batch(1)] == [[*b"p22"], [*b"p33"]]
    same = SupervisedDatasetFromHFDataset(hf_dataset.select(range(5)), 3, map_fn=lambda row: byte_datum(row["prompt"]))
    other = SupervisedDatasetFromHFDataset(hf_dataset.select([1, 0, 2, 3, 4]), 3, map_fn=lambda row: byte_datum("ab"))
    assert same.fingerprint() == dataset.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": None}, "messages must be a list of roles and contents, found NoneType"),
        (
            {"conversations": []},
            r'no "messages" key; found \[\'conversations\'\]: make the mapping function read one of these',
        ),
        ({"messages": [{"role": "user", "content": "x" * 99}, {"role": "bot"}]}, r"messages\[1\]\.role is 'bot'"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_beginning(row, reason):
    renderer = get_renderer("chat_template", make_tiny_tokenizer())
    dataset = SupervisedDatasetFromRows([row], 1, lambda row: conversation_to_datum(row["messages"], renderer))
    text = json.dumps(row)
    shown = text if len(text) < 80 else text[:80] + "…"
    with pytest.raises(DataError, match=f"^row 0, {re.escape(shown)}: {reason}"):
        dataset.get_batch(0)


def test_a_key_that_the_user_s_own_function_misses_stays_a_key_error():
    labels = {"good": 1}
    dataset = SupervisedDatasetFromRows([{"label": "bad"}], 1, lambda row: byte_datum(str(labels[row["label"]])))
    with pytest.raises(KeyError, match="bad"):
        dataset.get_batch(0)


def test_a_row_that_datasets_cannot_read_is_named(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'{"t": "ab"}\n{"t": "q\xff"}\n')
    hf_dataset = datasets.load_dataset("json", data_files=str(file), split="train")
    dataset = SupervisedDatasetFromHFDataset(hf_dataset, 1, lambda row: byte_datum(row["t"]))
    for read in (dataset.fingerprint, lambda: dataset.get_batch(1)):
        with pytest.raises(
            DataError,
            match=r"^row 1 of hf_dataset \(json, split train\) cannot be read \('utf-8' codec can't .*\): mend it in",
        ):
            read()


def test_bad_rows_are_set_aside_where_that_is_asked_for(tmp_path, caplog):
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'{"t": "ab"}\n{"t": "q\xff"}\n{"t": "cd"}\n{"t": null}\n{"t": "ef"}\n')
    hf_dataset = datasets.load_dataset("json", data_files=str(file), split="train")

    def to_datum(row):
        return byte_datum(row["t"]) if row["t"] else None

    dataset = SupervisedDatasetFromHFDataset(hf_dataset, 2, to_datum, on_bad_row="quarantine")  # pyright: ignore[reportArgumentType]
    unreadable, empty = dataset.quarantined
    assert (unreadable["row"], unreadable["text"]) == (1, None)
    assert "cannot be read" in unreadable["reason"]
    assert (empty["row"], empty["text"]) == (3, '{"t": null}')
    assert empty["reason"].startswith('row 3 of hf_dataset (json, split train), {"t": null}: map_fn gave a NoneType')
    assert (len(dataset), dataset.num_left_over) == (1, 1)
    whole = SupervisedDatasetFromHFDataset(hf_dataset.select([0, 2, 4]), 2, to_datum)  # pyright: ignore[reportArgumentType]
    assert texts(dataset) == texts(whole)
    assert dataset.fingerprint() == whole.fingerprint()
    dataset.set_epoch(5)
    whole.set_epoch(5)
    assert texts(dataset) == texts(whole)
    assert caplog.messages[0].startswith("2 of 5 rows are bad and set aside; row 1 of hf_dataset")
    with pytest.raises(DataError, match="all of the 1 rows are bad; row 0 of hf_dataset"):
        SupervisedDatasetFromHFDataset(hf_dataset.select([3]), 1, to_datum, on_bad_row="quarantine")  # pyright: ignore[reportArgumentType]


def test_what_a_mapping_function_must_not_give():
    import tinker

    datum: Any = byte_datum("abc")
    unweighted: Any = tinker.Datum(datum.model_input, {"target_tokens": datum.loss_fn_inputs["target_tokens"]})
    short = tinker.Datum(tinker.ModelInput.from_ints([1, 2]), datum.loss_fn_inputs)
    single: list[tuple[Any, str]] = [
        ({"a": 1}, "a dict"),
        (unweighted, "a datum without weights"),
        (short, "a datum of 2 input tokens and 3 target_tokens"),
    ]
    for given, found in single:
        dataset = SupervisedDatasetFromRows([{}], 1, lambda row, given=given: given)
        with pytest.raises(
            DataError, match=f"map_fn gave {found}: it must give a tinker.Datum with a target and a weight"
        ):
            dataset.get_batch(0)
    several: list[tuple[Any, str]] = [(datum, "a ConversationDatum"), (None, "a NoneType"), ([[datum]], "a list")]
    for given, found in several:
        dataset = SupervisedDatasetFromRows([{}], 1, flatmap_fn=lambda row, given=given: given)
        with pytest.raises(DataError, match=f"flatmap_fn gave {found}: it must give a list of tinker.Datums"):
            dataset.get_batch(0)


def test_test_size_splits_by_content(builder):
    rows = [{"messages": talk(f"answer {i}")} for i in range(20)]
    train, test = builder(rows, test_size=5)()
    held_out = set(texts(test))
    assert len(held_out) == 5
    assert not held_out & set(texts(train))
    assert len(texts(train)) == 15

    random.Random(0).shuffle(rows)
    _, shuffled = builder(rows, test_size=5)()
    assert set(texts(shuffled)) == held_out

    _, more = builder([*rows, *({"messages": talk(f"new {i}")} for i in range(2))], test_size=5)()
    assert len(held_out - set(texts(more))) <= 2  # each new row can take the place of one

    _, reseeded = builder(rows, test_size=5, shuffle_seed=1)()
    assert set(texts(reseeded)) != held_out


def test_a_datum_knows_where_its_conversation_stands(builder, tmp_path):
    test_file = write(tmp_path / "t.jsonl", [{"messages": TALK}, {"messages": talk("b")}])
    _, test = builder([{"messages": TALK}], test_file_path=test_file)()
    found = [datum.where for i in range(len(test)) for datum in test.get_batch(i)]
    assert sorted(found) == [f"{test_file}:1", f"{test_file}:2"]


def test_copies_of_a_conversation_fall_on_one_side(builder):
    rows = [{"messages": talk(f"answer {i % 10}")} for i in range(20)]
    train, test = builder(rows, test_size=5)()
    assert not set(texts(train)) & set(texts(test))
    assert len(texts(train)) + len(texts(test)) == 20
    assert len(texts(test)) == 6
    with pytest.raises(DataError, match="the others are copies"):
        builder([{"messages": TALK}] * 4, test_size=1)()


def test_a_test_file(builder, tmp_path):
    test_file = write(tmp_path / "t.jsonl", [{"messages": TALK}])
    train, test = builder([{"messages": talk("a")}, {"messages": talk("b")}], test_file_path=test_file)()
    assert (len(texts(train)), len(texts(test))) == (2, 1)
    train, test = builder([{"messages": TALK}])()
    assert test is None


def test_the_fingerprint_is_of_the_conversations_not_of_the_file(builder, tmp_path):
    rows = [{"messages": TALK, "other": 1}, {"messages": talk("a")}]
    train, _ = builder(rows)()
    (tmp_path / "d.jsonl").rename(tmp_path / "moved.jsonl")
    moved, _ = builder([{"messages": row["messages"]} for row in rows])()
    assert moved.fingerprint() == train.fingerprint()
    fewer, _ = builder(rows[:1])()
    assert fewer.fingerprint() != train.fingerprint()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"messages": [}'], r"d\.jsonl:1: not JSON"),
        (["", "[1]"], r"d\.jsonl:2: found list, not an object: every line must be one JSON object"),
        (['{"prompt": "x"}'], r"d\.jsonl:1: no \"messages\" key; found \['prompt'\]"),
        (['{"messages": []}'], r"d\.jsonl:1: messages is empty"),
        (['{"messages": "hi"}'], r"d\.jsonl:1: messages must be a list"),
        (['{"messages": [{"role": "user", "content": null}]}'], r"d\.jsonl:1: messages\[0\]\.content must be a string"),
        (["", " "], r"d\.jsonl: no conversations in it"),
        (["[" * 100_000], r"d\.jsonl:1: nested too deeply"),
    ],
)
def test_bad_lines_name_the_file_the_line_and_what_was_found(tmp_path, lines, message):
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        read_conversations(str(tmp_path / "d.jsonl"))


def test_a_file_that_is_not_there_and_one_that_is_a_folder(tmp_path):
    with pytest.raises(DataFileNotFoundError, match=r"^Data file not found: .*nowhere\.jsonl"):
        read_conversations(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match="not a file"):
        read_conversations(str(tmp_path))


def test_what_the_renderer_refuses_names_the_line(builder):
    train, _ = builder([{"messages": TALK}, {"messages": TALK}])()
    train._rows[1]["messages"] = [{"role": "user"}]
    with pytest.raises(DataError, match=r'd\.jsonl:2: messages\[0\] has no "content"'):
        train.get_batch(0)


def test_test_sizes_that_cannot_be(builder):
    rows = [{"messages": TALK}, {"messages": talk("a")}]
    with pytest.raises(DataError, match="test_size=2 leaves nothing to train on of the 2 conversations"):
        builder(rows, test_size=2)()
    with pytest.raises(ValueError, match="are two test sets"):
        builder(rows, test_size=1, test_file_path="t.jsonl")
    with pytest.raises(ValueError, match="batch_size=0"):
        ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer="m", renderer_name="role_colon", max_length=None, batch_size=0
        )
