"""The model and its optimiser: what each request does, one after another, on one thread."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import tinker
import torch
from torch.utils.checkpoint import checkpoint as recomputed
from transformers.modeling_layers import GradientCheckpointingLayer

from harness.backends.local import checkpoint, torch_setup
from harness.backends.local.head import Head
from harness.backends.local.layout import decode, goes_end_to_end
from harness.backends.local.microbatch import Sequence, plan, read_datum, share
from harness.backends.local.model import Layers, load_lora_model
from harness.backends.local.sampler import Sampler
from harness.backends.local.workers import Workers, is_changed_by
from harness.exceptions import BackendError, CheckpointDamagedError

_RECOMPUTED = functools.partial(recomputed, use_reentrant=False, preserve_rng_state=False)
_NAMED = 5  # examples in an error
_MOMENTS = ("exp_avg", "exp_avg_sq")
_ADAPTER_MUST_AGREE = ("r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


class Engine:
    """A LoRA and its Adam state.

    Attributes:
        num_steps: Optimiser steps made, those before a loaded state included.
        parameters: The LoRA's tensors by the name that PEFT gives them in an adapter's file.
        closing: Once another thread has set it, :meth:`forward` raises CancelledError at its next micro-batch.
        last_state: The state that was saved or loaded last, for an error to name.
    """

    def __init__(self, model_name: str, *, lora_rank: int, layers: Layers, seed: int, numerics: dict[str, Any]):
        self.model_name = model_name
        self.num_steps = 0
        self.closing = threading.Event()
        self._seed = seed
        self.last_state: str | None = None
        self._micro_batch_tokens: int = numerics["micro_batch_tokens"]
        self._eval_tokens: int = numerics.get("eval_micro_batch_tokens", self._micro_batch_tokens)
        self._device = torch_setup.device(numerics)
        self._model = load_lora_model(
            model_name,
            dtype=getattr(torch, numerics["dtype"]),
            device=self._device,
            rank=lora_rank,
            alpha=numerics["lora_alpha"],
            layers=layers,
            seed=seed,
        )
        self._vocab_size: int = self._model.get_input_embeddings().num_embeddings
        self._max_length: int | None = getattr(
            self._model.config.get_text_config(), "max_position_embeddings", None
        )  # a model without learned or rotary positions has no limit
        base: Any = self._model.get_base_model()
        self._decoder: torch.nn.Module = base.base_model
        self._head = Head(base)
        self._of_decoder = [p for p in self._decoder.parameters() if p.requires_grad]
        self._workers = Workers(1)
        if not self._head.is_right(self._vocab_size):
            raise BackendError(f"model {model_name!r}: a head that does not follow its decoder: take another model")
        self._end_to_end = goes_end_to_end(base, self._vocab_size)
        self._recomputing = threading.Event()
        for layer in base.modules():
            if isinstance(layer, GradientCheckpointingLayer):  # its own switch turns the layer's dropout on too
                layer.forward = functools.partial(_layer, layer.forward, self._recomputing)
        self.parameters = {
            name.replace(".default.", "."): parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }
        self._optimizer = torch.optim.AdamW(self.parameters.values(), fused=True)
        for parameter in self.parameters.values():  # made now rather than at the first step: one shape of state
            parameter.grad = torch.zeros_like(parameter)
            self._optimizer.state[parameter] = {
                "step": torch.zeros((), device=self._device),
                **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
            }

        if not is_changed_by(self._warm_up, base) and self._device.type == "cpu":
            self._workers = Workers(numerics["num_threads"])
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
        max_tokens = self._micro_batch_tokens if backward else self._eval_tokens
        for batch in plan([len(sequence) for sequence in seen], max_tokens, end_to_end=self._end_to_end):
            if self.closing.is_set():
                raise concurrent.futures.CancelledError
            with torch_setup.memory_for(*self._size(batch, seen, backward=backward), at=f"update {self.num_steps}: "):
                chosen = self._micro_batch([seen[i] for i in batch], backward=backward)
            for i, of_sequence in zip(batch, chosen, strict=True):
                logprobs[i][np.flatnonzero(sequences[i].weights)] = of_sequence
        losses = [
            -float(row.astype(np.float64) @ sequence.weights) for row, sequence in zip(logprobs, sequences, strict=True)
        ]
        if not np.isfinite(losses).all():
            raise BackendError(self._not_finite(losses, data))
        return tinker.ForwardBackwardOutput(
            loss_fn_output_type="ArrayRecord",  # what the service calls a record of named tensors
            loss_fn_outputs=[{"logprobs": tinker.TensorData.from_numpy(row)} for row in logprobs],
            metrics={"loss:sum": sum(losses)},
        )

    def _micro_batch(self, sequences: list[Sequence], *, backward: bool) -> list[np.ndarray]:
        """Log-probabilities of each sequence's weighted targets; with ``backward`` the gradient is added.

        What the decoder's layers compute is kept for the backward pass, or made again in it where a sequence is longer
        than a micro-batch should be.
        """
        parts = share([len(sequence) for sequence in sequences], self._workers.number)
        if backward and len(sequences[0]) > self._micro_batch_tokens:
            self._recomputing.set()
        try:
            answers = self._workers.run(
                [functools.partial(self._part, [sequences[i] for i in part], backward=backward) for part in parts]
            )
        finally:
            self._recomputing.clear()
        logprobs: dict[int, np.ndarray] = {}
        for part, (of_part, gradients) in zip(parts, answers, strict=True):  # in this order, whichever came first
            logprobs |= zip(part, of_part, strict=True)
            for parameter, gradient in gradients:
                assert parameter.grad is not None
                parameter.grad += gradient
        return [logprobs[i] for i in range(len(sequences))]

    def _part(
        self, sequences: list[Sequence], *, backward: bool
    ) -> tuple[list[np.ndarray], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Log-probabilities of each sequence's weighted targets; with ``backward`` each parameter with its gradient."""
        with torch.set_grad_enabled(backward):
            batch, output = decode(self._decoder, sequences, end_to_end=self._end_to_end)
            hidden = output.last_hidden_state.flatten(0, 1).index_select(0, self._tensor(batch.places))
            logprobs, gradient, of_head = self._head.logprobs(
                hidden,
                output,
                self._tensor(batch.targets),
                self._tensor(batch.weights),
                backward=backward,
            )
        gradients = []
        if backward:
            gradients += zip(self._head.parameters, of_head, strict=True)
            if hidden.requires_grad:  # not where the head alone is trained
                of_decoder = torch.autograd.grad(hidden, self._of_decoder, gradient, materialize_grads=True)
                gradients += zip(self._of_decoder, of_decoder, strict=True)
        ends = np.cumsum([np.count_nonzero(sequence.weights) for sequence in sequences])
        return np.split(logprobs.cpu().numpy(), ends[:-1]), gradients

    def _size(self, batch: list[int], seen: list[Sequence], *, backward: bool) -> tuple[str, str]:
        """A micro-batch, and what to do where it takes too much memory."""
        num_tokens, longest = sum(len(seen[i]) for i in batch), len(seen[batch[0]])
        option = "micro_batch_tokens" if backward else "eval_micro_batch_tokens"
        return (
            f"{num_tokens} tokens at once, {longest} of them in one sequence",
            f"lower backend.{option} or max_length; {self._last_good}",
        )

    def _not_finite(self, losses: list[float], data: list[tinker.Datum]) -> str:
        """What there is to say of losses of which some are NaN or infinite."""
        bad = [i for i, loss in enumerate(losses) if not np.isfinite(loss)]
        names = [getattr(data[i], "example_id", "") or f"datum {i}" for i in bad[:_NAMED]]
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        return (
            f"update {self.num_steps}: the loss of {', '.join(names)}{more} is {losses[bad[0]]}: lower learning_rate, "
            f"or look at what is named; {self._last_good}"
        )

    @property
    def _last_good(self) -> str:
        return f"the last good state is {self.last_state}" if self.last_state else "no state was saved before it"

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def optim_step(self, adam: tinker.AdamParams) -> tinker.OptimStepResponse:
        """One step of AdamW with the summed gradient, clipped to its global norm where asked; then clear it."""
        parameters = list(self.parameters.values())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not norm.isfinite():
            raise BackendError(
                f"update {self.num_steps}: the gradient is not finite: lower learning_rate, or look at this batch; "
                f"{self._last_good}"
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

    def close(self) -> None:
        """End the threads. To be called once nothing runs."""
        self._workers.close()

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
        self.take_weights(folder, files)
        self.last_state = f"{folder.parent.name}/{folder.name}"
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
        self.take_weights(folder, checkpoint.read_any_adapter(folder))

    def take_weights(self, folder: Path, files: dict[str, bytes]) -> None:
        """Take the weights alone, from the files of an adapter that were read from ``folder``.

        Raises:
            BackendError: where they are another LoRA's.
        """
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


def _layer(forward: Callable[..., Any], recomputing: threading.Event, *args: Any, **kwargs: Any) -> Any:
    """A decoder layer, whose backward pass computes it again while ``recomputing`` is set."""
    return _RECOMPUTED(forward, *args, **kwargs) if recomputing.is_set() else forward(*args, **kwargs)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
