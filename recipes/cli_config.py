"""A class of the few options that a script has, and a function that makes the run's config of them.

    python -m recipes.cli_config                                        # SmolLM2 on the chitchat conversations
    python -m recipes.cli_config batch_size=4 max_steps=3 log_path=runs/s1
    python -m recipes.cli_config --file_path my.jsonl --learning_rate 1e-4

Only what the class names can be overridden; recipes.sl_basic shows a blueprint, where every field can.
"""

import chz

from harness import cli
from harness.model_info import get_recommended_renderer_name
from harness.renderers import TrainOnWhat
from harness.supervised import train
from harness.supervised.types import ChatDatasetBuilderCommonConfig
from recipes import chitchat


@chz.chz
class CLIConfig:
    """Fine-tune a chat model on a file of conversations."""

    log_path: str = chz.field(doc="The run's directory; an unfinished run in it is resumed.")
    model_name: str = chz.field(default="SmolLM2-135M-Instruct.Q4_1", doc="Model to tune.")
    file_path: str = chz.field(default=chitchat.FILE, doc="JSONL file of conversations.")
    test_size: int = chz.field(default=32, doc="Conversations held out to test on.")
    max_length: int = chz.field(default=160, doc="Tokens at which a conversation is cut.")
    batch_size: int = chz.field(default=8, doc="Conversations an update.")
    learning_rate: float = chz.field(default=5e-4, doc="Peak learning rate.")
    max_steps: int | None = chz.field(default=None, doc="Stop after so many updates.")


def build_train_config(cli_config: CLIConfig) -> train.Config:
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=cli_config.model_name,
        renderer_name=get_recommended_renderer_name(cli_config.model_name),
        max_length=cli_config.max_length,
        batch_size=cli_config.batch_size,
        train_on_what=TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    )
    return train.Config(
        model_name=cli_config.model_name,
        log_path=cli_config.log_path,
        dataset_builder=chitchat.ChitchatBuilder(
            common_config=common_config, file_path=cli_config.file_path, test_size=cli_config.test_size
        ),
        learning_rate=cli_config.learning_rate,
        max_steps=cli_config.max_steps,
        experiment="cli_config",
    )


async def main(cli_config: CLIConfig) -> None:
    await train.main(build_train_config(cli_config))


if __name__ == "__main__":
    cli.entrypoint(main)
