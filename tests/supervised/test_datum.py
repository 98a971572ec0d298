import math

import numpy as np
import pytest
import tinker

from harness.exceptions import ServiceError
from harness.supervised.datum import ConversationDatum, Scorer, digest, example_id, loss_weights
from tests.fakes import FakeTokenizer, byte_datum


def with_weights(datum, weights):
    inputs = datum.loss_fn_inputs | {"weights": tinker.TensorData.from_numpy(np.array(weights, dtype=np.float32))}
    return ConversationDatum(model_input=datum.model_input, loss_fn_inputs=inputs)


def output(*logprobs):
    return tinker.ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord",
        loss_fn_outputs=[{"logprobs": tinker.TensorData.from_numpy(np.array(lp, dtype=np.float32))} for lp in logprobs],
    )


def test_mean_nll_is_over_loss_carrying_tokens_of_all_examples():
    data = [with_weights(byte_datum("abc"), [0, 1, 1]), with_weights(byte_datum("xyz"), [1, 0, 0])]
    scorer = Scorer(data, FakeTokenizer())
    score = scorer.score(output([-9, -1, -2], [-4, -9, -9]))
    assert score.nll == [3.0, 4.0]
    assert score.mean_nll == pytest.approx(7 / 3, abs=1e-12)
    assert scorer.num_loss_tokens == [2, 1]
    assert scorer.num_tokens == 6


def test_what_are_no_log_probabilities_is_refused():
    scorer = Scorer([with_weights(byte_datum("abc"), [0, 1, 1])], FakeTokenizer())
    with pytest.raises(ServiceError) as raised:
        scorer.score(output([-1, -2, 3]))
    assert str(raised.value).startswith("what was answered are no log-probabilities: 3 is one, and none is greater")
    assert scorer.score(output([7, 1e-6, -2])).mean_nll == pytest.approx(1), "rounding; what carries no loss"
    assert math.isnan(scorer.score(output([-1, math.nan, -2])).mean_nll), "the ledger tells it"


def test_fractional_weights_weigh():
    scorer = Scorer([with_weights(byte_datum("abc"), [0.5, 0, 0.25])], FakeTokenizer())
    assert scorer.score(output([-2, -9, -4])).mean_nll == pytest.approx(2 / 0.75, abs=1e-12)


def test_bits_per_byte_leaves_special_tokens_out_on_both_sides():
    scorer = Scorer([byte_datum("abc")], FakeTokenizer())  # targets b, c, END
    score = scorer.score(output([-math.log(2), -3 * math.log(2), -100]))
    assert score.bits_per_byte == pytest.approx(4 / 2, abs=1e-6)


def test_bytes_are_those_of_the_text():
    datum = byte_datum("aé")  # the fake tokenizer decodes latin-1: é is one token and two bytes of UTF-8
    score = Scorer([datum], FakeTokenizer()).score(output([-2 * math.log(2), -1]))
    assert score.bits_per_byte == pytest.approx(1.0, abs=1e-6)


def test_without_text_there_are_no_bits_per_byte():
    scorer = Scorer([with_weights(byte_datum("ab"), [0, 1])], FakeTokenizer())
    assert scorer.score(output([-1, -1])).bits_per_byte is None


def test_the_digest_sees_tokens_weights_order_and_borders():
    a, b = byte_datum("ab"), byte_datum("cd")
    digests = [
        digest(data)
        for data in ([a], [b], [a, b], [b, a], [byte_datum("abcd")], [with_weights(a, [1, 0])], [byte_datum("ac")])
    ]
    assert len(set(digests)) == len(digests)
    assert digest([byte_datum("ab")]) == digest([a])


def test_ids_default_to_the_content():
    assert example_id(byte_datum("ab")) == example_id(byte_datum("ab")) != example_id(byte_datum("ac"))
    named = ConversationDatum(tinker.ModelInput.from_ints([1]), loss_fn_inputs={}, example_id="row-7")
    assert example_id(named) == "row-7"


def test_a_conversation_datum_is_a_datum():
    datum = byte_datum("ab")
    assert isinstance(datum, tinker.Datum)
    assert loss_weights(datum).dtype == np.float32
