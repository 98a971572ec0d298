"""What a run will use, known before it is used, and what it used: updates, tokens, checkpoints, and their price.

Tokens are the input tokens of examples that carry loss, as ``num_tokens`` of metrics.jsonl counts them.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness import metric_keys
from harness.disk_usage import in_words
from harness.prices import Prices
from harness.run_dir import CheckpointRecord, Row, RunDir
from harness.supervised.replay import NUM_NOISE_PASSES
from harness.supervised.retention import most_kept, save_due
from harness.supervised.survey import survey

if TYPE_CHECKING:
    from harness.supervised.config import Config
    from harness.supervised.job import Work

NUM_TIMED_PASSES = 4  # over one example, to measure how long a token takes

_MOST_COUNTED = 10_000_000  # tokens of an epoch that are made beforehand to count them: some twenty seconds
_MOST_STEPS = 100_000  # that are gone through one by one; what more of them use is in proportion
_SAMPLED_ROWS = 200  # of metrics.jsonl, from which those to come are estimated


@dataclasses.dataclass
class Usage:
    """What was used, or will be.

    Attributes:
        steps: Updates.
        trained: Tokens that go forward and backward in them.
        evaluated: Tokens that go forward to evaluate.
        measured: Tokens that go forward to measure how long one takes, or a service's noise.
        checkpoints: That are saved.
        asked: Tokens that go forward for the config's evaluators: their data and prompts.
        sampled: Tokens that are sampled for them.
    """

    steps: int = 0
    trained: int = 0
    evaluated: int = 0
    measured: int = 0
    checkpoints: int = 0
    asked: int = 0
    sampled: int = 0

    def plus(self, other: Usage) -> Usage:
        return Usage(*map(sum, zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    @property
    def foreseen(self) -> tuple[int, int, int]:
        """Tokens that are known beforehand."""
        return self.trained, self.evaluated, self.measured

    def __str__(self) -> str:
        parts = [f"{self.trained:,} tokens trained in {number(self.steps, 'update')}"]
        if self.evaluated:
            parts.append(f"{self.evaluated:,} to evaluate")
        if self.measured:
            parts.append(f"{self.measured:,} to measure time or noise")
        if self.asked or self.sampled:
            parts.append(f"{self.asked:,} forward and {self.sampled:,} sampled for evaluators of the config")
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the rest of a run will use.

    Attributes:
        usage: From where it stands to its end.
        before: Of earlier attempts.
        is_before_known: False where one of them was killed: what it used is read off what it wrote.
        sample: What the tokens are estimated from, in words; "" where they were counted.
        num_uncounted: Evaluators beside those of the test sets: what they ask and sample is not known beforehand.
        num_kept: Checkpoints that stay at most.
        state_bytes: Of one; None where that is not known.
        prices: None where there is no price table.
    """

    usage: Usage
    before: Usage
    is_before_known: bool
    sample: str
    num_uncounted: int
    num_kept: int
    state_bytes: int | None
    prices: Prices | None

    def lines(self) -> list[str]:
        """For people, before anything is used."""
        by_sample = f" (estimated from {self.sample})" if self.sample else ""
        size = f"about {in_words(self.state_bytes)}" if self.state_bytes else "unknown size"
        saved = f"{number(self.usage.checkpoints, 'checkpoint')} of {size}, at most {self.num_kept} kept"
        price = self._priced(self.usage, self._about)
        lines = [f"to use: {self._about}{self.usage}{by_sample}; {saved}{price}"]
        if self.num_uncounted:
            evaluators = number(self.num_uncounted, "evaluator")
            lines.append(f"not counted: what {evaluators} of the config ask and sample{self._unpriced}")
        if self.before != Usage():
            lines.append(f"used before: {self._about_before}{self.before}{self._priced(self.before)}")
        return lines

    def outcome(self, used: Usage) -> list[str]:
        """For people, at the end: what was used; where that is not what was estimated, what was."""
        saved = number(used.checkpoints, "checkpoint")
        lines = [f"used: {used}; {saved}{self._priced(used)} ({self._held_against(used)})"]
        if self.before != Usage():
            total = self.before.plus(used)
            lines.append(f"with earlier attempts: {self._about_before}{total}{self._priced(total)}")
        return lines

    def to_row(self) -> Row:
        """What the row of an attempt's start says of it."""
        planned = dataclasses.asdict(self.usage) | {"is_counted": not self.sample, "price": self.price(self.usage)}
        del planned["asked"], planned["sampled"]  # not known
        return {"planned": planned, "used_before": dataclasses.asdict(self.before)}

    def used_row(self, used: Usage) -> Row:
        """What the row of an attempt's end says of what it used."""
        return {"used": dataclasses.asdict(used) | {"price": self.price(used)}}

    def price(self, usage: Usage) -> float | None:
        """None where one is not known."""
        if self.prices is None:
            return None
        prefilled = usage.evaluated + usage.measured + usage.asked
        return self.prices.of(trained=usage.trained, prefilled=prefilled, sampled=usage.sampled)

    @property
    def _about(self) -> str:
        return "about " if self.sample else ""

    @property
    def _about_before(self) -> str:
        return "" if self.is_before_known else "about "

    def _priced(self, usage: Usage, about: str = "") -> str:
        if self.prices is None:
            return ""
        if (price := self.price(usage)) is None:
            return self._unpriced
        return f"; price {about}{price:,.4f} by {self.prices.file}"

    @property
    def _unpriced(self) -> str:
        if self.prices is None or self.prices.sample is not None:
            return ""
        return f"; {self.prices.file} has no price of sampling"

    def _held_against(self, used: Usage) -> str:
        if used.foreseen == self.usage.foreseen:
            return f"as estimated{', evaluators of the config aside' if used.asked or used.sampled else ''}"
        ended = "; it ended early" if used.steps < self.usage.steps else ""
        return f"estimated: {self._about}{self.usage}{ended}"


