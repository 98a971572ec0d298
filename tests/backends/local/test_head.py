import threading
from typing import Any

import torch
import transformers

from harness.backends.local.head import Head, _answering


def test_what_a_decoder_answers_on_one_thread_is_not_its_answer_on_another():
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model: Any = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        expected = model(tokens).logits
        Head(model)
        found = []
        with _answering("an answer"):
            other = threading.Thread(target=lambda: found.append(model(tokens).logits.detach()))
            other.start()
            other.join()
            assert model.base_model(tokens) == "an answer"
    assert torch.equal(found[0], expected)
    assert torch.equal(model(tokens).logits, expected)
