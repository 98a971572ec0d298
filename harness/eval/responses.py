"""Evaluators that sample a response to each of some conversations and score it.

A conversation's last assistant message is the reference; what stands before it is the prompt.
"""

from __future__ import annotations

import collections
import dataclasses
import decimal
import hashlib
import logging
import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import chz

from harness.backends.base import temperature_fault
from harness.eval.evaluators import SamplingClientEvaluator
from harness.exceptions import ConfigError, DataError, RendererError
from harness.metric_keys import eval_key
from harness.renderers.messages import Message, plain_messages
from harness.run_dir import Row
from harness.supervised.conversation_files import read_conversations
from harness.supervised.mapping import canonical
from harness.supervised.types import ChatDatasetBuilderCommonConfig

if TYPE_CHECKING:
    import tinker

    from harness.renderers import Renderer

logger = logging.getLogger(__name__)

_NAME = r"[A-Za-z0-9_\-][A-Za-z0-9_.\- ]*"  # what MLflow shows as it is
_NUMBER = (
    r"(?:(?<![\w.%)])[-+\u2212])?"  # in 5-3 and 2024-05-17 it is no sign
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|(?<![\w.])\.\d+)"
    r"(?:[eE][-+\u2212]?\d+(?!\w))?"
)
_NUM_TOKENS = "num_tokens"
_END_OF_TURN = "end_of_turn"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt, rendered.

    Attributes:
        id: The conversation's, or the digest of its content.
        reference: The answer that its conversation gives; None where it ends with the prompt.
    """

    id: str
    tokens: tinker.ModelInput
    reference: str | None


@dataclasses.dataclass(frozen=True)
class Response:
    """A sample and its scores, by name. ``number`` counts the samples of one id: a conversation may stand twice."""

    prompt: Prompt
    number: int
    tokens: Sequence[int]
    stop_reason: str
    scores: dict[str, float]


@chz.chz
class ResponsesBuilder:
    """Builds an evaluator that samples responses and says how long they are (``eval/<name>/num_tokens``) and how many
    of them end their turn (``eval/<name>/end_of_turn``, a share).

    For scores of your own, subclass it and define :meth:`score`."""

    name: str = chz.field(doc="Its metrics are eval/<name>/….")
    file_path: str | None = chz.field(
        default=None,
        doc="JSONL file of conversations; None: the run's test set, the first of several.",
        metadata={"place": True},
    )
    common_config: ChatDatasetBuilderCommonConfig | None = chz.field(
        default=None, doc="How conversations are rendered; None: as the run's dataset_builder renders them."
    )
    num_prompts: int = chz.field(default=32, doc="The first so many whose prompt has at most max_length tokens.")
    num_samples: int = chz.field(default=1, doc="Responses to each.")
    max_tokens: int = chz.field(default=128, doc="Most tokens of a response.")
    temperature: float = chz.field(default=0.0, doc="0 takes the likeliest token each time.")
    top_p: float = chz.field(default=1.0, doc="Choose of the likeliest tokens of this probability together.")

    @chz.validate
    def _check(self) -> None:
        if not re.fullmatch(_NAME, self.name):
            raise ValueError(f"name={self.name!r}: use letters, digits, _ - . and spaces")
        for field in ("num_prompts", "num_samples", "max_tokens"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least 1")
        if fault := temperature_fault(self.temperature):
            raise ValueError(fault)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be greater than 0 and at most 1")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(f"num_samples={self.num_samples} at temperature=0 are all the same: raise temperature")

    def score(self, response: str, reference: str | None) -> dict[str, float]:
        """Scores by name: of what the assistant says, its end-of-turn aside, held against the reference."""
        return {}

    def unfit(self, reference: str | None) -> str | None:
        """Why nothing can be held against this reference; None where it can."""
        return None

    def __call__(self) -> ResponsesEvaluator:
        """The evaluator, outside of a run."""
        return self.of_run(None, ())

    def of_run(
        self, common_config: ChatDatasetBuilderCommonConfig | None, test_set: Iterable[Any], seed: int | None = None
    ) -> ResponsesEvaluator:
        """The evaluator.

        Args:
            common_config: The run's.
            test_set: What the rows of the run's test set say: conversations' messages, or objects that have them.
            seed: The run's, by which the same tokens are sampled again where a client heeds seeds; None: the client's.

        Raises:
            ConfigError: where it is not known how to render.
            DataError: for data that cannot be used.
        """
        common_config = self.common_config or common_config
        if common_config is None:
            raise ConfigError(f"evaluator {self.name}: nothing says how conversations are rendered: give common_config")
        prompts = self._prompts(common_config, self._rows(test_set))
        return ResponsesEvaluator(self, common_config.renderer, prompts, seed)

    def _rows(self, test_set: Iterable[Any]) -> list[tuple[str, str, list[Message]]]:
        """Of each conversation where it stands, its id and its messages."""
        if self.file_path is not None:
            return [(row["where"], row["id"], row["messages"]) for row in read_conversations(self.file_path)]
        found: list[Any] = [row["messages"] if isinstance(row, dict) and "messages" in row else row for row in test_set]
        if not found or not all(isinstance(messages, list) for messages in found):
            raise DataError(f"evaluator {self.name}: the run has no test set of conversations: give file_path")
        return [(f"test example {number}", "", messages) for number, messages in enumerate(found, start=1)]

    def _prompts(
        self, common_config: ChatDatasetBuilderCommonConfig, rows: list[tuple[str, str, list[Message]]]
    ) -> list[Prompt]:
        """The first of those that are no longer than what is trained on."""
        limit = common_config.max_length or math.inf
        prompts: list[Prompt] = []
        num_long = 0
        for row in rows:
            prompt = self._prompt(common_config.renderer, *row)
            if prompt.tokens.length > limit:
                num_long += 1
                continue
            prompts.append(prompt)
            if len(prompts) == self.num_prompts:
                break
        if not prompts:
            raise DataError(f"evaluator {self.name}: all prompts are longer than max_length={limit}: give shorter ones")
        if num_long:
            logger.warning(
                "evaluator %s: %d prompts of more than max_length=%s tokens are left out", self.name, num_long, limit
            )
        return prompts

    def _prompt(self, renderer: Renderer, where: str, example_id: str, messages: list[Message]) -> Prompt:
        try:
            plain = plain_messages(messages)
            reference = plain.pop()["content"] if plain[-1]["role"] == "assistant" else None
            tokens = renderer.build_generation_prompt(plain)
        except RendererError as error:
            raise DataError(f"evaluator {self.name}: {where}: {error}") from error
        if fault := self.unfit(reference):
            raise DataError(f"evaluator {self.name}: {where}: {fault}")
        example_id = example_id or hashlib.sha256(canonical(messages)).hexdigest()[:16]
        return Prompt(example_id, tokens, reference)


@chz.chz
class ExactMatchBuilder(ResponsesBuilder):
    """And says how many responses are the reference, white space at the ends aside (``eval/<name>/exact_match``)."""

    def score(self, response: str, reference: str | None) -> dict[str, float]:
        return {"exact_match": float(reference is not None and response.strip() == reference.strip())}

    def unfit(self, reference: str | None) -> str | None:
        return "it does not end with an assistant's message to compare with" if reference is None else None


@chz.chz
class PatternMatchBuilder(ResponsesBuilder):
    """And says in how many responses the last match of a pattern is that of the reference (``eval/<name>/match``).
    Numbers are compared as numbers: 1,000.0 is 1000, 3,4 are two of them. A match of nothing is none."""

    pattern: str = chz.field(default=_NUMBER, doc="Regular expression; its first group counts. By default a number.")

    @chz.validate
    def _check_pattern(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern={self.pattern!r}: {error}") from None

    def score(self, response: str, reference: str | None) -> dict[str, float]:
        found = self._last(response)
        return {"match": float(found is not None and found == self._last(reference or ""))}

    def unfit(self, reference: str | None) -> str | None:
        if reference is None:
            return "it does not end with an assistant's message to compare with"
        if self._last(reference) is not None:
            return None
        return f"nothing in its answer {'is a number' if self.pattern == _NUMBER else f'matches {self.pattern!r}'}"

    def _last(self, text: str) -> decimal.Decimal | str | None:
        matched = [(found[min(1, found.re.groups)] or "").strip() for found in re.finditer(self.pattern, text)]
        last = next(filter(None, reversed(matched)), None)
        if last is None or not re.fullmatch(_NUMBER, last):
            return last
        try:
            return decimal.Decimal(last.replace(",", "").replace("\u2212", "-"))
        except decimal.InvalidOperation:  # an exponent that is no number any more
            return last


class ResponsesEvaluator(SamplingClientEvaluator):
    """See :class:`ResponsesBuilder`.

    Attributes:
        name: Stands in the names of its metrics.
        fingerprint: Digest of the prompts and the references.
        longest: Tokens of the longest prompt.
    """

    def __init__(self, builder: ResponsesBuilder, renderer: Renderer, prompts: Sequence[Prompt], seed: int | None):
        self.name = builder.name
        self.longest = max(prompt.tokens.length for prompt in prompts)
        said = [[prompt.id, prompt.tokens.to_ints(), prompt.reference] for prompt in prompts]
        self.fingerprint = hashlib.sha256(canonical(said)).hexdigest()[:16]
        self._builder = builder
        self._renderer = renderer
        self._prompts = prompts
        self._seed = seed

    async def __call__(self, sampling_client: Any) -> dict[str, float]:
        return self.metrics(await self.responses(sampling_client))

    async def responses(self, sampling_client: Any, step: int = 0) -> list[Response]:
        """Sample and score. All is asked for before an answer is waited for: it can be sampled together.

        Args:
            step: The update before which the run samples.

        Raises:
            ConfigError: for scores that are none.
        """
        import tinker

        builder = self._builder
        params = tinker.SamplingParams(
            max_tokens=builder.max_tokens,
            temperature=builder.temperature,
            top_p=builder.top_p,
            stop=self._renderer.get_stop_sequences(),
        )
        answers = [
            sampling_client.sample(
                prompt.tokens, builder.num_samples, params.model_copy(update={"seed": self._seed_of(step, place)})
            )
            for place, prompt in enumerate(self._prompts)
        ]
        found = []
        num_of_id = collections.Counter[str]()
        for prompt, answer in zip(self._prompts, answers, strict=True):
            for sequence in (await answer.result_async()).sequences:
                message, is_whole = self._renderer.parse_response(sequence.tokens)
                stop_reason = "stop" if is_whole else sequence.stop_reason  # not every server knows each end of a turn
                scores = self._checked(builder.score(message["content"], prompt.reference))
                found.append(Response(prompt, num_of_id[prompt.id], sequence.tokens, stop_reason, scores))
                num_of_id[prompt.id] += 1
        return found

    def _seed_of(self, step: int, place: int) -> int | None:
        """The seed of the prompt at ``place``: what others ask for, and when they are due, is nothing to it."""
        if self._seed is None:
            return None
        digest = hashlib.sha256(f"{self._seed} {step} {place} {self.name}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 2  # servers count on from it, in 32 bits with a sign

    def _checked(self, scores: Any) -> dict[str, float]:
        """What :meth:`ResponsesBuilder.score` returned, as floats."""
        where = f"evaluator {self.name}: score returned"
        if not isinstance(scores, Mapping):
            raise ConfigError(f"{where} a {type(scores).__name__}: it must return numbers by name")
        for name, score in scores.items():
            if not isinstance(name, str) or not isinstance(score, numbers.Real):
                raise ConfigError(f"{where} {name!r}: {score!r:.80}: it must return numbers by name")
            if name in (_NUM_TOKENS, _END_OF_TURN):
                raise ConfigError(f"{where} {name}, a metric that is measured already: give it another name")
            if not math.isfinite(score):
                raise ConfigError(f"evaluator {self.name}: {name} is {score}: give finite scores")
        return {name: float(score) for name, score in scores.items()}

    def metrics(self, responses: Sequence[Response]) -> dict[str, float]:
        """Means over all responses."""
        values: dict[str, list[float]] = {
            _NUM_TOKENS: [float(len(response.tokens)) for response in responses],
            _END_OF_TURN: [float(response.stop_reason == "stop") for response in responses],
        }
        for response in responses:
            for name, score in response.scores.items():
                values.setdefault(name, []).append(score)
        return {eval_key(self.name, name): sum(of_name) / len(of_name) for name, of_name in values.items()}

    def rows(self, responses: Sequence[Response]) -> list[Row]:
        """Rows of samples.jsonl, without their step."""
        decode = self._renderer.tokenizer.decode
        return [
            {
                "evaluator": self.name,
                "id": response.prompt.id,
                "number": response.number,
                "prompt": decode(response.prompt.tokens.to_ints()),
                "sample": decode(response.tokens),
                "reference": response.prompt.reference,
                "num_tokens": len(response.tokens),
                "stop_reason": response.stop_reason,
                "scores": response.scores,
            }
            for response in responses
        ]
