"""Names of tinker-cookbook's renderers for which the model's own chat template is used here, with its own switches."""

from typing import Any

_THINKING_OFF = {"enable_thinking": False}

TEMPLATE_NAMES: dict[str, dict[str, Any]] = {
    "deepseek_v3": {},
    "deepseekv3": {},
    "deepseekv3_disable_thinking": {"thinking": False},
    "deepseekv3_thinking": {"thinking": True},
    "gpt_oss": {},
    "gpt_oss_no_sysprompt": {},  # the template's own system prompt stays
    "gpt_oss_low_reasoning": {"reasoning_effort": "low"},
    "gpt_oss_medium_reasoning": {"reasoning_effort": "medium"},
    "gpt_oss_high_reasoning": {"reasoning_effort": "high"},
    "kimi_k2": {},
    "kimi_k25": {},
    "kimi_k25_disable_thinking": {"thinking": False},
    "kimi_k26": {},
    "kimi_k26_disable_thinking": {"thinking": False},
    "kimi_k26_preserve_thinking": {"preserve_thinking": True},
    "nemotron3": {},
    "nemotron3_disable_thinking": _THINKING_OFF,
    "nemotron3_low_thinking": {"low_effort": True},
    "nemotron3_preserve_thinking": {"truncate_history_thinking": False},
    "nemotron3_ultra": {},
    "nemotron3_ultra_disable_thinking": _THINKING_OFF,
    "nemotron3_ultra_medium_thinking": {"medium_effort": True},
    "nemotron3_ultra_preserve_thinking": {"truncate_history_thinking": False},
    "qwen3_5": {},
    "qwen3_5_disable_thinking": _THINKING_OFF,
    "qwen3_8_disable_thinking": _THINKING_OFF,
    "qwen3_8_low_reasoning": {"reasoning_effort": "low"},
    "qwen3_8_medium_reasoning": {"reasoning_effort": "medium"},
    "qwen3_8_xhigh_reasoning": {"reasoning_effort": "xhigh"},
    "qwen3_vl": {},
    "qwen3_vl_instruct": {},
}
