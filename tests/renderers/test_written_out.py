"""llama3 and the qwen3 renderers against templates that say the same; tests/e2e holds them against the real ones."""

import logging

import pytest

from harness.exceptions import RendererError
from harness.renderers import TrainOnWhat, get_renderer
from harness.renderers.chat_template import ChatTemplateRenderer
from harness.renderers.messages import plain_messages, trained_messages
from harness.renderers.role_colon import RoleColonRenderer
from tests.renderers.conversations import (
    CONVERSATIONS,
    LOOK,
    PARIS,
    SEVERAL_CALLS,
    USER,
    random_conversations,
    says,
)
from tests.renderers.templates import LLAMA3, LLAMA3_2, QWEN3, QWEN3_INSTRUCT, llama_tokenizer, tiny_tokenizer

RENDERERS = {  # name and template: the tokenizer, and the template's arguments
    "qwen3": (tiny_tokenizer(QWEN3), {}),
    "qwen3_disable_thinking": (tiny_tokenizer(QWEN3), {"enable_thinking": False}),
    "qwen3_instruct": (tiny_tokenizer(QWEN3_INSTRUCT), {}),
    "llama3": (llama_tokenizer(LLAMA3_2), {}),
}
SAID = [w for w in TrainOnWhat if w not in (TrainOnWhat.CUSTOMIZED, TrainOnWhat.ALL_TOKENS)]


@pytest.fixture(params=RENDERERS)
def pair(request):
    """The renderer, and that of the same tokenizer's template."""
    tokenizer, arguments = RENDERERS[request.param]
    renderer = get_renderer(request.param, tokenizer)
    assert not isinstance(renderer, ChatTemplateRenderer)
    return renderer, ChatTemplateRenderer(tokenizer, **arguments)


def rendered(renderer, messages, what):
    """The text, and the trained parts of it; the error where it refuses them."""
    try:
        text, spans = renderer.render(plain_messages(messages), trained_messages(messages, what))
    except RendererError as error:
        return str(error)
    return text, spans


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_text_prompt_and_spans_are_the_template_s(pair, name):
    renderer, template = pair
    messages = CONVERSATIONS[name]
    for what in SAID:
        mine, its = rendered(renderer, messages, what), rendered(template, messages, what)
        if isinstance(mine, str):
            assert "thinks, which qwen3_disable_thinking switches off" in mine
        else:
            assert mine == its
    assert renderer.generation_prompt(messages) == template.generation_prompt(messages)


def test_text_and_spans_of_random_conversations(pair):
    renderer, template = pair
    compared = 0
    for messages in random_conversations(150):
        assert renderer.generation_prompt(messages) == template.generation_prompt(messages)
        assert renderer.render(messages, [])[0] == template.render(messages, [])[0]
        for what in SAID:
            mine, its = rendered(renderer, messages, what), rendered(template, messages, what)
            if not isinstance(mine, str) and not isinstance(its, str):  # either may refuse what it cannot prove
                assert mine == its, messages
                compared += 1
    assert compared > 600


def test_several_calls_at_once():
    for name in ("qwen3", "qwen3_instruct"):
        tokenizer, _ = RENDERERS[name]
        assert rendered(get_renderer(name, tokenizer), SEVERAL_CALLS, "all_assistant_messages") == rendered(
            ChatTemplateRenderer(tokenizer), SEVERAL_CALLS, "all_assistant_messages"
        )
    with pytest.raises(RendererError, match=r"messages\[1\]: Llama 3 calls one tool at a time"):
        get_renderer("llama3", RENDERERS["llama3"][0]).build_supervised_example(SEVERAL_CALLS)


