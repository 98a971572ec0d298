"""Why runs differ from a baseline: what differs in their configs, where their training parted, and on which slices and
examples of the test set they differ."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.backends.base import ROUNDING
from harness.compare.judge import Judgement, find_run, judge
from harness.compare.load import RUN, Evaluation, Runs
from harness.compare.paired import (
    MIN_CLUSTERS,
    bootstrap,
    holm,
    percentile_interval,
    percentile_p,
    simultaneous,
    sum_clusters,
    verdict,
)
from harness.compare.stats import config_differences
from harness.compare.texts import find_conversations
from harness.config_io import differences
from harness.exceptions import ConfigError, HarnessError
from harness.metric_keys import BATCH_DIGEST, STEP, TRAIN_NLL

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from harness.renderers.messages import Message

NUM_EXAMPLES = 5  # shown, of those on which a run is better, and of those on which it is worse


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """Why runs differ from ``baseline``.

    Attributes:
        baseline: The run that the others are held against.
        run: The one whose ``examples`` are shown.
        differences: :func:`harness.compare.stats.config_differences`.
        parted: :func:`parted`.
        slices: :func:`by_slice`, of the runs whose examples compare with the baseline's.
        examples: :func:`most_different`, with a column ``messages``: the conversation, None where it is not at hand.
        reasons: By run, why its examples do not compare with the baseline's.
        no_text: Why no conversation is at hand; else "".
    """

    baseline: str
    run: str
    differences: "pd.DataFrame"
    parted: "pd.DataFrame"
    slices: "pd.DataFrame"
    examples: "pd.DataFrame"
    reasons: dict[str, str]
    no_text: str


def explain(
    runs: Runs,
    judgement: Judgement | None = None,
    on: str = "",
    *,
    run: str | None = None,
    num_examples: int = NUM_EXAMPLES,
) -> Explanation:
    """Why runs differ from the baseline of ``judgement``; of the test set, at the point at which it judged them.

    Args:
        judgement: What :func:`harness.compare.judge.judge` gave; None: of the last evaluations, against the first run.
        on: The test set: "" is the unnamed one.
        run: A name or path: whose examples to show; None is the first whose examples compare with the baseline's.
        num_examples: How many, of those on which it is better, and of those on which it is worse.

    Raises:
        ConfigError: where there is no run beside the baseline, or ``run`` is none of the others.
    """
    judgement = judgement or judge(runs, on=on)
    baseline, others = judgement.baseline, [str(name) for name in judgement.against.index]
    if not others:
        raise ConfigError(f"there is no run beside {baseline} to differ from it: name another")
    if run is not None and (run := find_run(runs, run, "run")) == baseline:
        raise ConfigError(f"{run} is the baseline: choose another run")
    evaluated, reasons = _evaluations(runs, judgement, on)
    run = run or next((name for name in others if name in evaluated), others[0])
    pair = (evaluated[baseline], evaluated[run]) if run in evaluated else None
    conversations, no_text = _conversations(runs, (run, baseline), pair[0], on) if pair else ({}, "")
    examples = most_different(*pair, num_examples) if pair else _nothing(_EXAMPLE)
    return Explanation(
        baseline=baseline,
        run=run,
        differences=config_differences(runs),
        parted=parted(runs, baseline),
        slices=by_slice(evaluated, baseline),
        examples=examples.assign(messages=[conversations.get(name) for name in examples["id"]]),
        reasons=reasons,
        no_text=no_text,
    )


def _evaluations(runs: Runs, judgement: Judgement, on: str) -> tuple[dict[str, Evaluation], dict[str, str]]:
    """What was judged, of the baseline and of the runs that compare with it; and why the others do not."""
    steps = {str(run): row["step"] for run, row in judgement.chosen.to_dict("index").items()}
    found: dict[str, Evaluation] = {}
    reasons: dict[str, str] = {}
    for run, row in judgement.against.to_dict("index").items():
        if math.isnan(row["difference"]):
            reasons[str(run)] = row["reason"]
            continue
        for name in (judgement.baseline, str(run)):
            if name not in found:
                evaluation = runs.evaluation(name, int(steps[name]), on)
                assert evaluation, "it was judged"
                found[name] = evaluation
    return found, reasons


def _conversations(
    runs: Runs, names: Iterable[str], evaluation: Evaluation, on: str
) -> "tuple[Mapping[str, Sequence[Message]], str]":
    """Those that the first of these runs has at hand; else none, and why the first has none. They were tested on the
    same examples, and one may have been trained elsewhere."""
    why: list[str] = []
    for name in names:
        try:
            return find_conversations(runs, name, evaluation, on), ""
        except HarnessError as error:
            why.append(str(error))
    return {}, why[0]


def parted(runs: Runs, baseline: str) -> "pd.DataFrame":
    """Where the training of each run left that of ``baseline``: a row a run, indexed by ``run``.

    | column       | is                                                                                           |
    | ------------ | -------------------------------------------------------------------------------------------- |
    | steps        | updates that both made                                                                       |
    | same_batches | of these, from the first on, those of the same batch; NA: digests are not known              |
    | nll_parts    | the first step of these at which train NLL differs at all; NA: none                          |
    | tolerance    | nats per token that rounding may make: 0 where machine and libraries are alike; NaN: unknown |
    | beyond       | the first step of these at which train NLL differs by more than that; NA: none, or unknown   |

    On the same batch two train NLLs differ by their weights and by rounding, and by nothing else.
    """
    import numpy as np
    import pandas as pd

    trained = runs.metrics.reindex(columns=[RUN, STEP, BATCH_DIGEST, TRAIN_NLL]).dropna(subset=TRAIN_NLL)
    by_run: dict[str, Any] = {str(run): of_run.set_index(STEP) for run, of_run in trained.groupby(RUN)}
    none: Any = trained.iloc[:0].set_index(STEP)
    rows: dict[str, dict[str, Any]] = {}
    for run in runs.states:
        if run == baseline:
            continue
        both = by_run.get(baseline, none).join(by_run.get(run, none), how="inner", lsuffix=" of baseline")
        digests, nlls = both.filter(like=BATCH_DIGEST), both.filter(like=TRAIN_NLL)
        rows[run] = {"steps": len(both), "tolerance": _tolerance(runs, baseline, run)}
        if both.empty or digests.isna().to_numpy().any():
            continue
        same = np.logical_and.accumulate(digests.iloc[:, 0].to_numpy() == digests.iloc[:, 1].to_numpy())
        apart = (nlls.iloc[:, 1] - nlls.iloc[:, 0]).abs()[same]
        rows[run] |= {
            "same_batches": len(apart),
            "nll_parts": next(iter(apart.index[apart > 0]), None),
            "beyond": next(iter(apart.index[apart > rows[run]["tolerance"]]), None),
        }
    columns = ["steps", "same_batches", "nll_parts", "tolerance", "beyond"]
    frame = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns).rename_axis(index=RUN)
    return frame.astype(dict.fromkeys(columns, "Int64") | {"tolerance": float})


def _tolerance(runs: Runs, *names: str) -> float:
    """As a resume of one of two runs would have it where the other was trained."""
    a, b = (runs.configs.loc[name].to_dict() for name in names)
    dtypes = [config.get("numerics.dtype") for config in (a, b)]
    if not all(dtype in ROUNDING for dtype in dtypes):
        return math.nan
    if any(str(path).split(".")[0] in ("numerics", "versions") for path in differences(a, b)):
        return max(ROUNDING[dtype] for dtype in dtypes)
    return 0.0


_SLICE = (RUN, "slice", "num_examples", "num_loss_tokens", "baseline_nll", "nll", "difference", "low", "high", "p")
_SLICE += ("verdict", "contribution")


def by_slice(evaluated: Mapping[str, Evaluation], baseline: str) -> "pd.DataFrame":
    """A row a run and slice of the test set, of each run that one first to which most of its difference is due; no row
    where all examples are of one slice.

    | column          | is                                                                                        |
    | --------------- | ----------------------------------------------------------------------------------------- |
    | run, slice      | None: the examples of no slice                                                            |
    | num_examples    | in it; those that share an id count as one                                                |
    | num_loss_tokens | in it                                                                                     |
    | baseline_nll    | of the baseline on it, nats per token                                                     |
    | nll             | of the run                                                                                |
    | difference      | of the two                                                                                |
    | low, high       | its bootstrap interval, where there are 20 examples; 95 % for all rows together           |
    | p               | of a difference of 0, by the same bootstrap; Holm-corrected for all rows                  |
    | verdict         | better, worse, not told apart, or no verdict                                              |
    | contribution    | to the difference on the whole test set, in nats per token of that: a run's add up to it  |

    Args:
        evaluated: By run, of the same examples.
    """
    import numpy as np
    import pandas as pd

    others = [run for run in evaluated if run != baseline]
    base = evaluated.get(baseline)
    there: dict[str | None, list[int]] = {}
    for i, name in enumerate(base.slices if base else ()):
        there.setdefault(name, []).append(i)
    if base is None or len(there) < 2:
        return _nothing(_SLICE)
    nll = np.column_stack([evaluated[run].nll for run in (baseline, *others)])
    ids = {name: [base.ids[i] for i in at] for name, at in there.items()}
    confidence = simultaneous(len(others) * sum(len(set(of)) >= MIN_CLUSTERS for of in ids.values()))
    rows: list[dict[str, Any]] = []
    for name, at in there.items():
        sums, num_tokens = (sum_clusters(values[at], ids[name]) for values in (nll, base.num_loss_tokens))
        of_runs = _compare_slice(sums, num_tokens, confidence, int(base.num_loss_tokens.sum()))
        rows += [{RUN: run, "slice": name} | row for run, row in zip(others, of_runs, strict=True)]
    judged = [row for row in rows if not math.isnan(row["p"])]
    for row, p in zip(judged, holm([row["p"] for row in judged]), strict=True):
        row["p"] = p
    for row in rows:
        row["verdict"] = verdict(row["low"], row["high"], row["p"])
    place = {run: i for i, run in enumerate(others)}
    rows.sort(key=lambda row: (place[row[RUN]], -abs(row["contribution"])))
    names = pd.Series([row["slice"] for row in rows], dtype=object)  # None stays None
    return pd.DataFrame(rows, columns=list(_SLICE)).assign(slice=names)


def _compare_slice(
    nll: "np.ndarray", num_tokens: "np.ndarray", confidence: float, num_tokens_of_all: int
) -> list[dict[str, Any]]:
    """The cells of each run, but for what is corrected for the others.

    Args:
        nll: ``(num_clusters, 1 + num_runs)``, summed NLLs, those of the baseline first.
        num_tokens: ``(num_clusters,)``, loss-carrying.
    """
    import numpy as np

    more, (num, num_columns) = nll[:, 1:] - nll[:, :1], nll.shape
    low = high = p = np.full(num_columns - 1, np.nan)
    if num >= MIN_CLUSTERS:
        resampled = bootstrap(more, num_tokens)
        low, high = percentile_interval(resampled, num, confidence)
        p = percentile_p(resampled, num)
    means = nll.sum(axis=0) / num_tokens.sum()
    return [
        {
            "num_examples": num,
            "num_loss_tokens": int(num_tokens.sum()),
            "baseline_nll": means[0],
            "nll": means[column + 1],
            "difference": total / num_tokens.sum(),
            "low": low[column],
            "high": high[column],
            "p": p[column],
            "contribution": total / num_tokens_of_all,
        }
        for column, total in enumerate(more.sum(axis=0))
    ]


_EXAMPLE = ("id", "slice", "num_loss_tokens", "baseline_nll", "nll", "difference")


def most_different(base: Evaluation, other: Evaluation, num: int = NUM_EXAMPLES) -> "pd.DataFrame":
    """The examples on which a run's NLL is lower than the baseline's, by most first, and then those on which it is
    higher, by most first: at most ``num`` of each.

    | column          | is                                                                      |
    | --------------- | ----------------------------------------------------------------------- |
    | id, slice       | examples that share an id count as one                                  |
    | num_loss_tokens | of it                                                                   |
    | baseline_nll    | nats per token                                                          |
    | nll             | of the run                                                              |
    | difference      | in nats, summed over its tokens: the run's NLL minus the baseline's     |

    Args:
        base, other: Of the baseline and of the run, on the same examples.
    """
    import numpy as np
    import pandas as pd

    slices = dict(zip(reversed(base.ids), reversed(base.slices), strict=True))  # the first of an id
    ids = list(dict.fromkeys(base.ids))
    nll, of_run, num_tokens = (sum_clusters(v, base.ids) for v in (base.nll, other.nll, base.num_loss_tokens))
    more = sum_clusters(other.nll - base.nll, base.ids)
    order = np.argsort(more, kind="stable").tolist()
    chosen = [i for i in order[:num] if more[i] < 0] + [i for i in order[::-1][:num] if more[i] > 0]
    columns = (
        [ids[i] for i in chosen],
        pd.Series([slices[ids[i]] for i in chosen], dtype=object),  # None stays None
        num_tokens[chosen].astype(int),
        (nll / num_tokens)[chosen],
        (of_run / num_tokens)[chosen],
        more[chosen],
    )
    return pd.DataFrame(dict(zip(_EXAMPLE, columns, strict=True)))


def _nothing(columns: Iterable[str]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(columns=list(columns))
