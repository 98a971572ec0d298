"""Which run is better on held-out data, at which point of each, and whether that is more than noise."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import config_io
from harness.compare.align import LAST, choose, evaluations, find_point
from harness.compare.load import RUN, Evaluation, Runs
from harness.compare.paired import (
    MIN_CLUSTERS,
    NO_VERDICT,
    WORSE,
    Comparison,
    compare_examples,
    mean_difference,
    simultaneous,
    sum_clusters,
    t_interval,
    verdict,
)
from harness.compare.seeds import compare_configs, welch
from harness.exceptions import ConfigError, RunDirError
from harness.metric_keys import STEP, TRAIN_NLL, test_key

if TYPE_CHECKING:
    import pandas as pd

_SAME_DATA = "python -m harness eval RUN… --data FILE --name NAME scores them on the same data"
_TOKENIZER = ".model_name_for_tokenizer"
_DECIDE_THE_TEXT = ("dataset_builder", "renderer_name", "seed", "data")


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """What the evaluations of several runs show, and of what.

    Attributes:
        baseline: The run that the others are held against.
        at, x: The point at which they are judged: "last", "best", or a number on the axis ``x``.
        chosen: :func:`harness.compare.align.choose`.
        against: :func:`against`.
        configs: :func:`harness.compare.seeds.compare_configs`.
    """

    baseline: str
    at: str | float
    x: str
    chosen: "pd.DataFrame"
    against: "pd.DataFrame"
    configs: "pd.DataFrame"

    def _repr_html_(self) -> str:
        from harness.compare.notebook import judgement_as_html

        return judgement_as_html(self)

    def worse(self) -> list[str]:
        """The runs whose whole interval lies above the baseline.

        Raises:
            ConfigError: where some run could not be held against it: nothing says that it is not worse.
        """
        rows = self.against.to_dict("index")
        if not rows:
            raise ConfigError(f"there is no run beside {self.baseline} to be worse than it: name another")
        for run, row in rows.items():
            if row["verdict"] == NO_VERDICT:
                raise ConfigError(f"no verdict on {run}: {row['reason']}")
        return [str(run) for run, row in rows.items() if row["verdict"] == WORSE]


def judge(runs: Runs, baseline: str | None = None, at: str | float = LAST, x: str = "step", on: str = "") -> Judgement:
    """Hold each run against ``baseline``, all of them at one point.

    Args:
        baseline: A name or path of one of the runs; None is the first.
        at: See :func:`harness.compare.align.find_point`.
        x: See :func:`harness.compare.align.positions`.
        on: The test set: "" is the unnamed one.

    Raises:
        ConfigError: for a baseline that is none of the runs, another point, axis or test set.
    """
    named = find_baseline(runs, baseline)
    point = find_point(runs, at, x, on)
    chosen = choose(runs, point, x, on)
    return Judgement(named, point, x, chosen, against(runs, chosen, named, on), compare_configs(runs, chosen, named))


class Turn(NamedTuple):
    """Where test NLL turned up.

    Attributes:
        step: Of the evaluation after which it did.
        difference: The last evaluation's test NLL minus that one's, nats per token.
        low, high: The interval of that.
    """

    step: int
    difference: float
    low: float
    high: float


def turned_up(runs: Runs, on: str = "") -> dict[str, Turn]:
    """The runs of which it is shown that test NLL turned up while train NLL fell.

    The evaluation with the lowest test NLL is held against the last, example by example: the interval of their
    difference lies above 0, with 95 % for all evaluations of the run, of which the lowest was picked. And of the
    updates since, Welch's t interval has the later half's mean train NLL below the earlier half's.
    """
    turns: dict[str, Turn] = {}
    trained = runs.metrics.reindex(columns=[RUN, STEP, TRAIN_NLL]).dropna(subset=TRAIN_NLL)
    batches = {run: rows[[STEP, TRAIN_NLL]].to_numpy(dtype=float) for run, rows in trained.groupby(RUN)}
    for run, points in evaluations(runs, on=on).items():
        best = min(points, key=lambda point: point.test_nll, default=None)  # the first of equals
        if best is None or points[-1].test_nll == best.test_nll or run not in batches:
            continue
        fell = _fell(batches[run][batches[run][:, 0] >= best.step, 1].tolist())
        if fell and (turn := _rise(runs, run, [point.step for point in points], best.step, on)):
            turns[run] = turn
    return turns


def _fell(train: list[float]) -> bool:
    """Whether it is shown that the later of these batches have the lower NLL."""
    half = len(train) // 2
    return half > 1 and welch(train[:half], train[-half:])[1] < 0


def _rise(runs: Runs, run: str, steps: list[int], best: int, on: str) -> Turn | None:
    """How far test NLL is above that of step ``best`` at the last of ``steps``; None where that is not shown."""
    found, _ = _evaluations(runs, {run: best}, on)
    last, _ = _evaluations(runs, {run: steps[-1]}, on)
    if not found or not last or _why_not(found[run], last[run]):
        return None
    ids = found[run].ids
    differences = sum_clusters(last[run].nll - found[run].nll, ids)[:, None]
    num_tokens = sum_clusters(found[run].num_loss_tokens, ids)
    if len(num_tokens) < MIN_CLUSTERS:
        return None
    (low,), (high,) = t_interval(differences, num_tokens, simultaneous(len(steps) - 1))
    return Turn(best, float(mean_difference(differences, num_tokens)[0]), low, high) if low > 0 else None


def find_baseline(runs: Runs, named: str | None) -> str:
    """The run of that name, or at that path; the first where none is named.

    Raises:
        ConfigError: where none of ``runs`` is meant.
    """
    return next(iter(runs.states)) if named is None else find_run(runs, named, "--baseline")


def find_run(runs: Runs, named: str, option: str) -> str:
    """The run of that name, or at that path.

    Args:
        option: Where another can be named, should none of ``runs`` be meant.

    Raises:
        ConfigError: where none is meant.
    """
    by_path = {os.path.abspath(run.path): name for name, run in runs.directories.items()}
    found = named if named in runs.states else by_path.get(os.path.abspath(os.path.expanduser(named)))
    if found is not None:
        return found
    raise ConfigError(f'no run "{named}" among those compared: choose one with {option}: {", ".join(runs.states)}')


def against(runs: Runs, chosen: "pd.DataFrame", baseline: str, on: str = "") -> "pd.DataFrame":
    """Each run against ``baseline``, example by example: a row a run, indexed by ``run``.

    | column       | is                                                                                            |
    | ------------ | --------------------------------------------------------------------------------------------- |
    | step         | of the run's evaluation                                                                       |
    | difference   | test NLL minus the baseline's, nats per token                                                 |
    | low, high    | its bootstrap interval; 95 % for all rows together                                            |
    | p            | of a difference of 0, by the same bootstrap; Holm-corrected                                   |
    | num_examples | compared; those that share an id count as one                                                 |
    | lower        | share of the examples on which the run's NLL is lower                                         |
    | sign_p       | exact sign test of as many examples lower as higher; Holm-corrected                           |
    | verdict      | better (``high < 0``), worse (``low > 0``), not told apart, or no verdict                     |
    | reason       | why there is no verdict; else ""                                                              |

    It is about these checkpoints and other examples like those of the test set, not about the configs.

    Args:
        chosen: As :func:`harness.compare.align.choose` gives it.
    """
    import numpy as np
    import pandas as pd

    points = chosen["point"].to_dict()
    steps = {str(run): int(row["step"]) for run, row in chosen.dropna(subset="step").to_dict("index").items()}
    evaluated, damaged = _evaluations(runs, steps, on)
    base = evaluated.get(baseline)
    others = [run for run in runs.states if run != baseline]
    rows: dict[str, dict[str, Any]] = {run: {"step": steps.get(run), "verdict": NO_VERDICT} for run in others}
    comparable: dict[str, Evaluation] = {}
    for run in others:
        evaluation = evaluated.get(run)
        if trouble := damaged.get(run) or damaged.get(baseline):
            rows[run]["reason"] = trouble
        elif base is None or evaluation is None:
            rows[run]["reason"] = f"{'it' if base else 'the baseline'} has no evaluated examples at this point"
        elif points[run] != points[baseline]:
            rows[run]["reason"] = f"its evaluation stands at {points[run]}, the baseline's at {points[baseline]}"
        elif reason := _why_not(base, evaluation):
            same_text = base.contents is not None and base.contents == evaluation.contents
            in_bits = _in_bits_per_byte(runs, steps, baseline, run, on) if same_text else ""
            rows[run]["reason"] = in_bits or reason
        else:
            comparable[run] = evaluation
    if base is not None and comparable:
        differences = np.column_stack([evaluation.nll - base.nll for evaluation in comparable.values()])
        found = compare_examples(differences, base.num_loss_tokens, base.ids)
        for run, comparison in zip(comparable, found, strict=True):
            few = f"{comparison.num_examples} of the {MIN_CLUSTERS} examples that a verdict takes"
            words = verdict(comparison.low, comparison.high, comparison.p)
            rows[run] |= comparison._asdict() | {
                "verdict": words,
                "reason": f"{few}: test on more" if words == NO_VERDICT else "",
            }
    columns = ["step", *Comparison._fields, "verdict", "reason"]
    types = dict.fromkeys(Comparison._fields, float) | {"step": "Int64", "num_examples": "Int64"}
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(index=list(rows), columns=columns)
    return table.astype(types).rename_axis(index=RUN)


def _evaluations(runs: Runs, steps: dict[str, int], on: str) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """What each run's evaluation at its step measured; and of those that are damaged, how."""
    found: dict[str, Evaluation] = {}
    damaged: dict[str, str] = {}
    for run, step in steps.items():
        try:
            evaluation = runs.evaluation(run, step, on)
        except RunDirError as error:
            damaged[run] = str(error)
            continue
        if evaluation is not None:
            found[run] = evaluation
    return found, damaged