def test_what_is_trained():
    messages = [says("system", "Be brief."), USER, {**LOOK, "reasoning_content": "A map!"}, says("tool", "x"), PARIS]
    tokenizer, _ = RENDERERS["qwen3"]
    arguments = '{"at": "the map", "zoom": [1, 2.5], "note": "é <b> \\"\'"}'
    call = f'<tool_call>\n{{"name": "look", "arguments": {arguments}}}\n</tool_call>'
    text, spans = get_renderer("qwen3", tokenizer).render(messages, range(5))
    assert [text[start:end] for start, end in spans] == [
        "Be brief.<|im_end|>",
        "What is the capital of France?<|im_end|>",
        f"<think>\nA map!\n</think>\n\n{call}<|im_end|>",
        "x\n</tool_response>",
        "<think>\n\n</think>\n\nParis.<|im_end|>",
    ]
    text, spans = get_renderer("qwen3_disable_thinking", tokenizer).render([USER, PARIS], [1])
    assert [text[start:end] for start, end in spans] == ["Paris.<|im_end|>"]
    tokenizer, _ = RENDERERS["llama3"]
    text, spans = get_renderer("llama3", tokenizer).render([USER, says("assistant", " Paris. ")], [1])
    assert text.startswith(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user"
    )
    assert [text[start:end] for start, end in spans] == ["Paris.<|eot_id|>"]


@pytest.mark.parametrize("template", [LLAMA3, None])
def test_llama_3_itself_has_neither_dates_nor_tools(template):
    renderer = get_renderer("llama3", llama_tokenizer(template))
    header = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
    text, _ = renderer.render([says("system", "Hi"), USER, PARIS], [2])
    assert text == "<|begin_of_text|>" + "".join(
        header.format(*turn) for turn in [("system", "Hi"), ("user", USER["content"]), ("assistant", "Paris.")]
    )
    with pytest.raises(RendererError, match=r"messages\[1\]: Llama 3 has no way to say tool_calls"):
        renderer.build_supervised_example([USER, LOOK])


def test_thinking_where_it_is_switched_off_is_refused_where_it_would_be_trained():
    renderer = get_renderer("qwen3_disable_thinking", RENDERERS["qwen3"][0])
    talk = [USER, says("assistant", "Paris.", reasoning_content="So.")]
    with pytest.raises(
        RendererError, match=r"messages\[1\] thinks, which qwen3_disable_thinking switches off: .*qwen3$"
    ):
        renderer.build_supervised_example(talk)
    assert renderer.build_supervised_example(talk, TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES).token_weights.any()
    assert renderer.build_supervised_example([*talk, USER, PARIS]).token_weights.any()  # not shown in earlier turns


@pytest.mark.parametrize(
    ("name", "messages", "said"),
    [
        (
            "qwen3",
            "earlier thinking",
            "leaves the thinking of earlier turns out: they train without (first seen in messages[1])",
        ),
        ("qwen3", "assistants side by side", "differently once later messages follow: it trains after another text"),
        (
            "qwen3_disable_thinking",
            "many turns",
            "ends in '<think>\\n\\n</think>\\n\\n', which Qwen3's template writes in the last",
        ),
        ("qwen3_instruct", "thinking", "does not think: reasoning_content is not rendered"),
        ("llama3", "thinking", "does not think: reasoning_content is not rendered"),
        (
            "llama3",
            "white space at the ends",
            "white space at the ends of contents is not rendered (first seen in messages[0])",
        ),
    ],
)
def test_what_is_left_out_or_rewritten_is_reported_once(caplog, name, messages, said):
    renderer = get_renderer(name, RENDERERS[name][0])
    assert not caplog.records  # what it is held against at first is not the user's
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            renderer.build_supervised_example(CONVERSATIONS[messages])
    assert [said in record.getMessage() for record in caplog.records].count(True) == 1


