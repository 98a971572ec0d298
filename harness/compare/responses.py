"""How test NLL responds to each parameter of a sweep. Seeds are replicates: their spread is shown, not their values."""

import contextlib
import math
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.compare.align import choose
from harness.compare.load import RUN, Runs
from harness.compare.report import Section, nll_cell
from harness.compare.seeds import SEED
from harness.exceptions import ConfigError
from harness.plot import Response, draw_responses

if TYPE_CHECKING:
    import pandas as pd

_NLL, _FINGERPRINT = "test_nll", "fingerprint"
_DIFFER = "test sets differ or are unknown: NLLs compare within one colour"
_WORDS = ("parameter", "value", "test set")
FOOTNOTE = """\
Of the last evaluations of the runs that are finished, the mean over seeds: best = the lowest over the values of the \
other parameters, seed sd = standard deviation between the seeds of that one; mean and worst over the same. What lies \
within the seeds' spread is no difference; the best of many looks better than it is."""


def results(runs: Runs, settings: Mapping[str, Mapping[str, str]], on: str = "") -> "pd.DataFrame":
    """A row a run that is finished and was evaluated, indexed by ``run``: a column a parameter, its value a number
    where its text is one; ``test_nll`` of the last evaluation, nats per token; ``fingerprint`` of its test set.

    Args:
        settings: By run, the value of each parameter as text.
        on: The test set: "" is the unnamed one.
    """
    import pandas as pd

    rows = {
        run: {parameter: _value(text) for parameter, text in of_run.items()}
        for run, of_run in settings.items()
        if runs.states[run] == "FINISHED"
    }
    values = pd.DataFrame.from_dict(rows, orient="index", dtype=object).rename_axis(index=RUN)
    measured = choose(runs, on=on)[[_NLL, _FINGERPRINT]].fillna({_FINGERPRINT: "unknown"})
    return values.join(measured, how="left").dropna(subset=_NLL)


def responses(results: "pd.DataFrame") -> "pd.DataFrame":
    """A row a parameter, test set and value: test NLLs of the configs that have it, each the mean over its seeds. Those
    of a parameter that has one value are left out, and those of ``seed``.

    | column          | is                                                                                   |
    | --------------- | ------------------------------------------------------------------------------------ |
    | parameter       |                                                                                      |
    | fingerprint     | of the test set; NLLs of different ones do not compare                               |
    | value           | numbers ascend, words stand as they were written                                     |
    | num_runs        |                                                                                      |
    | best            | the lowest over the values of the other parameters, nats per token                   |
    | seed_sd         | standard deviation between the seeds of that one; NaN where it has one               |
    | mean, worst     | mean and highest over the values of the other parameters                             |

    Args:
        results: As :func:`results` gives it.
    """
    import pandas as pd

    parameters = [name for name in results.columns if name not in (SEED, _NLL, _FINGERPRINT)]
    grouped = results.groupby([*parameters, _FINGERPRINT], sort=False)[_NLL]
    configs = grouped.agg(["mean", "std", "size"]).reset_index()
    rows = [
        {"parameter": parameter, "fingerprint": fingerprint, "value": value} | _response(having)
        for parameter in parameters
        if len(values := _in_order(configs[parameter].tolist())) > 1
        for fingerprint, on_set in configs.groupby(_FINGERPRINT, sort=False)
        for value in values
        if len(having := on_set[on_set[parameter] == value])
    ]
    columns = ["parameter", "fingerprint", "value", "num_runs", "best", "seed_sd", "mean", "worst"]
    return pd.DataFrame(rows, columns=columns)


def _response(configs: Any) -> dict[str, Any]:
    nlls = configs["mean"]
    best = configs.loc[nlls.idxmin()]
    numbers = {"best": best["mean"], "seed_sd": best["std"], "mean": nlls.mean(), "worst": nlls.max()}
    return {"num_runs": sum(configs["size"].tolist())} | numbers


def responses_section(responses: "pd.DataFrame") -> Section:
    """What :func:`responses` gave as a table."""
    several = _are_several(responses)
    rows: list[list[str]] = []
    parameter = None
    for row in responses.to_dict("records"):
        cells = [row["parameter"] if row["parameter"] != parameter else "", _word(row["value"])]
        cells += [str(row["fingerprint"])] if several else []
        rows.append(
            [*cells, f"{row['num_runs']:,}", *(nll_cell(row[name]) for name in ("best", "seed_sd", "mean", "worst"))]
        )
        parameter = row["parameter"]
    return Section(
        "responses",
        "Response of test NLL to each parameter",
        (*_WORDS[: 2 + several], "runs", "best", "seed sd", "mean", "worst"),
        rows,
        ["TEST SETS DIFFER: NLLs compare only within one"] if several else [],
        words=_WORDS,
    )


def draw(results: "pd.DataFrame", responses: "pd.DataFrame", path: Path) -> None:
    """Draw what the two functions of these names gave, a panel a parameter, into ``path``, which is replaced.

    Raises:
        ConfigError: where the file cannot be written.
    """
    panels = {
        str(parameter): [_curve(results, str(parameter), of) for _, of in rows.groupby(_FINGERPRINT, sort=False)]
        for parameter, rows in responses.groupby("parameter", sort=False)
    }
    try:
        draw_responses(path, panels, warning=_DIFFER if _are_several(responses) else "")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}): make room, then run the same command again"
        ) from None


def _curve(results: "pd.DataFrame", parameter: str, rows: "pd.DataFrame") -> Response:
    runs = results[results[_FINGERPRINT] == rows[_FINGERPRINT].iloc[0]]
    return Response(
        values=rows["value"].tolist(),
        best=rows["best"].tolist(),
        seed_sd=rows["seed_sd"].tolist(),
        mean=rows["mean"].tolist(),
        runs=(runs[parameter].tolist(), runs[_NLL].tolist()),
    )


def _are_several(responses: "pd.DataFrame") -> bool:
    fingerprints = set(responses[_FINGERPRINT].tolist())
    return len(fingerprints) > 1 or fingerprints == {"unknown"}


def _value(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if math.isfinite(number := kind(text)):
                return number
    return text


def _in_order(values: list[Any]) -> list[Any]:
    unique = list(dict.fromkeys(values))
    return unique if any(isinstance(value, str) for value in unique) else sorted(unique)


def _word(value: Hashable) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
