"""Fine-tune a small chat model on conversations, and test it on held-out ones: a blueprint, overridden at any depth.

    python -m recipes.sl_basic                                             # SmolLM2 on the chitchat conversations
    python -m recipes.sl_basic learning_rate=1e-4 max_steps=16
    python -m recipes.sl_basic dataset_builder.file_path=my.jsonl          # a line {"messages": [...]} for each
    python -m recipes.sl_basic model_name=Qwen/Qwen3-0.6B log_path=runs/qwen

The same command on an unfinished log_path resumes it.
"""

import chz

from harness import cli
from harness.model_info import get_recommended_renderer_name
from harness.renderers import TrainOnWhat
from harness.supervised import train
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from recipes import chitchat


def build_config_blueprint() -> chz.Blueprint[train.Config]:
    model_name = "SmolLM2-135M-Instruct.Q4_1"
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=model_name,
        renderer_name=get_recommended_renderer_name(model_name),
        max_length=160,
        batch_size=8,
        train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )
    dataset_builder = chitchat.ChitchatBuilder(common_config=common_config, test_size=32)
    return chz.Blueprint(train.Config).apply(
        {
            "model_name": model_name,
            "dataset_builder": dataset_builder,
            "learning_rate": 5e-4,
            "lr_schedule": "linear",
            "num_epochs": 1,
            "lora_rank": 32,
            "eval_every": 8,
            "save_every": 5,
            "experiment": "sl_basic",
        }
    )


if __name__ == "__main__":
    cli.entrypoint(build_config_blueprint(), train.main)
