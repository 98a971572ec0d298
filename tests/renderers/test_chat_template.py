import logging
import random

import pytest

from harness.exceptions import ConfigError, RendererError
from harness.renderers import TrainOnWhat, get_renderer
from harness.renderers.base import encode_spans
from tests.tiny_model import make_tiny_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen3 does: an empty <think> in the last assistant turn alone.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'].strip() + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As DeepSeek-R1 does: the prompt opens a <think> that a finished turn does not have.
OPEN_THINK = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
# As Llama-2 does: a space before the end of the turn, roles must alternate, no generation prompt.
INST = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' <|im_end|>' }}{% endif %}{% endfor %}"
)
DATED = "{% if strftime_now is defined %}{{ strftime_now( '%d %b %Y') + '\n' }}{% endif %}" + CHATML

TALK = [
    {"role": "user", "content": "how are you"},
    {"role": "assistant", "content": "fine, thanks"},
    {"role": "user", "content": "good"},
    {"role": "assistant", "content": "bye"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tiny_tokenizer()


def renderer(tokenizer, template):
    tokenizer.chat_template = template
    return get_renderer("chat_template", tokenizer)


def trained(tokenizer, example):
    """The text of each run of trained tokens."""
    texts, before = [], 0.0
    for token, weight in zip(example.tokens, example.token_weights, strict=True):
        if weight:
            texts = texts if before else [*texts, ""]
            texts[-1] += tokenizer.decode([token])
        before = weight
    return texts


def prompt(example):
    """The tokens before the first trained one."""
    return example.tokens[: example.token_weights.tolist().index(1.0)]


@pytest.mark.parametrize(
    ("template", "spans"),
    [
        (CHATML, ["fine, thanks<|im_end|>", "bye<|im_end|>"]),
        (THINKING, ["fine, thanks<|im_end|>", "<think>\n\n</think>\n\nbye<|im_end|>"]),
        (INST, [" fine, thanks <|im_end|>", " bye <|im_end|>"]),
        (DATED, ["fine, thanks<|im_end|>", "bye<|im_end|>"]),
    ],
)
def test_the_trained_span_is_the_words_and_the_end_of_turn(tokenizer, template, spans):
    example = renderer(tokenizer, template).build_supervised_example(TALK)
    assert trained(tokenizer, example) == spans
    last = renderer(tokenizer, template).build_supervised_example(TALK, TrainOnWhat.LAST_ASSISTANT_MESSAGE)
    assert trained(tokenizer, last) == spans[-1:]
    assert last.tokens == example.tokens


@pytest.mark.parametrize("template", [CHATML, THINKING, INST])
def test_tokens_are_the_template_s_own_and_the_prompt_is_its_generation_prompt(tokenizer, template):
    example = renderer(tokenizer, template).build_supervised_example(TALK)
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert example.tokens == tokenizer(text, add_special_tokens=False)["input_ids"]
    asked = tokenizer.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True)
    assert prompt(example) == tokenizer(asked, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("template", [CHATML, THINKING])
def test_any_content_is_found_also_where_it_looks_like_the_template(tokenizer, template):
    pieces = ["<|im_end|>", "<|im_start|>", "assistant", "\n", " ", "hi", "é", "\U0001f600", "bye", "", "</think>"]
    draw = random.Random(0)
    for _ in range(200):
        contents = ["".join(draw.choices(pieces, k=draw.randrange(6))) for _ in range(draw.randrange(1, 7))]
        talk = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
        rendering = renderer(tokenizer, template)
        text, spans = rendering.render(talk, range(1, len(talk), 2))
        assert len(spans) == len(talk) // 2
        for (start, end), i in zip(spans, range(1, len(talk), 2), strict=True):
            content = contents[i].strip() if template == THINKING else contents[i]
            assert text[:start] == tokenizer.apply_chat_template(talk[:i], tokenize=False, add_generation_prompt=True)
            assert text[start:end].removeprefix("<think>\n\n</think>\n\n") == content + "<|im_end|>"
        example = rendering.build_supervised_example(talk)
        assert tokenizer.decode(example.tokens) == text


def test_a_token_is_cut_where_it_would_join_a_prompt_and_its_answer(tokenizer):
    text = "aa"  # the tokenizer has learned no such merge, so make one sure with a special token
    assert encode_spans(tokenizer, text, [(1, 2)]).token_weights.sum() == 1
    tokens = encode_spans(tokenizer, "<|im_end|>", [(3, 10)])
    assert tokenizer.decode(tokens.tokens) == "<|im_end|>"
    assert len(tokens.tokens) > 1
    assert tokenizer.decode([t for t, w in zip(*[tokens.tokens, tokens.token_weights], strict=True) if w]) == "m_end|>"


def test_a_prompt_that_opens_a_think_is_reported_once(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        rendering = renderer(tokenizer, OPEN_THINK)
        examples = [rendering.build_supervised_example(TALK) for _ in range(3)]
    assert trained(tokenizer, examples[0]) == ["fine, thanks<|im_end|>", "bye<|im_end|>"]
    assert [r.getMessage() for r in caplog.records].count(
        f"{tokenizer.name_or_path}: the template's generation prompt ends in '<think>\\n', which its rendering of a "
        "finished conversation does not have"
    ) == 1


@pytest.mark.parametrize("answer", ["<p>bye</p>", "<think", "hink>", ""])
def test_a_prompt_that_opens_a_think_does_not_run_into_the_answer(tokenizer, answer):
    talk = [TALK[0], {"role": "assistant", "content": answer}]
    text, [(start, end)] = renderer(tokenizer, OPEN_THINK).render(talk, [1])
    assert text[start:end] == answer + "<|im_end|>"


def test_a_conversation_that_begins_with_the_assistant(tokenizer):
    rendering = renderer(tokenizer, CHATML)
    with pytest.raises(RendererError, match="begins with the message to train on"):
        rendering.build_supervised_example(TALK[1:2])
    assert trained(tokenizer, rendering.build_supervised_example(TALK[1:]))[-1] == "bye<|im_end|>"


def test_history_that_is_rendered_anew_is_refused(tokenizer):
    counted = "{{ messages | length }}" + CHATML
    with pytest.raises(RendererError, match="train on that message as the last one"):
        renderer(tokenizer, counted).build_supervised_example(TALK)


def test_the_same_tokens_on_every_day(tokenizer):
    example = renderer(tokenizer, DATED).build_supervised_example(TALK)
    assert tokenizer.decode(example.tokens).startswith("26 Jul 2024\n")


def test_a_date_that_cannot_be_fixed_is_reported(tokenizer, caplog):
    renderer(tokenizer, "{% set f = '%Y' %}{{ strftime_now(f) }}" + CHATML)
    assert "on another day the same data gives other tokens" in caplog.text


def test_what_a_template_refuses_is_an_error_with_its_words(tokenizer):
    with pytest.raises(RendererError, match="refuses this conversation: roles must alternate"):
        renderer(tokenizer, INST).build_supervised_example(TALK[:1] * 2)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "messages must be a list of roles and contents, found str"),
        ([], "messages is empty"),
        (["hi"], r"messages\[0\] must be an object, found str"),
        ([{"role": "user"}], r'messages\[0\] has no "content"; found \[\'role\'\]'),
        ([{"role": "user", "content": None}], r"messages\[0\]\.content must be a string, found NoneType"),
        ([{"role": "user", "content": "\ud83d"}], r"messages\[0\]\.content holds half of a character"),
        ([*TALK, {"role": 1, "content": ""}], r"messages\[4\]\.role must be a string, found int"),
    ],
)
def test_malformed_messages(tokenizer, messages, message):
    with pytest.raises(RendererError, match=message):
        renderer(tokenizer, CHATML).build_supervised_example(messages)


