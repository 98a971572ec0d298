"""Configs compared, not checkpoints: where several seeds of each were trained, by the spread between seeds."""

import json
import math
import statistics
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from harness.compare.align import BEST, LAST, have_choice
from harness.compare.load import Runs
from harness.compare.paired import CONFIDENCE, holm, simultaneous, verdict
from harness.compare.stats import NEVER_A_DIFFERENCE

if TYPE_CHECKING:
    import pandas as pd

SEED = "seed"  # the config path
# Between the seeds of one config libraries, machine and commit may move on: the report lists how.
_MAY_DIFFER = (SEED, *NEVER_A_DIFFERENCE, "versions", "numerics", "git_commit")
_ROUNDING_ALONE = ("backend.num_threads", "backend.micro_batch_tokens", "backend.eval_micro_batch_tokens")


def welch(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """The ends of the interval of ``mean(b) - mean(a)``, and the two-sided p that it is 0; variances may differ (Welch,
    The Generalization of 'Student's' Problem When Several Different Population Variances Are Involved, Biometrika 34,
    1947). Where neither varies there is no interval (NaN), and p is 1.

    Samples of two numbers, or of unequal size, have the degrees of freedom of the smaller one: where that has two or
    three numbers, Welch's approximation tells samples apart too often.

    Args:
        a, b: At least two numbers each.
    """
    import numpy as np
    from scipy.special import stdtr, stdtrit

    if len(set(a)) == len(set(b)) == 1:
        return math.nan, math.nan, 1.0
    of_means = [float(np.var(sample, ddof=1)) / len(sample) for sample in (a, b)]
    error = math.sqrt(sum(of_means))
    freedom = sum(of_means) ** 2 / sum(v**2 / (len(s) - 1) for v, s in zip(of_means, (a, b), strict=True))
    if len(a) != len(b) or len(a) == 2:
        freedom = min(len(a), len(b)) - 1  # never more than Welch's
    difference = float(np.mean(b) - np.mean(a))
    half = -float(stdtrit(freedom, (1 - confidence) / 2)) * error
    return difference - half, difference + half, 2 * float(stdtr(freedom, -abs(difference) / error))


def same_config(runs: Runs, chosen: "pd.DataFrame") -> list[dict[Hashable, list[str]]]:
    """The runs of each config, by seed, in the order of the runs. Runs are of one config where nothing differs but
    seed, names and what changes rounding alone, they trained and were tested on the same data, and are judged at one
    point: the last ones at one step, the best ones, and the only ones, of runs that ended, or of runs that did not.

    Args:
        chosen: As :func:`harness.compare.align.choose` gives it; runs that were not evaluated are left out.
    """
    groups: dict[str, dict[Hashable, list[str]]] = {}
    configs = runs.configs.dropna(how="all").to_dict("index")
    choice = have_choice(chosen)
    for run, row in chosen.dropna(subset=["test_nll", "fingerprint"]).to_dict("index").items():
        if run in configs:
            kept = {path: value for path, value in configs[run].items() if not _may_differ(str(path))}
            has_ended = runs.states[str(run)] == "FINISHED"
            alike = {LAST: row["step"] if choice else has_ended, BEST: has_ended}.get(row["point"])
            key = json.dumps([kept, row["fingerprint"], row["point"], alike], sort_keys=True, default=str)
            seed = configs[run].get(SEED)
            seed = seed if isinstance(seed, Hashable) else repr(seed)  # somebody else's config may have a list there
            groups.setdefault(key, {}).setdefault(seed, []).append(str(run))
    return list(groups.values())


def _may_differ(path: str) -> bool:
    return path.split(".")[0] in _MAY_DIFFER or path in _ROUNDING_ALONE


def compare_configs(runs: Runs, chosen: "pd.DataFrame", baseline: str) -> "pd.DataFrame":
    """A row a config of at least two seeds, that of ``baseline`` first, which needs as many; no row where there are no
    two such configs, tested on the same data and judged at the same point.

    | column     | is                                                                                      |
    | ---------- | --------------------------------------------------------------------------------------- |
    | runs       | names, joined by ", "                                                                   |
    | num_seeds  | runs of one seed count as one, by their mean                                            |
    | test_nll   | mean over seeds, nats per token                                                         |
    | difference | from that of the baseline's config                                                      |
    | low, high  | Welch's t interval over seeds; 95 % for all rows together                               |
    | p          | of Welch's t test, Holm-corrected                                                       |
    | verdict    | better, worse, not told apart; no verdict where no seed changes the NLL; "baseline"     |

    Args:
        chosen: As :func:`harness.compare.align.choose` gives it.
    """
    import pandas as pd

    groups = [group for group in same_config(runs, chosen) if len(group) > 1]
    names = [[run for of_seed in group.values() for run in of_seed] for group in groups]
    judged = {str(run): row for run, row in chosen.to_dict("index").items()}
    nlls = [
        [statistics.fmean(judged[run]["test_nll"] for run in of_seed) for of_seed in group.values()] for group in groups
    ]
    columns = ["runs", "num_seeds", "test_nll", "difference", "low", "high", "p", "verdict"]
    first = next((i for i, of_config in enumerate(names) if baseline in of_config), None)
    if first is None:
        return pd.DataFrame(columns=columns)
    others = [
        i
        for i, of_config in enumerate(names)
        if i != first
        and all(judged[of_config[0]][key] == judged[baseline][key] for key in ("fingerprint", "point"))
        and _are_as_far(runs, judged, [*names[first], *of_config])
    ]
    if not others:
        return pd.DataFrame(columns=columns)
    found = [welch(nlls[first], nlls[i], simultaneous(len(others))) for i in others]
    corrected = holm([p for _, _, p in found])
    rows: list[dict[str, Any]] = [
        {
            "verdict": "baseline",
            "runs": ", ".join(names[i]),
            "num_seeds": len(nlls[i]),
            "test_nll": statistics.fmean(nlls[i]),
        }
        for i in (first, *others)
    ]
    for row, (low, high, _), p in zip(rows[1:], found, corrected, strict=True):
        row |= {"difference": row["test_nll"] - rows[0]["test_nll"], "low": low, "high": high, "p": p}
        row["verdict"] = verdict(low, high)
    return pd.DataFrame(rows, columns=columns)


def _are_as_far(runs: Runs, judged: dict[str, dict[Any, Any]], names: list[str]) -> bool:
    """Whether runs stand at one x, or at one step, or have all ended: a config may train longer than another, but one
    that is still training is not yet what it will be."""
    if judged[names[0]]["point"] not in (LAST, BEST) or len({judged[name]["step"] for name in names}) == 1:
        return True
    return all(runs.states[name] == "FINISHED" for name in names)