def test_two_thoughts_and_words_beside_a_tool_call_are_reported(caplog):
    get_renderer("qwen3", RENDERERS["qwen3"][0]).build_supervised_example(
        [USER, says("assistant", "Hm. <think>a</think>b<think>c</think>d")]
    )
    assert "only its first thought and the words after the last one are rendered" in caplog.text
    llama = get_renderer("llama3", RENDERERS["llama3"][0])
    llama.build_supervised_example([USER, {**LOOK, "content": "Let me look."}])
    assert "Llama 3 writes no content beside a tool call (first seen in messages[1])" in caplog.text
    quoted = {"function": {"name": "look", "arguments": '{"at": 1}'}}
    text, _ = llama.render([USER, {**LOOK, "tool_calls": [quoted]}], [])
    assert '"parameters": "{\\"at\\": 1}"' in text
    assert "tool arguments given as text are quoted: give an object" in caplog.text


def test_a_role_that_qwen3_has_not():
    with pytest.raises(
        RendererError, match=r"messages\[0\]\.role is 'developer': Qwen3 has system, user, assistant, tool"
    ):
        get_renderer("qwen3", RENDERERS["qwen3"][0]).build_supervised_example([says("developer", "x"), USER, PARIS])


@pytest.mark.parametrize("name", ["qwen3", "qwen3_disable_thinking", "qwen3_instruct", "llama3"])
def test_what_was_rendered_can_be_read_back(name):
    tokenizer, _ = RENDERERS[name]
    renderer = get_renderer(name, tokenizer)
    answers = [PARIS, says("assistant", "Two\n\nlines , spaced .")]
    if name == "qwen3":
        answers.append(says("assistant", "Paris.", reasoning_content="France, so\nParis."))
    answers.append(LOOK)
    if name != "llama3":
        answers.append(SEVERAL_CALLS[1])
    for answer in answers:
        example = renderer.build_supervised_example([USER, answer])
        prompt = renderer.build_generation_prompt([USER]).to_ints()
        assert example.tokens[: len(prompt)] == prompt
        assert renderer.parse_response(example.tokens[len(prompt) :]) == (answer, True)
        stop = tokenizer.convert_tokens_to_ids(renderer.stop)
        assert renderer.get_stop_sequences() == [stop]
        cut = example.tokens[len(prompt) : example.tokens.index(stop, len(prompt)) - 1]
        assert not renderer.parse_response(cut)[1]


@pytest.mark.parametrize(
    "text", ["<tool_call>\n{broken\n</tool_call>", "<tool_call>\n[1]\n</tool_call>", "<tool_call>\n{"]
)
def test_a_tool_call_that_cannot_be_read_stays_text(text):
    tokenizer, _ = RENDERERS["qwen3"]
    renderer = get_renderer("qwen3", tokenizer)
    tokens = tokenizer(f"Well.\n{text}<|im_end|>", add_special_tokens=False)["input_ids"]
    assert renderer.parse_response(tokens) == (says("assistant", f"Well.\n{text}"), False)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ('{"name": "look", "parameters": {', False),
        ('{"name": 5, "parameters": {}}', False),
        ('{"name": "Paris"}', True),
        ("{1}", True),
        ("[1]", True),
    ],
)
def test_words_that_look_like_a_call_of_llama_stay_words(text, whole):
    tokenizer, _ = RENDERERS["llama3"]
    tokens = tokenizer(text + "<|eot_id|>", add_special_tokens=False)["input_ids"]
    assert get_renderer("llama3", tokenizer).parse_response(tokens) == (says("assistant", text), whole)


def test_a_thought_that_does_not_end_is_not_whole():
    tokenizer, _ = RENDERERS["qwen3"]
    tokens = tokenizer("<think>\nSo.<|im_end|>", add_special_tokens=False)["input_ids"]
    assert get_renderer("qwen3", tokenizer).parse_response(tokens) == (says("assistant", "<think>\nSo."), False)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_role_colon_as_a_template_asks_alike(name):
    tokenizer = tiny_tokenizer(RoleColonRenderer.chat_template)
    try:
        expected = RoleColonRenderer(tokenizer).generation_prompt(messages := plain_messages(CONVERSATIONS[name]))
    except RendererError:
        return
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == expected
