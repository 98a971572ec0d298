"""A dataset of one's own: batches by index, made as they are asked for. Here additions, without a file.

    python -m recipes.custom_dataset                                    # SmolLM2 learns to answer with the sum alone
    python -m recipes.custom_dataset max_steps=3 dataset_builder.num_batches=20

A batch depends on nothing but the epoch and its index, so that a resume goes on with exactly the batches that follow.
"""

import random

import chz

from harness import cli
from harness.model_info import get_recommended_renderer_name
from harness.renderers import Renderer
from harness.supervised import train
from harness.supervised.types import ChatDatasetBuilder, ChatDatasetBuilderCommonConfig, SupervisedDataset


class Sums(SupervisedDataset):
    def __init__(self, renderer: Renderer, num_batches: int, batch_size: int, purpose: str):
        self.renderer, self.num_batches, self.batch_size = renderer, num_batches, batch_size
        self.purpose, self.epoch = purpose, 0

    def __len__(self):
        return self.num_batches

    def set_epoch(self, seed: int = 0):
        self.epoch = seed

    def get_batch(self, index: int):
        rng = random.Random(f"{self.purpose} {self.epoch} {index}")
        return [self.datum(rng.randrange(1000), rng.randrange(1000)) for _ in range(self.batch_size)]

    def datum(self, a: int, b: int):
        import numpy as np
        from tinker.types import Datum, ModelInput, TensorData

        example = self.renderer.build_supervised_example(
            [{"role": "user", "content": f"{a} + {b} = ?"}, {"role": "assistant", "content": str(a + b)}]
        )
        return Datum(
            model_input=ModelInput(chunks=[example.chunk]),
            loss_fn_inputs={
                "target_tokens": TensorData.from_numpy(np.array(example.target_tokens, dtype=np.int64)),
                "weights": TensorData.from_numpy(example.weights),
            },
        )


@chz.chz
class SumsBuilder(ChatDatasetBuilder):
    num_batches: int = chz.field(default=100, doc="Training batches an epoch.")

    def __call__(self):
        batch_size = self.common_config.batch_size
        return Sums(self.renderer, self.num_batches, batch_size, "train"), Sums(self.renderer, 4, batch_size, "test")


def build_config_blueprint() -> chz.Blueprint[train.Config]:
    model_name = "SmolLM2-135M-Instruct.Q4_1"
    common_config = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=model_name,
        renderer_name=get_recommended_renderer_name(model_name),
        max_length=None,
        batch_size=8,
    )
    return chz.Blueprint(train.Config).apply(
        {
            "model_name": model_name,
            "dataset_builder": SumsBuilder(common_config=common_config),
            "learning_rate": 5e-4,
            "experiment": "custom_dataset",
        }
    )


if __name__ == "__main__":
    cli.entrypoint(build_config_blueprint(), train.main)
