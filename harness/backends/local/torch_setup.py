"""What of this machine and of torch's global settings changes the numbers."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

from harness.backends.local.workers import set_num_threads
from harness.exceptions import BackendError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
ENGINE = 3
"""Of the way in which the engine computes: another number, other last digits. 1 was padded; runs of then do not say."""


def machine() -> dict[str, Any]:
    """What a run meets here and cannot choose: device, processor, what torch uses of it, the engine, the libraries that
    compute."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "processor": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "engine": ENGINE,
        "torch": torch.__version__,
    } | {library: importlib.metadata.version(library) for library in ("transformers", "peft")}


def _processor() -> str:
    """The processor's model name where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def differences(numerics: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What of this machine is not as it was where a run was started: by name, there and here."""
    there = {"engine": 1} | numerics
    return {name: (there[name], here) for name, here in machine().items() if name in there and there[name] != here}


def best_dtype(device: str) -> str:
    """bfloat16 where the hardware computes in it; elsewhere it is emulated, slower than float32."""
    in_hardware = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device == "cuda"
        else torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )
    return "bfloat16" if in_hardware else "float32"


def default_num_threads() -> int:
    return torch.get_num_threads()


def apply(numerics: dict[str, Any]) -> None:
    """Make this thread's computations repeatable to the bit. To be called on the thread that computes."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only with a fixed workspace
    keep_freed_memory()
    set_num_threads(numerics["num_threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is allocated next. It gives large blocks back to the system else, which
    then clears page after page of each tensor that is made: a softmax was seen to take three times as long. And let it
    ask for memory in large pieces: in small ones up to a third of it was never used again."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_M_TOP_PAD, 1 << 26)  # all that a thread's heap may hold


@contextlib.contextmanager
def memory_for(what: str, fix: str, *, at: str = "") -> Iterator[None]:
    """Raises BackendError where memory runs out in here, of the machine or of the GPU."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise BackendError(f"{at}not enough memory for {what}: {fix}") from error


def device(numerics: dict[str, Any]) -> torch.device:
    """The device of the run's first start where it is here, else the processor."""
    return torch.device(numerics["device"] if torch.cuda.is_available() else "cpu")
