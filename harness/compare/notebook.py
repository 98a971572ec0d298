"""How runs and judgements show themselves in a notebook: as tables, with no script in them."""

from harness.compare.judge import Judgement
from harness.compare.load import Runs
from harness.compare.page import render_tables
from harness.compare.report import footnotes, nll_footnote, summary_sections, verdict_sections
from harness.compare.stats import evaluated_sets, summarise


def runs_as_html(runs: Runs) -> str:
    """What each run came to, on the unnamed test set, or on the first where all have names."""
    there = evaluated_sets(runs)
    on = "" if "" in there or not there else there[0]
    return render_tables(summary_sections(runs, summarise(runs, on), on), [nll_footnote(runs, on)])


def judgement_as_html(judgement: Judgement) -> str:
    """The verdicts on runs and configs, and what they are about."""
    return render_tables(verdict_sections(judgement), footnotes(judgement))
