"""What a report of many runs costs: seconds, and the megabytes of its page.

    python -m benchmarks.report                     # 100 runs × 1,000 steps
    python -m benchmarks.report --runs 1000

Every run has a train NLL a step, a test NLL every 20, and at the last one 200 examples.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

from harness.compare import judge, load_runs, make_report, write_report
from harness.files import append_jsonl
from harness.metric_keys import STEP
from harness.run_dir import EVAL_EXAMPLES, METRICS
from tests.compare.made_runs import make_run, realistic_rows, scored

SECONDS, MEGABYTES = 5, 15  # the bars
EVAL_EVERY, EXAMPLES = 20, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        for i in range(arguments.runs):
            make(folder / "runs" / f"run-{i:04}", arguments.steps, seed=i)
        print(f"a report of {arguments.runs:,} runs × {arguments.steps:,} steps")
        measure(folder)


def make(path: Path, steps: int, seed: int) -> None:
    rows = realistic_rows(steps, EVAL_EVERY, floor=1.5 + 0.002 * seed, speed=0.5, overfit=0.1, seed=seed)
    noise = random.Random(seed)
    run = make_run(path, [], learning_rate=1e-4 * (1 + seed))
    examples = scored([15 + noise.gauss(0.02 * seed, 4) for _ in range(EXAMPLES)], [10] * EXAMPLES)
    append_jsonl(run / EVAL_EXAMPLES, [{STEP: rows[-1][STEP], "set": "", "fingerprint": "feed"} | examples])
    append_jsonl(run / METRICS, rows)


def measure(folder: Path) -> None:
    """Print how long each part takes and how large the page is, against the bars."""
    page = folder / "report.html"
    times = [time.perf_counter()]

    def lap(name: str) -> None:
        times.append(time.perf_counter())
        print(f"  {times[-1] - times[-2]:8.2f} s   {name}")

    runs = load_runs(folder / "runs")
    lap("reading the runs")
    judgement = judge(runs)
    lap("judging them")
    report = make_report(runs, judgement=judgement)
    lap("tables")
    write_report(report, page)
    lap("the page")
    print(f"  {times[-1] - times[0]:8.2f} s   in all; the bar is {SECONDS} s")
    print(f"  {page.stat().st_size / 1e6:8.2f} MB  the page; the bar is {MEGABYTES} MB")


if __name__ == "__main__":
    main()