def estimate(run: RunDir, config: Config, work: Work, checkpoint: CheckpointRecord | None) -> Estimate:
    """What will be used from ``checkpoint`` on.

    Tokens are counted in the very batches that will be trained. Those of a stream, or of very many, are estimated:
    from what was trained before, else from a survey.
    """
    step = checkpoint.step if checkpoint else 0
    num_steps = max(0, work.plan.total_steps - step)
    lengths, sample = _lengths(run, work, checkpoint, num_steps)
    scale = max(1.0, num_steps / _MOST_STEPS)
    evaluators = work.evaluators
    an_evaluation = sum(evaluator.scorer.num_tokens for evaluator in evaluators)
    due = [work.evaluations.due(s) for s in range(step, step + len(lengths))]
    num_evaluations = sum(any(evaluator in due_then for evaluator in evaluators) for due_then in due)
    num_saved = _num_saved(config, step, lengths, list(map(bool, due)))
    before, is_before_known = _used_before(run, an_evaluation)
    num_there = sum(record.is_usable for record in run.checkpoints())
    return Estimate(
        usage=Usage(
            steps=round(scale * len(lengths)),
            trained=round(scale * sum(lengths)),
            evaluated=(round(scale * num_evaluations) + 1) * an_evaluation,
            measured=round(_measured(run, config, work, step, lengths)),
            checkpoints=round(scale * num_saved),
        ),
        before=before,
        is_before_known=is_before_known,
        sample=sample,
        num_uncounted=len(work.evaluations.all) - len(evaluators),
        num_kept=most_kept(config.keep, num_there + num_saved, is_evaluated=bool(evaluators)),
        state_bytes=config.backend.state_bytes(config.model_name, config.lora_rank),
        prices=work.prices,
    )


