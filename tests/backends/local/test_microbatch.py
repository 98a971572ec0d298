import numpy as np
import pytest
import tinker

from harness.backends.local.microbatch import Sequence, pad, plan, read_datum
from harness.exceptions import BackendError
from tests.backends.local.support import datum


def test_longest_first_and_padding_counts():
    # 3 rows of 10 would be 30 tokens; 2 rows of 10 are 20; 4 rows of 5 are 20.
    assert plan([5, 10, 5, 10, 5, 10, 5], max_tokens=20) == [[1, 3], [5, 0], [2, 4, 6]]


def test_a_sequence_over_the_budget_goes_alone():
    assert plan([30, 8, 31], max_tokens=20) == [[2], [0], [1]]


def test_a_sequence_without_loss_is_left_out():
    assert plan([0, 3, 0], max_tokens=20) == [[1]]
    assert plan([], max_tokens=20) == []


def test_what_follows_the_last_loss_is_not_seen():
    sequence = Sequence(np.array([1, 2, 3, 4]), np.array([2, 3, 4, 5]), np.array([0, 0.5, 0, 0], np.float32))
    assert sequence.until_last_loss().tokens.tolist() == [1, 2]
    assert len(Sequence(np.array([1]), np.array([2]), np.zeros(1, np.float32)).until_last_loss()) == 0


def test_pad():
    rows = [
        Sequence(np.array([1, 2]), np.array([2, 3]), np.array([0, 1], np.float32)),
        Sequence(np.array([7]), np.array([8]), np.array([0.5], np.float32)),
    ]
    padded, mask = pad(rows)
    assert padded.tokens.tolist() == [[1, 2], [7, 0]]
    assert padded.targets.tolist() == [[2, 3], [8, 0]]
    assert padded.weights.tolist() == [[0, 1], [0.5, 0]]
    assert mask.tolist() == [[1, 1], [1, 0]]


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
