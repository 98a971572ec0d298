"""How runs and judgements show themselves in a notebook: as tables, with no script in them."""

from harness.compare.judge import Judgement
from harness.compare.load import Runs
from harness.compare.page import render_tables
from harness.compare.report import OF_NLLS, footnotes, summary_sections, verdict_sections
from harness.compare.stats import summarise
from harness.run_dir import test_key


def runs_as_html(runs: Runs) -> str:
    """What each run came to, on the unnamed test set, or on the first where all have names."""
    named = runs.test_sets["set"]
    on = next((name for name in ("", *named) if test_key(name, "nll") in runs.metrics), "")
    return render_tables(summary_sections(runs, summarise(runs, on), on), [OF_NLLS])


def judgement_as_html(judgement: Judgement) -> str:
    """The verdicts on runs and configs, and what they are about."""
    return render_tables(verdict_sections(judgement), footnotes(judgement))
