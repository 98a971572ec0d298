"""Fine-tune a chat model on data.jsonl, and test it on conversations held out of it.

    python recipe.py                                         # replace data.jsonl by your own
    python recipe.py learning_rate=1e-4 log_path=runs/lower
    python recipe.py --help                                  # every field, to be overridden in the same way

The same command with the same log_path resumes an unfinished run.
"""

import chz

from harness import cli
from harness.model_info import get_recommended_renderer_name
from harness.renderers import TrainOnWhat
from harness.supervised import train
from harness.supervised.data import FromConversationFileBuilder
from harness.supervised.types import ChatDatasetBuilderCommonConfig


def build_config_blueprint() -> chz.Blueprint[train.Config]:
    model_name = "SmolLM2-135M-Instruct.Q4_1"
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=model_name,
        renderer_name=get_recommended_renderer_name(model_name),
        max_length=512,
        batch_size=8,
        train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )
    dataset_builder = FromConversationFileBuilder(common_config=common_config, file_path="data.jsonl", test_size=8)
    return chz.Blueprint(train.Config).apply(
        {
            "model_name": model_name,
            "dataset_builder": dataset_builder,
            "learning_rate": 5e-4,
            "num_epochs": 2,
            "eval_every": 5,
        }
    )


if __name__ == "__main__":
    cli.entrypoint(build_config_blueprint(), train.main)
