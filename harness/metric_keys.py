"""The keys of metrics.jsonl and of MLflow's metrics, spelled here and nowhere else."""

from harness.files import Row

STEP = "step"  # the update that the row describes, counted from 0; the last evaluation stands at step == total steps
TS = "ts"  # milliseconds since the epoch, an integer; MLflow gets the same
EPOCH = "epoch"
PROGRESS = "progress"  # fraction of the run's updates, as many as were planned then, made before this one
BATCH_DIGEST = "batch_digest"  # of the batch's tokens and weights
LEARNING_RATE = "learning_rate"
NUM_SEQUENCES = "num_sequences"
NUM_TOKENS = "num_tokens"
NUM_LOSS_TOKENS = "num_loss_tokens"
TRAIN_NLL = "train_mean_nll"  # nats per loss-carrying token
TRAIN_BPB = "train_mean_bpb"  # bits per byte of text
TIME_STEP = "time/step"  # seconds between this row and the one before
TIME_DATA = "time/data"  # seconds that the loop waited for the batch
TIME_EVAL = "time/eval"  # seconds from asking for the evaluation to its result
_OWN = {STEP, TS, EPOCH, PROGRESS, BATCH_DIGEST, LEARNING_RATE, NUM_SEQUENCES, NUM_TOKENS, NUM_LOSS_TOKENS}
_OWN |= {TRAIN_NLL, TRAIN_BPB}


def test_key(set_name: str, metric: str) -> str:
    """``test/nll`` for the one unnamed test set (name ""), ``test/<name>/nll`` for a named one."""
    return f"test/{set_name}/{metric}" if set_name else f"test/{metric}"


def eval_key(evaluator: str, metric: str) -> str:
    """``eval/<evaluator>/<metric>``, of an evaluator that comes with the harness."""
    return f"eval/{evaluator}/{metric}"


def is_own(key: str) -> bool:
    """Whether the trainer itself writes ``key``; the others of a row are what evaluators returned."""
    return key in _OWN or key.startswith(("test/", "time/"))


def is_test_nll(key: str) -> bool:
    """Whether ``key`` is the mean NLL of a test set, named or not."""
    return key.startswith("test/") and key.endswith("/nll")


def first_test_nll(row: Row) -> float | None:
    """The row's mean NLL on its test set, on the first of several; None where it evaluates nothing."""
    return next((row[key] for key in row if is_test_nll(key)), None)