def _why_not(base: Evaluation, other: Evaluation) -> str:
    """Why two evaluations do not compare example by example; "" where they do."""
    if base.fingerprint != other.fingerprint:
        return f"tested on other data ({other.fingerprint}, the baseline on {base.fingerprint}): {_SAME_DATA}"
    return "" if base.ids == other.ids else f"its examples have other ids than the baseline's: {_SAME_DATA}"


def _in_bits_per_byte(runs: Runs, steps: dict[str, int], baseline: str, run: str, on: str) -> str:
    """How two runs compare that were tested on one text and differ in the tokenizer; "" where more differs, or where
    bits per byte were not measured."""
    if not _differ_in_tokenizer_alone(runs, baseline, run):
        return ""
    rows = runs.metrics.reindex(columns=[RUN, STEP, test_key(on, "bpb")]).dropna()
    found = {(name, step): bpb for name, step, bpb in rows.itertuples(index=False, name=None)}
    theirs, of_baseline = (found.get((name, steps[name])) for name in (run, baseline))
    if theirs is None or of_baseline is None:
        return ""
    return (
        f"another tokenizer, so NLLs per token do not compare: {theirs:.4f} bits per byte, the baseline "
        f"{of_baseline:.4f} (one number each, no interval)"
    )


def _differ_in_tokenizer_alone(runs: Runs, a: str, b: str) -> bool:
    """Whether the same text was trained on, as far as two runs' configs and fingerprints tell."""
    configs = runs.configs.dropna(how="all").to_dict("index")
    if not configs.keys() >= {a, b}:
        return False
    if any(str(path).endswith(".max_length") and value for path, value in configs[a].items()):
        return False  # each tokenizer cuts elsewhere
    changed = [str(path) for path in config_io.differences(configs[a], configs[b])]
    of_data = [path for path in changed if path.split(".")[0] in _DECIDE_THE_TEXT]
    return bool(of_data) and all(path.endswith(_TOKENIZER) for path in of_data)
