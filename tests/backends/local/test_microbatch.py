import numpy as np
import pytest
import tinker

from harness.backends.local.microbatch import Sequence, lay_out, plan, read_datum, share
from harness.exceptions import BackendError
from tests.backends.local.support import datum


def test_longest_first_and_padding_counts():
    # 3 rows of 10 would be 30 tokens; 2 rows of 10 are 20; 4 rows of 5 are 20.
    assert plan([5, 10, 5, 10, 5, 10, 5], max_tokens=20, end_to_end=False) == [[1, 3], [5, 0], [2, 4, 6]]


def test_end_to_end_there_is_no_padding_to_count():
    assert plan([5, 10, 5, 10, 5, 10, 5], max_tokens=20, end_to_end=True) == [[1, 3], [5, 0, 2], [4, 6]]


@pytest.mark.parametrize("end_to_end", [True, False])
def test_a_sequence_over_the_budget_goes_alone(end_to_end: bool):
    assert plan([30, 8, 31], max_tokens=20, end_to_end=end_to_end) == [[2], [0], [1]]


@pytest.mark.parametrize("end_to_end", [True, False])
def test_a_sequence_without_loss_is_left_out(end_to_end: bool):
    assert plan([0, 3, 0], max_tokens=20, end_to_end=end_to_end) == [[1]]
    assert plan([], max_tokens=20, end_to_end=end_to_end) == []


def test_parts_have_about_as_many_tokens_each():
    assert share([50, 40, 30, 25, 20, 5], 2) == [[0, 3, 5], [1, 2, 4]]  # 80 and 90
    assert share([50, 40, 30, 25, 20, 5], 3) == [[0, 5], [1, 4], [2, 3]]  # 55, 60 and 55
    assert share([50, 40, 30, 25, 20, 5], 1) == [[0, 1, 2, 3, 4, 5]]


def test_there_are_fewer_parts_where_even_ones_cannot_be_had():
    assert share([30, 30, 29], 4) == [[0], [1], [2]]
    assert share([90, 45, 45], 3) == [[0], [1, 2]]
    assert share([100, 3], 2) == [[0, 1]]
    assert share([7], 2) == [[0]]


def test_what_follows_the_last_loss_is_not_seen():
    sequence = Sequence(np.array([1, 2, 3, 4]), np.array([2, 3, 4, 5]), np.array([0, 0.5, 0, 0], np.float32))
    assert sequence.until_last_loss().tokens.tolist() == [1, 2]
    assert len(Sequence(np.array([1]), np.array([2]), np.zeros(1, np.float32)).until_last_loss()) == 0


ROWS = [
    Sequence(np.array([1, 2, 4]), np.array([2, 3, 5]), np.array([0, 1, 0.25], np.float32)),
    Sequence(np.array([7, 8]), np.array([8, 9]), np.array([0.5, 0], np.float32)),
]


def test_each_in_a_row_of_its_own():
    batch = lay_out(ROWS, end_to_end=False)
    assert batch.tokens.tolist() == [[1, 2, 4], [7, 8, 0]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert batch.lengths is None
    assert batch.places.tolist() == [1, 2, 3]
    assert batch.targets.tolist() == [3, 5, 8]
    assert batch.weights.tolist() == [1, 0.25, 0.5]


def test_end_to_end():
    batch = lay_out(ROWS, end_to_end=True)
    assert batch.tokens.tolist() == [[1, 2, 4, 7, 8]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.lengths == [3, 2]
    assert batch.places.tolist() == [1, 2, 3]
    assert batch.targets.tolist() == [3, 5, 8]
    assert batch.weights.tolist() == [1, 0.25, 0.5]


def text(tokens: list[int], **inputs: list[float]) -> tinker.Datum:
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (text([1, 2], target_tokens=[2, 3]), "datum 7: no weights in its loss_fn_inputs"),
        (text([1, 2]), "datum 7: no target_tokens and no weights in its loss_fn_inputs"),
        (
            text([1, 2], target_tokens=[2, 3], weights=[1]),
            "datum 7: (2,) tokens, (2,) target_tokens, (1,) weights: their shapes must agree",
        ),
        (datum([1] * 6, [1.0] * 5), "datum 7: 5 tokens, and the model's context is 4: lower max_length"),
        (datum([1, 10], [1.0]), "datum 7: token 10 is not among the model's 10: is the tokenizer this model's?"),
        (datum([-1, 1], [1.0]), "datum 7: token -1 is not among the model's 10: is the tokenizer this model's?"),
    ],
)
def test_a_datum_that_the_model_cannot_take(bad: tinker.Datum, message: str):
    with pytest.raises(BackendError) as error:
        read_datum(7, bad, vocab_size=10, max_length=4)
    assert str(error.value) == message


def test_an_image_is_refused():
    chunk = tinker.types.ImageChunk(data=b"x", format="png", expected_tokens=1)
    bad = tinker.Datum(
        model_input=tinker.ModelInput(chunks=[chunk]),
        loss_fn_inputs={"target_tokens": [1], "weights": [1.0]},  # pyright: ignore[reportArgumentType]
    )
    with pytest.raises(BackendError, match=r"^datum 0: the local backend takes text only"):
        read_datum(0, bad, vocab_size=10, max_length=None)
