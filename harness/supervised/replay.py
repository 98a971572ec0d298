"""Rows of metrics.jsonl, each step once: written, or proven against what an earlier attempt wrote.

A run that was killed has rows beyond its last checkpoint. Their steps are trained again, and each new row is held
against the recorded one on what the config cannot change. Equal rows prove the resume: the recorded one stays. A
different one is moved aside with all that follow it, and the run is marked inexact.

Counts, digests and learning rates must be equal; a loss may differ by the tolerance of the place: nothing where it
computes the same bits, rounding on another processor, noise on a service, which :func:`noise_of` measures. What the
harness's own evaluators sample is held where the place computes the same bits, and nowhere else: a last digit can turn
a token. What evaluators of the user's return is never held: they may ask anybody.

The limit: an optimiser that was not restored shows only from the second replayed row on.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from harness import metric_keys, run_dir
from harness.exceptions import BackendError
from harness.files import count_lines
from harness.run_dir import Row, RunDir

logger = logging.getLogger(__name__)

_HELD_EQUAL = (
    metric_keys.BATCH_DIGEST,
    metric_keys.NUM_SEQUENCES,
    metric_keys.NUM_TOKENS,
    metric_keys.NUM_LOSS_TOKENS,
    metric_keys.LEARNING_RATE,
)
_ENOUGH_ROWS = 2  # see the limit above
NUM_NOISE_PASSES = 5  # over one batch, to measure a service's noise
_NOISE_DEVIATIONS = 10  # of forward passes over the same weights, by which a loss on a service may differ


@dataclasses.dataclass(frozen=True)
class Noise:
    """How far apart a service's losses over the same weights lie.

    Attributes:
        nats: By which a sum of NLL over one loss-carrying token may differ; over n tokens, by sqrt(n) times that.
    """

    nats: float

    def of_mean(self, num_loss_tokens: int) -> float:
        """Nats per token by which a mean over so many tokens may differ."""
        return self.nats / math.sqrt(num_loss_tokens)


class Ledger:
    """Writes the rows of one attempt.

    Attributes:
        tolerance: Nats per token by which a replayed loss may differ, or the noise that says it for each number of
            tokens; None until it is known.
        num_verified: Rows that this attempt made again and found the same.
        exact: None while nothing was replayed, True while all of it was equal to the bit.
        largest_difference: Of a replayed loss, in nats per token.
        best_step: The step with the lowest test NLL, on the first of several test sets; None before any evaluation.
    """

    def __init__(self, run: RunDir, *, next_step: int, attempt: int, tolerance: float | Noise | None = 0.0):
        self._run = run
        self._attempt = attempt
        gap = run.num_steps_recorded()
        if run.metrics_from(gap + 1):
            logger.warning("%s: no step %d in metrics.jsonl: the rows after it are moved aside", run, gap)
            run.supersede(gap, attempt)
        tested = run.tested_rows()  # once: there may be many
        if (num_lost := _num_evaluations_lost(run, tested, next_step)) > 0:
            logger.warning(
                "%s: %d evaluations of metrics.jsonl are not in eval_examples.jsonl: their examples cannot be compared",
                run,
                num_lost,
            )
        self._tested = run.test_nlls(tested)
        self._recorded = {row[metric_keys.STEP]: row for row in run.metrics_from(next_step)}
        run.cut_evaluations(from_step=run.num_steps_recorded())
        self._evaluated = {_evaluation(row) for row in run.eval_examples_from(next_step)}  # a power cut can take one
        self._sampled = {_sample(row) for row in run.samples(next_step)}
        self.tolerance = tolerance
        self.num_verified = 0
        self.exact: bool | None = None
        self.largest_difference = 0.0

    @property
    def best_step(self) -> int | None:
        return min(self._tested, key=self._tested.__getitem__, default=None)

    @property
    def num_to_replay(self) -> int:
        """Recorded rows of updates that are still to be made again."""
        return sum(map(_is_trained, self._recorded.values()))

    @property
    def has_recorded(self) -> bool:
        """Whether rows that an earlier attempt wrote are still to be met."""
        return bool(self._recorded)

    @property
    def is_inexact(self) -> bool:
        """Whether a replayed row differed by more than the tolerance."""
        return math.isinf(self.largest_difference)

    def evaluations_since_best(self, step: int, nll: float) -> int:
        """Evaluations after the best one, where the one at ``step`` gives ``nll``; 0 where it is the best itself.

        A recorded evaluation of a later step does not count: a replay decides as the first time."""
        until = {tested: value for tested, value in self._tested.items() if tested < step} | {step: nll}
        best = min(until, key=until.__getitem__)
        return sum(tested > best for tested in until)

    def write(
        self,
        row: Row,
        eval_rows: Sequence[Row] = (),
        samples: Sequence[Row] = (),
        repeatable: Collection[str] = (),
    ) -> None:
        """Write a row and what was evaluated and sampled for it, or keep the equal row that is there.

        Args:
            repeatable: Metrics of the row that are held where the place computes the same bits.

        Raises:
            BackendError: where a number in it is not finite: nothing is written then.
        """
        for key, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise BackendError(
                    f"{self._run}: {key} is {value} at step {row[metric_keys.STEP]}: lower learning_rate or set "
                    "grad_clip_norm, and give another log_path"
                )
        eval_rows = [{metric_keys.STEP: row[metric_keys.STEP]} | r for r in eval_rows]
        samples = [{metric_keys.STEP: row[metric_keys.STEP]} | r for r in samples]
        recorded = self._recorded.pop(row[metric_keys.STEP], None)
        if recorded is not None:
            num_loss_tokens = {metric_keys.test_key(r["set"], "nll"): sum(r["num_loss_tokens"]) for r in eval_rows}
            difference = self._first_difference(recorded, row, num_loss_tokens, repeatable)
            if difference is None:
                self._run.append_samples(self._lost_samples(samples, recorded))
                self._run.append_eval_examples([r for r in eval_rows if _evaluation(r) not in self._evaluated])
                if _is_trained(row) and _is_trained(recorded):
                    self._verified()
                elif row.keys() - recorded.keys():  # it stood for the last evaluation, and the run goes on
                    self._run.complete_row(row | recorded)
                return
            self._supersede(row[metric_keys.STEP], difference)
        self._run.append_samples(samples)
        self._run.append_eval_examples(eval_rows)
        self._run.append_metrics(row)
        if (nll := metric_keys.first_test_nll(row)) is not None:
            self._tested[row[metric_keys.STEP]] = nll

    def _lost_samples(self, samples: Sequence[Row], recorded: Row) -> list[Row]:
        """Those of ``samples`` that belong to what ``recorded`` says and that a power cut took.

        Where other tokens may come out, they are not what its metrics were measured of: they stay lost, and it is told.
        """
        lost = [r for r in samples if _sample(r) not in self._sampled]
        if self.tolerance == 0:
            return lost
        names = {r["evaluator"] for r in lost}
        measured = {name for name in names if any(key.startswith(metric_keys.eval_key(name, "")) for key in recorded)}
        for name in sorted(measured):
            logger.warning(
                "%s: %d samples of evaluator %s at step %d are not in samples.jsonl: its metrics are of them too, and "
                "others would come out now",
                self._run,
                sum(r["evaluator"] == name for r in lost),
                name,
                recorded[metric_keys.STEP],
            )
        return [r for r in lost if r["evaluator"] not in measured]

    def _verified(self) -> None:
        self.num_verified += 1
        self.exact = self.exact is not False and self.largest_difference == 0
        if not self.num_to_replay:
            logger.info("the rows beyond the checkpoint were made again: %s", self.verdict())

    def verdict(self) -> str:
        """What the replay showed, in words."""
        if self.exact is None:
            return "nothing lay beyond the checkpoint, so there was nothing to verify"
        if self.is_inexact:
            return "a row came out differently: inexact"
        rows = f"{self.num_verified} row{'s' if self.num_verified != 1 else ''}"
        same = "equal to the bit" if self.exact else f"equal within {self.largest_difference:.1e} nats"
        few = "" if self.num_verified >= _ENOUGH_ROWS else "; one row cannot show whether the optimiser was restored"
        return f"{rows} {same}{few}"

    def _first_difference(
        self, recorded: Row, row: Row, num_loss_tokens: Mapping[str, int], repeatable: Collection[str]
    ) -> tuple[str, object, object] | None:
        """``num_loss_tokens``: of each test NLL; the row has that of its own. ``repeatable``: see :meth:`write`."""
        held = _HELD_EQUAL if _is_trained(recorded) and _is_trained(row) else ()
        for key in held:
            if recorded.get(key) != row.get(key):
                return key, recorded.get(key), row.get(key)
        for key in filter(_is_loss, row):
            if key in recorded or held:
                before, now = recorded.get(key), row[key]
                difference = abs(now - before) if before is not None else math.inf
                self.largest_difference = max(self.largest_difference, difference)
                tolerance = self.tolerance or 0.0
                if isinstance(tolerance, Noise):
                    tolerance = tolerance.of_mean(num_loss_tokens.get(key) or row[metric_keys.NUM_LOSS_TOKENS])
                if difference > tolerance:
                    return key, before, now
        for key in repeatable if self.tolerance == 0 else ():
            if key in recorded and recorded[key] != row[key]:
                return key, recorded[key], row[key]
        return None

    def _supersede(self, step: int, difference: tuple[str, object, object]) -> None:
        key, before, now = difference
        logger.warning(
            "%s: step %d came out differently than before the interruption: %s was %s and is %s. The rows from there "
            "on are kept in metrics.superseded.jsonl and written anew; the run is marked inexact",
            self._run,
            step,
            key,
            before,
            now,
        )
        self._run.supersede(step, self._attempt)
        self._recorded.clear()
        self._tested = {tested: nll for tested, nll in self._tested.items() if tested < step}
        self.exact = False
        self.largest_difference = math.inf


def noise_of(passes: list[list[float]], num_loss_tokens: int) -> Noise:
    """The noise that each example's NLL shows in forward passes of the same weights over one batch.

    Ten standard deviations of the batch's sum, as the examples' variances give it, spread over its tokens; none where
    all passes gave the same bits.
    """
    deviation = math.sqrt(sum(statistics.variance(nlls) for nlls in zip(*passes, strict=True)))
    return Noise(_NOISE_DEVIATIONS * deviation / math.sqrt(num_loss_tokens))


def _num_evaluations_lost(run: RunDir, tested: list[Row], before_step: int) -> int:
    """Evaluations before that step which metrics.jsonl has (``tested``) and eval_examples.jsonl has not."""
    rows = [row for row in tested if row[metric_keys.STEP] < before_step]
    num_there = count_lines(run / run_dir.EVAL_EXAMPLES) - len(run.eval_examples_from(before_step))
    return sum(metric_keys.is_test_nll(key) for row in rows for key in row) - num_there


def _is_trained(row: Mapping[str, object]) -> bool:
    return metric_keys.TRAIN_NLL in row


def _is_loss(key: str) -> bool:
    return key == metric_keys.TRAIN_NLL or metric_keys.is_test_nll(key)


def _sample(row: Row) -> tuple[int, str, str, int]:
    return row[metric_keys.STEP], row["evaluator"], row["id"], row["number"]


def _evaluation(eval_row: Row) -> tuple[int, str]:
    return eval_row[metric_keys.STEP], eval_row["set"]
