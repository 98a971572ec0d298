"""Chat templates that say what those of Qwen3, Qwen3-Instruct-2507, Llama-3 and Llama-3.2 say, in words of our own; the
real ones are in tests/e2e."""

from typing import Any

from tests.tiny_model import make_tiny_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CALLS = """
{%- macro calls(m, content) -%}
    {%- for call in m.tool_calls or [] -%}
        {%- set f = call.function or call -%}
        {{- '\n' if content or not loop.first else '' -}}
        {{- '<tool_call>\n{"name": "' + f.name + '", "arguments": ' -}}
        {{- f.arguments if f.arguments is string else f.arguments | tojson -}}
        {{- '}\n</tool_call>' -}}
    {%- endfor -%}
{%- endmacro -%}
{%- macro result(m, before, after) -%}
    {{- '' if before == 'tool' else '<|im_start|>user' -}}
    {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' -}}
    {{- '' if after == 'tool' else '<|im_end|>\n' -}}
{%- endmacro -%}
"""

QWEN3_INSTRUCT = (
    _CALLS
    + """
{%- for m in messages -%}
    {%- if m.role == 'tool' -%}
        {{- result(m, '' if loop.first else loop.previtem.role, '' if loop.last else loop.nextitem.role) -}}
    {%- elif m.role in ('system', 'user', 'assistant') -%}
        {{- '<|im_start|>' + m.role + '\n' + m.content + calls(m, m.content) + '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt else '' -}}
"""
)

QWEN3 = (
    _CALLS
    + """
{%- set ns = namespace(query=messages | length - 1, found=false) -%}
{%- for m in messages | reverse -%}
    {%- set quoted = m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>') -%}
    {%- if m.role == 'user' and not ns.found and not quoted -%}
        {%- set ns.query = messages | length - loop.index -%}
        {%- set ns.found = true -%}
    {%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
    {%- if m.role == 'tool' -%}
        {{- result(m, '' if loop.first else loop.previtem.role, '' if loop.last else loop.nextitem.role) -}}
    {%- elif m.role == 'assistant' -%}
        {%- set content, thought = m.content, m.reasoning_content -%}
        {%- if thought is not defined and '</think>' in content -%}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
            {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
        {%- endif -%}
        {{- '<|im_start|>assistant\n' -}}
        {%- if loop.index0 > ns.query and (loop.last or thought) -%}
            {{- '<think>\n' + (thought or '').strip('\n') + '\n</think>\n\n' + content.lstrip('\n') -}}
        {%- else -%}
            {{- content -}}
        {%- endif -%}
        {{- calls(m, content) + '<|im_end|>\n' -}}
    {%- elif m.role in ('system', 'user') -%}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
    {{- '<think>\n\n</think>\n\n' if enable_thinking is defined and enable_thinking is false else '' -}}
{%- endif -%}
"""
)

_HEADER = "{%- macro header(role) -%}{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' -}}{%- endmacro -%}"

LLAMA3 = (
    _HEADER
    + """{{- bos_token -}}
{%- for m in messages -%}{{- header(m.role) + m.content | trim + '<|eot_id|>' -}}{%- endfor -%}
{{- header('assistant') if add_generation_prompt else '' -}}
"""
)

LLAMA3_2 = (
    _HEADER
    + """{{- bos_token + header('system') + 'Cutting Knowledge Date: December 2023\nToday Date: ' -}}
{{- strftime_now("%d %b %Y") + '\n\n' -}}
{%- if messages[0].role == 'system' -%}
    {{- messages[0].content | trim -}}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{{- '<|eot_id|>' -}}
{%- for m in messages -%}
    {%- if 'tool_calls' in m -%}
        {%- if m.tool_calls | length != 1 -%}{{- raise_exception('one tool call at once') -}}{%- endif -%}
        {%- set f = m.tool_calls[0].function -%}
        {{- header('assistant') + '{"name": "' + f.name + '", "parameters": ' + f.arguments | tojson + '}' -}}
    {%- elif m.role in ('tool', 'ipython') -%}
        {{- header('ipython') + m.content | tojson -}}
    {%- else -%}
        {{- header(m.role) + m.content | trim -}}
    {%- endif -%}
    {{- '<|eot_id|>' -}}
{%- endfor -%}
{{- header('assistant') if add_generation_prompt else '' -}}
"""
)


def tiny_tokenizer(template: str | None, **special_tokens: str) -> Any:
    """The tests' tokenizer with a template of its own, and with tokens of Qwen3 and Llama-3."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>", "<tool_response>", "</tool_response>"])
    tokenizer.add_tokens(
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], special_tokens=True
    )
    tokenizer.add_special_tokens(special_tokens)
    tokenizer.chat_template = template
    return tokenizer


def llama_tokenizer(template: str | None) -> Any:
    return tiny_tokenizer(template, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
