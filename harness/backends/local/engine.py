"""The model and its optimiser: what each request does, one after another, on one thread."""

from __future__ import annotations

import concurrent.futures
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import tinker
import torch

from harness.backends.local import checkpoint, torch_setup
from harness.backends.local.logprobs import TokenLogprobs
from harness.backends.local.microbatch import Sequence, pad, plan, read_datum
from harness.backends.local.model import load_lora_model
from harness.backends.local.sampler import Sampler
from harness.exceptions import BackendError, CheckpointDamagedError

_MOMENTS = ("exp_avg", "exp_avg_sq")
_ADAPTER_MUST_AGREE = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


class Engine:
    """A LoRA and its Adam state.

    Attributes:
        num_steps: Optimiser steps made, those before a loaded state included.
        parameters: The LoRA's tensors by the name that PEFT gives them in an adapter's file.
        closing: Once another thread has set it, :meth:`forward` raises CancelledError at its next micro-batch.
    """

    def __init__(self, model_name: str, *, lora_rank: int, seed: int, numerics: dict[str, Any]):
        self.model_name = model_name
        self.num_steps = 0
        self.closing = threading.Event()
        self._seed = seed
        self._micro_batch_tokens: int = numerics["micro_batch_tokens"]
        self._device = torch_setup.device(numerics)
        self._model = load_lora_model(
            model_name,
            dtype=getattr(torch, numerics["dtype"]),
            device=self._device,
            rank=lora_rank,
            alpha=numerics["lora_alpha"],
            seed=seed,
        )
        self._vocab_size: int = self._model.get_input_embeddings().num_embeddings
        self._max_length: int | None = getattr(
            self._model.config.get_text_config(), "max_position_embeddings", None
        )  # a model without learned or rotary positions has no limit
        self.parameters = {
            name.replace(".default.", "."): parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }
        self._optimizer = torch.optim.AdamW(self.parameters.values())
        for parameter in self.parameters.values():  # made now rather than at the first step: one shape of state
            parameter.grad = torch.zeros_like(parameter)
            self._optimizer.state[parameter] = {
                "step": torch.zeros(()),
                **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
            }

        self._warm_up()

    def _warm_up(self) -> None:
        """Compute once, forward and backward, and throw it away.

        The first pass of a process was seen to come out otherwise than all that follow, in about one process of
        thirty, and always by the same bits: it must not be one that counts."""
        tokens = np.arange(32, dtype=np.int64) % self._vocab_size
        sequences = [Sequence(tokens[:length], tokens[:length], np.ones(length, np.float32)) for length in (32, 24)]
        self._micro_batch(sequences, backward=True)
        self._micro_batch(sequences, backward=False)
        self._optimizer.zero_grad(set_to_none=False)

    # ---- training

    def forward(self, data: list[tinker.Datum], loss_fn: str, *, backward: bool) -> tinker.ForwardBackwardOutput:
        """Log-probabilities of the weighted targets; with ``backward`` their weighted sum's gradient is added too.

        Targets of weight 0 are not computed: their place in ``logprobs`` holds 0.0.
        """
        if loss_fn != "cross_entropy":
            raise BackendError(f"loss_fn {loss_fn!r}: the local backend has cross_entropy only")
        sequences = [
            read_datum(i, datum, vocab_size=self._vocab_size, max_length=self._max_length)
            for i, datum in enumerate(data)
        ]
        logprobs = [np.zeros(len(sequence), np.float32) for sequence in sequences]
        seen = [sequence.until_last_loss() for sequence in sequences]
        for batch in plan([len(sequence) for sequence in seen], self._micro_batch_tokens):
            if self.closing.is_set():
                raise concurrent.futures.CancelledError
            rows = self._micro_batch([seen[i] for i in batch], backward=backward)
            for i, row in zip(batch, rows, strict=True):
                logprobs[i][: len(seen[i])] = row[: len(seen[i])]
        loss = sum(
            -float(row.astype(np.float64) @ sequence.weights) for row, sequence in zip(logprobs, sequences, strict=True)
        )
        return tinker.ForwardBackwardOutput(
            loss_fn_output_type="ArrayRecord",  # what the service calls a record of named tensors
            loss_fn_outputs=[{"logprobs": tinker.TensorData.from_numpy(row)} for row in logprobs],
            metrics={"loss:sum": loss},
        )

    def _micro_batch(self, sequences: list[Sequence], *, backward: bool) -> np.ndarray:
        """Log-probabilities of shape ``(rows, longest)``, 0.0 where the weight is 0."""
        padded, attention_mask = pad(sequences)
        in_loss = padded.weights != 0
        positions = in_loss.any(axis=0).nonzero()[0]  # where any row needs the head
        kept = in_loss[:, positions]
        with torch.set_grad_enabled(backward):
            logits = self._model(
                input_ids=self._tensor(padded.tokens),
                attention_mask=self._tensor(attention_mask),
                logits_to_keep=self._tensor(positions),
                use_cache=False,
            ).logits
            chosen = TokenLogprobs.apply(
                logits.flatten(0, 1),
                self._tensor(kept.ravel().nonzero()[0]),
                self._tensor(padded.targets[in_loss]),
            )
            if backward:
                torch.dot(chosen, self._tensor(-padded.weights[in_loss])).backward()
        logprobs = np.zeros(in_loss.shape, np.float32)
        logprobs[in_loss] = chosen.detach().cpu().numpy()
        return logprobs

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def optim_step(self, adam: tinker.AdamParams) -> tinker.OptimStepResponse:
        """One step of AdamW with the summed gradient, clipped to its global norm where asked; then clear it."""
        parameters = list(self.parameters.values())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not norm.isfinite():
            raise BackendError(
                f"the gradient of update {self.num_steps} is not finite: lower learning_rate, or look at this batch"
            )
        if adam.grad_clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, adam.grad_clip_norm, norm)
        self._optimizer.param_groups[0].update(
            lr=adam.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.eps,
            weight_decay=adam.weight_decay,
        )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        self.num_steps += 1
        return tinker.OptimStepResponse(metrics={"grad_norm": norm.item()})

    def sampler(self) -> Sampler:
        """What samples with the weights as they are now, whatever is trained later."""
        return Sampler(
            self, self._model, seed=self._seed, max_length=self._max_length, batch_tokens=self._micro_batch_tokens
        )

    # ---- saving and loading

    def snapshot(self, *, with_optimizer: bool) -> Callable[[Path], None]:
        """Copy what a checkpoint holds (see :mod:`harness.backends.local.checkpoint`).

        Returns:
            What writes that copy to a folder, on any thread, whatever is trained meanwhile; it raises BackendError
            where it cannot.
        """
        step = self.num_steps
        copies = {checkpoint.ADAPTER: {name: _copy(parameter) for name, parameter in self.parameters.items()}}
        if with_optimizer:
            copies[checkpoint.OPTIMIZER] = {"step": torch.tensor(step)} | {
                f"{name}.{moment}": _copy(self._optimizer.state[parameter][moment])
                for name, parameter in self.parameters.items()
                for moment in _MOMENTS
            }

        def write(folder: Path) -> None:
            files = {checkpoint.ADAPTER_CONFIG: self._adapter_config()}
            for file, tensors in copies.items():
                files[file] = safetensors.torch.save(tensors, metadata={"format": "pt"})
            checkpoint.write(folder, files, base_model=self.model_name, step=step)

        return write

    def load_state(self, folder: Path) -> None:
        """Take weights and optimiser from a checkpoint, bit for bit.

        Raises:
            CheckpointDamagedError: where it is not what was saved.
            BackendError: where it is another LoRA's.
        """
        files = checkpoint.read(folder)
        for name in (checkpoint.ADAPTER_CONFIG, checkpoint.ADAPTER):
            if name not in files:
                raise CheckpointDamagedError(f"{folder}: no {name} in its manifest: take another checkpoint")
        if checkpoint.OPTIMIZER not in files:
            raise BackendError(f"{folder}: weights alone: a run resumes from a state with its optimiser")
        self._take_weights(folder, files)
        state = safetensors.torch.load(files[checkpoint.OPTIMIZER])
        self.num_steps = int(state["step"])
        for name, parameter in self.parameters.items():
            own = self._optimizer.state[parameter]
            own["step"].fill_(self.num_steps)
            for moment in _MOMENTS:
                own[moment].copy_(state[f"{name}.{moment}"])

    def load_weights(self, folder: Path) -> None:
        """Take the weights alone, from a checkpoint or from any folder that PEFT saved a like adapter to.

        Raises:
            CheckpointDamagedError: where it is a checkpoint, and not what was saved.
            BackendError: where it is no adapter, or another LoRA's.
        """
        self._take_weights(folder, checkpoint.read_adapter(folder))

    def _take_weights(self, folder: Path, files: dict[str, bytes]) -> None:
        own, theirs = json.loads(self._adapter_config()), json.loads(files[checkpoint.ADAPTER_CONFIG])
        for key in _ADAPTER_MUST_AGREE:
            if theirs.get(key, own[key]) != own[key]:
                raise BackendError(
                    f"{folder}: an adapter with {key}={theirs[key]}; this run's has {key}={own[key]}: "
                    "set lora_rank and backend.lora_alpha to the adapter's"
                )
        weights = safetensors.torch.load(files[checkpoint.ADAPTER])
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        expected = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        if shapes != expected:
            name = min(k for k in shapes.keys() | expected.keys() if shapes.get(k) != expected.get(k))
            raise BackendError(
                f"{folder}: not an adapter of every linear layer of {self.model_name}: "
                f"{name} has shape {shapes.get(name)}; this run's has {expected.get(name)}"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])

    def _adapter_config(self) -> bytes:
        """adapter_config.json as PEFT writes it, the same bytes in every process."""
        config: dict[str, Any] = self._model.peft_config["default"].to_dict()
        config["base_model_name_or_path"] = self.model_name  # not where this machine keeps its weights
        config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        return json.dumps(config, indent=2, sort_keys=True).encode()  # a set's order differs between processes


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