def _lengths(
    run: RunDir, work: Work, checkpoint: CheckpointRecord | None, num_steps: int
) -> tuple[Sequence[float], str]:
    """Input tokens of each update to come, of the first ones where there are too many; in words what they are estimated
    from, where they are not counted."""
    from harness.supervised.batches import Position

    batches = work.batches
    before = run.metrics_from(checkpoint.step - _SAMPLED_ROWS) if checkpoint else []
    if trained := _lengths_in(before):
        a_step = statistics.fmean(trained)
        sample = f"{len(trained)} updates"
    else:
        counted = work.survey or survey(batches.dataset, batches.accumulation)
        a_step = counted.num_tokens / counted.num_sampled * counted.num_examples / counted.num_updates
        num_steps = min(num_steps, counted.num_updates * batches.num_epochs)
        sample = f"{counted.num_sampled:,} conversations"
    if num_steps <= _MOST_STEPS and a_step * min(num_steps, batches.steps_per_epoch) <= _MOST_COUNTED:
        position = Position(checkpoint.epoch, checkpoint.batch) if checkpoint else Position(0, 0)
        if (lengths := batches.lengths(position, num_steps)) is not None:
            return lengths, ""
    return [a_step] * min(num_steps, _MOST_STEPS), sample


def _num_saved(config: Config, step: int, lengths: Sequence[float], is_evaluated: Sequence[bool]) -> int:
    """Checkpoints of updates of these lengths from ``step`` on, those that the clock asks for aside."""
    num_saved, tokens = 0, 0.0
    for number, length in enumerate(lengths[:-1], start=1):
        tokens += length
        if save_due(config, step + number, is_evaluated=is_evaluated[number], tokens=tokens, seconds=0):
            num_saved, tokens = num_saved + 1, 0.0
    return num_saved + bool(lengths)  # and the final one


def _measured(run: RunDir, config: Config, work: Work, step: int, lengths: Sequence[float]) -> float:
    """Tokens of the passes that measure time, or noise: a resume's that has rows to hold against new ones."""
    if work.survey:
        return NUM_TIMED_PASSES * work.survey.shown.model_input.length if config.backend.measures_time else 0
    if not run.metrics_from(step) or config.backend.tolerance(run.config()["numerics"]) is not None:
        return 0
    return NUM_NOISE_PASSES * sum(lengths[:1] or [e.scorer.num_tokens for e in work.evaluators[:1]])


def _used_before(run: RunDir, an_evaluation: int) -> tuple[Usage, bool]:
    """What the attempts so far used, and whether each of them said it; of one that was killed, what it wrote shows.

    Args:
        an_evaluation: Tokens of one.
    """
    attempts = run.attempts()
    starts = [row for row in attempts if "used_before" in row]
    if not starts:
        return Usage(), True
    is_known = len(starts) == sum("used" in row for row in attempts)
    before, end = Usage(**starts[-1]["used_before"]), attempts[-1]
    if "used" in end:
        used = Usage(**{key: value for key, value in end["used"].items() if key != "price"})
        return before.plus(used), is_known
    return before.plus(_written_by(run, starts[-1], an_evaluation)), is_known


def _written_by(run: RunDir, start: Row, an_evaluation: int) -> Usage:
    """What the newest attempt used, as its rows and checkpoints show. Rows that it made again and found equal are an
    earlier attempt's: it came as far as its last checkpoint, or where it wrote the last row, that far."""
    first = start["next_step"]
    rows = run.metrics_from(first)
    saved = [record.step for record in run.checkpoints() if record.step > first and not record.superseded]
    if not rows or rows[-1][metric_keys.TS] < start[metric_keys.TS]:
        rows = [row for row in rows if row[metric_keys.STEP] < max(saved, default=first)]
    trained = _lengths_in(rows)
    return Usage(
        steps=len(trained),
        trained=sum(trained),
        evaluated=an_evaluation * sum(metric_keys.first_test_nll(row) is not None for row in rows),
        measured=start["planned"]["measured"],  # before its first update
        checkpoints=len(saved),
    )


def _lengths_in(rows: Sequence[Row]) -> list[int]:
    return [row[metric_keys.NUM_TOKENS] for row in rows if metric_keys.TRAIN_NLL in row]


def number(count: int, what: str) -> str:
    """In words: 1 step, 1,000 steps."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
