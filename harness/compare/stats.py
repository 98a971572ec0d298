"""Runs -> statistics: pure functions from frames to frames."""

import math
from typing import TYPE_CHECKING, Any

from harness import config_io
from harness.compare.load import RUN, Runs
from harness.compare.read_run import data_path
from harness.exceptions import ConfigError
from harness.metric_keys import NUM_LOSS_TOKENS, NUM_TOKENS, STEP, TRAIN_NLL, test_key

if TYPE_CHECKING:
    import pandas as pd

# Names, places and remarks: two runs that differ in nothing else are the same run.
NEVER_A_DIFFERENCE = (
    "log_path",
    "run_name",
    "tags",
    "note",
    "mirror",
    "tracking_uri",
    "experiment",
    "system_metrics",
)
SUMMARY = (
    "state",
    *("steps", "num_tokens", "num_loss_tokens"),
    *("last_test_nll", "last_test_step", "best_test_nll", "best_step"),
    *("train_nll", "train_step", "gap", "last_train_nll", "test_fingerprint"),
)  # the columns of summarise
# What stands beside the config, in the order in which differences are listed after those of the config itself.
_BESIDE = ("data", "git_commit", "versions", "numerics")


def summarise(runs: Runs, on: str = "") -> "pd.DataFrame":
    """A row a run, indexed by ``run``. NLLs are means in nats per loss-carrying token.

    | column             | is                                                                                |
    | ------------------ | --------------------------------------------------------------------------------- |
    | state              | RUNNING, FINISHED, FAILED, KILLED or NEW                                          |
    | steps              | updates made                                                                      |
    | num_tokens         | trained on, over all updates                                                      |
    | num_loss_tokens    | of these, those that carry loss                                                   |
    | last_test_nll      | of the last evaluation, which measured the weights after ``last_test_step`` updates |
    | best_test_nll      | the lowest of all evaluations, first reached at ``best_step``                     |
    | train_nll          | of the one batch of step ``train_step``                                           |
    | gap                | ``best_test_nll - train_nll``: positive where test is worse than train            |
    | last_train_nll     | of the last batch                                                                 |
    | test_fingerprint   | of the test set; test NLLs of different ones do not compare; missing: unknown     |

    ``train_nll`` belongs to ``best_step``: row k's test and train NLL were both measured on the weights before update
    k, so ``train_step == best_step``. Only the evaluation after the last update has no batch of its own; the last batch
    before it stands in, and ``train_step`` says so. What a run does not hold is NaN or NA.

    Args:
        on: The test set: "" is the unnamed one.

    Raises:
        ConfigError: where no run has that test set and some have another.
    """
    import pandas as pd

    nll = test_nll_key(runs, on)
    columns = [RUN, STEP, NUM_TOKENS, NUM_LOSS_TOKENS, TRAIN_NLL, nll]
    metrics = runs.metrics.reindex(columns=columns).astype({TRAIN_NLL: float, nll: float})
    tested_on = fingerprints(runs, on)
    none: pd.DataFrame = metrics.iloc[:0]
    by_run = {str(run): of_run for run, of_run in metrics.groupby(RUN, sort=False)}
    rows = {
        run: {"state": state} | _summary(by_run.get(run, none), nll) | {"test_fingerprint": tested_on.get(run)}
        for run, state in runs.states.items()
    }
    counts = ("steps", "num_tokens", "num_loss_tokens", "last_test_step", "best_step", "train_step")
    means = ("last_test_nll", "best_test_nll", "train_nll", "gap", "last_train_nll")
    summary = pd.DataFrame.from_dict(rows, orient="index").rename_axis(index=RUN)
    return summary.reindex(columns=list(SUMMARY)).astype(dict.fromkeys(counts, "Int64") | dict.fromkeys(means, float))


def _summary(rows: "pd.DataFrame", nll: str) -> dict[str, Any]:
    trained = rows.dropna(subset=NUM_TOKENS)  # all but the evaluation after the last update
    tested = rows.dropna(subset=nll)
    best = tested.nsmallest(1, nll)  # the first of equals
    train = trained.loc[trained[STEP] <= _last(best, STEP)]
    return {
        "steps": len(trained),
        "num_tokens": trained[NUM_TOKENS].sum(),
        "num_loss_tokens": trained[NUM_LOSS_TOKENS].sum(min_count=min(1, len(trained))),  # not 0 where none is counted
        "last_test_nll": _last(tested, nll),
        "last_test_step": _last(tested, STEP),
        "best_test_nll": _last(best, nll),
        "best_step": _last(best, STEP),
        "train_nll": _last(train, TRAIN_NLL),
        "train_step": _last(train, STEP),
        "gap": _last(best, nll) - _last(train, TRAIN_NLL),
        "last_train_nll": _last(trained, TRAIN_NLL),
    }


