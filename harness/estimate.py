"""What a run would use: said without running it. No key is needed, no server is asked, no weights load."""

from __future__ import annotations

from rich.console import Console

from harness.prices import read_prices
from harness.run_dir import RunDir
from harness.supervised import provenance
from harness.supervised.train import Config, with_backend, with_own_builder


def estimate(config: Config, console: Console) -> None:
    """Print what a run would print of it; of a run that was started, what is left of it.

    Raises:
        HarnessError: for data or a price table that a run would refuse.
    """
    from harness.supervised.evaluators import nll_evaluators
    from harness.supervised.job import (
        Work,
        batches_of,
        build_data,
        data_fingerprints,
        evaluations_of,
        plan_of,
        tell,
        tell_what_is_left,
    )
    from harness.supervised.restoring import checkpoints_to_resume
    from harness.supervised.survey import survey
    from harness.supervised.usage import estimate as estimated

    run = RunDir(config.log_path)
    config = with_backend(with_own_builder(config), run, console)
    provenance.check_same_config(run, config)
    if run.is_finished() and provenance.is_as_last_asked(run, config):
        console.print(f"{run}: complete, nothing to train")
        return
    prices = read_prices(config.price_table, config.model_name) if config.price_table else None
    train_set, test_sets, tokenizer = build_data(config)
    batches = batches_of(config, train_set, tokenizer)
    evaluators = nll_evaluators(test_sets, tokenizer) if config.eval_every else []
    work = Work(
        batches=batches,
        evaluators=evaluators,
        evaluations=evaluations_of(config, evaluators, test_sets),
        plan=plan_of(run, config, batches),
        survey=None if run.exists() else survey(train_set, config.gradient_accumulation_steps),
        prices=prices,
    )
    if work.survey:
        tell(work.survey, work.evaluators, console)
    else:
        provenance.check_same_data(run, data_fingerprints(batches, work.evaluations))
    checkpoint = next(checkpoints_to_resume(run), None)
    tell_what_is_left(run, work, checkpoint, estimated(run, config, work, checkpoint), console)
