"""Past runs side by side: runs -> DataFrames -> statistics -> tables and figures.

    runs = load_runs(["runs"])       # run directories, folders and patterns of them, mlflow:EXPERIMENT, mlflow:RUN_ID
    summarise(runs)                  # a row a run: last and best test NLL, train NLL there, gap, tokens
    judge(runs, baseline="a")        # each run against one, example by example; configs by the spread between seeds
    align(runs, [100, 200])          # test NLLs at a common x, what lies between evaluations marked
    config_differences(runs)         # the config paths that differ, a column a run
    explain(runs)                    # where they parted: in training, by slice, by example
    make_report(runs)                # all of it in tables and notes; print_report and write_report show it
    plot(runs, "nll.png")            # train and test NLL over steps

Importing this loads neither pandas nor matplotlib nor plotly; nothing here ever loads tinker, torch or transformers,
nor mlflow where no source is of MLflow.
"""

from harness.compare.align import align
from harness.compare.explain import Explanation, explain
from harness.compare.explain_tables import explain_sections
from harness.compare.export import write_report
from harness.compare.judge import Judgement, judge
from harness.compare.load import Runs, load_runs
from harness.compare.plot import plot
from harness.compare.report import make_report
from harness.compare.stats import config_differences, summarise
from harness.compare.terminal import print_report

__all__ = [
    "Explanation",
    "Judgement",
    "Runs",
    "align",
    "config_differences",
    "explain",
    "explain_sections",
    "judge",
    "load_runs",
    "make_report",
    "plot",
    "print_report",
    "summarise",
    "write_report",
]
