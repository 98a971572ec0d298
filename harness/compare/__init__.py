"""Past runs side by side: run directories -> DataFrames -> statistics -> tables and figures.

    runs = load_runs(["runs"])       # run directories, or folders that hold some
    summarise(runs)                  # a row a run: last and best test NLL, train NLL there, gap, tokens
    judge(runs, baseline="a")        # each run against one, example by example; configs by the spread between seeds
    align(runs, [100, 200])          # test NLLs at a common x, what lies between evaluations marked
    config_differences(runs)         # the config paths that differ, a column a run
    explain(runs)                    # where they parted: in training, by slice, by example
    plot(runs, "nll.png")            # train and test NLL over steps

Importing this loads neither pandas nor matplotlib; nothing here ever loads tinker, torch, transformers or mlflow.
"""

from harness.compare.align import align
from harness.compare.explain import Explanation, explain
from harness.compare.explain_tables import print_explanation
from harness.compare.judge import Judgement, judge
from harness.compare.load import Runs, load_runs
from harness.compare.plot import plot
from harness.compare.report import print_report
from harness.compare.stats import config_differences, summarise

__all__ = [
    "Explanation",
    "Judgement",
    "Runs",
    "align",
    "config_differences",
    "explain",
    "judge",
    "load_runs",
    "plot",
    "print_explanation",
    "print_report",
    "summarise",
]