def test_no_template_and_no_renderer(tokenizer):
    with pytest.raises(RendererError, match="has no chat template: use renderer_name=role_colon"):
        renderer(tokenizer, None)
    with pytest.raises(ConfigError, match="renderer_name=qwen9: no such renderer; there are chat_template, role_colon"):
        get_renderer("qwen9", tokenizer)


def test_role_colon(tokenizer):
    rendering = get_renderer("role_colon", tokenizer)
    text, spans = rendering.render(TALK, [1, 3])
    bos = tokenizer.bos_token or ""
    assert text == (f"{bos}User: how are you\n\nAssistant: fine, thanks\n\nUser: good\n\nAssistant: bye\n\nUser:")
    assert [text[start:end] for start, end in spans] == [" fine, thanks\n\n", " bye\n\nUser:"]
    assert text[: spans[0][0]] == rendering.generation_prompt(TALK[:1])


def test_the_example_is_shifted_and_unpacks_unshifted(tokenizer):
    example = get_renderer("role_colon", tokenizer).build_supervised_example(messages=TALK)
    assert example.chunk.tokens == example.tokens[:-1]
    assert example.target_tokens == example.tokens[1:]
    assert len(example.weights) == len(example.target_tokens)
    model_input, weights = example
    assert model_input.to_ints() == example.tokens
    assert len(weights) == len(example.tokens)