def _last(rows: "pd.DataFrame", column: str) -> float:
    return rows[column].iloc[-1] if len(rows) else math.nan


def config_differences(runs: Runs) -> "pd.DataFrame":
    """The paths at which the runs' configs differ: a row a path, a column a run; None where a run has no such path, or
    None there.

    First what was set (a replaced builder at its own path, then its fields), then ``data.*`` (fingerprints, numbers of
    examples), then the code (``git_commit``, ``versions.*``) and the machine (``numerics.*``). A run without
    config.json has no column. A test set that a run was not evaluated on is no difference.
    """
    import pandas as pd

    configs = runs.configs.dropna(how="all")
    flat = [configs.loc[run].to_dict() for run in configs.index]
    differing = {path for other in flat[1:] for path in config_io.differences(flat[0], other)}
    paths = [p for p in configs.columns if p in differing and p.split(".")[0] not in NEVER_A_DIFFERENCE]
    rows = {path: configs[path].tolist() for path in paths}
    for name in dict.fromkeys(runs.test_sets["set"]):
        found = fingerprints(runs, name)
        if len({found[run] for run in configs.index if run in found}) > 1:
            rows[data_path("test", name)] = [found.get(run) for run in configs.index]
    order = sorted(rows, key=lambda path: _BESIDE.index(first) if (first := path.split(".")[0]) in _BESIDE else -1)
    frame = pd.DataFrame([rows[path] for path in order], index=order, columns=configs.index, dtype=object)
    return frame.rename_axis(index="path", columns=RUN)


def test_nll_key(runs: Runs, on: str) -> str:
    """The metric key of test set ``on``.

    Raises:
        ConfigError: where no run has that test set and some have another.
    """
    key, names = test_key(on, "nll"), evaluated_sets(runs)
    if on in names or (not names and not on):
        return key
    wanted = f'a test set named "{on}"' if on else "an unnamed test set"
    if not names:
        raise ConfigError(f"no run has {wanted}, or any evaluation: leave out the name")
    tested = {name: runs.metrics.dropna(subset=test_key(name, "nll"))[RUN].nunique() for name in names}
    there = [f'"{name}" ({num} of {len(runs.states)} runs)' for name, num in tested.items()]
    raise ConfigError(f"no run has {wanted}: choose one with --on: {', '.join(there)}")


def evaluated_sets(runs: Runs) -> list[str]:
    """The names of the test sets that some run was evaluated on; "" is the unnamed one."""
    before, after = test_key("\n", "nll").split("\n")
    keys = [key for key in runs.metrics.columns if key.startswith(before) and key.endswith(after)]
    return [key[len(before) : -len(after)] for key in keys]


def fingerprints(runs: Runs, on: str) -> dict[str, str]:
    """The fingerprint of test set ``on`` by run; of several, where it changed, all of them joined by "+"."""
    of_set = runs.test_sets[runs.test_sets["set"] == on]
    return {str(run): "+".join(found) for run, found in of_set.groupby(RUN)["fingerprint"]}


def by_test_set(summary: "pd.DataFrame") -> dict[str, list[str]]:
    """The runs that were tested, by the fingerprint of their test set ("unknown" where there is none). Test NLLs
    compare within a group, and not within "unknown"."""
    groups: dict[str, list[str]] = {}
    tested = summary.dropna(subset="best_test_nll")
    for run, fingerprint in tested["test_fingerprint"].fillna("unknown").items():
        groups.setdefault(str(fingerprint), []).append(str(run))
    return groups


def comparable(summary: "pd.DataFrame") -> bool:
    """Whether every run that was tested was tested on the same set."""
    groups = by_test_set(summary)
    return len(groups) < 2 and len(groups.get("unknown", [])) < 2


def best_runs(summary: "pd.DataFrame") -> list[str]:
    """The run with the lowest best test NLL, or all that share it; none where fewer than two runs compare."""
    tested = summary.dropna(subset="best_test_nll")
    if len(tested) < 2 or not comparable(summary):
        return []
    return tested.loc[tested["best_test_nll"] == tested["best_test_nll"].min()].index.tolist()
