"""What the recipes use by default, without the packages that hold it: a tiny model and a few conversations in the
places of SmolLM2 and of the chitchat conversations. And how a script or module is run in this process, as from a shell.
"""

import hashlib
import json
import os
import runpy
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import pytest

from harness import tokenizer_utils
from harness.model_info import PACKAGED_MODELS
from tests.tiny_model import make_tiny_model

MODEL = "SmolLM2-135M-Instruct.Q4_1"
WORDS = ["paris", "sea", "wind", "fox", "dog", "poem", "one", "two", "three", "four", "five"]


def conversation(i: int) -> list[dict[str, str]]:
    """The i-th made conversation: two turns, no two alike, every other question without a question mark."""
    asked, answer = WORDS[i % 11], " ".join([WORDS[(i * 3 + 1) % 11]] * 2)
    return [
        {"role": "user", "content": f"what of {asked} {i}" + ("?" if i % 2 else "")},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": f"and {WORDS[i % 7]} {i}"},
        {"role": "assistant", "content": f"{answer} {i}"},
    ]


def write_conversations(path: Path, num: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"messages": conversation(i)}) + "\n" for i in range(num)))
    return path


def make_world(folder: Path, *, num_conversations: int = 80) -> None:
    """Fill ``folder`` with what :func:`enter` makes known: packages with model and data, and a cache."""
    gguf = b"GGUF: its conversion is in the cache already"
    digest = hashlib.sha256(gguf).hexdigest()[:12]
    package = folder / "packages" / PACKAGED_MODELS[MODEL].package
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / f"{MODEL}.gguf").write_bytes(gguf)
    model = make_tiny_model(folder / "tiny")
    for part in ("tokenizer", "weights"):
        shutil.copytree(model, folder / "cache" / "sft-harness" / "models" / f"{MODEL}-{digest}" / part)

    data = folder / "packages" / "chitchat_dataset"
    data.mkdir()
    (data / "__init__.py").touch()
    source = {
        str(i): {"messages": [[{"text": m["content"], "sender": m["role"]}] for m in conversation(i)]}
        for i in range(num_conversations)
    }
    (data / "dataset.json").write_text(json.dumps(source))


def enter(world: Path, working: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the folder ``working``, in the world made in ``world``: nothing outside of them is read or written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{world / 'mlflow.db'}")
    paths = [str(world / "packages"), os.environ.get("PYTHONPATH")]  # of the processes that are started
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", world / "cache" / "datasets")
    monkeypatch.syspath_prepend(world / "packages")
    monkeypatch.syspath_prepend(working)
    for name in {model.package for model in PACKAGED_MODELS.values()} | {"chitchat_dataset"}:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(working)
    tokenizer_utils.get_tokenizer.cache_clear()  # of another world


def run_python(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run ``python -m module …`` or ``python script.py …`` in this process; its exit code."""
    python, *arguments = shlex.split(command)
    assert python == "python", f"{command}: not a command that starts with python"
    monkeypatch.setattr(sys, "argv", arguments[1:] if arguments[0] == "-m" else arguments)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)  # run before, by another test
            if arguments[0] == "-m":
                runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0
