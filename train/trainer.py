"""The trainer: optimise a task's module on any number of processes, resume exactly, log, validate, export.

Built on accelerate: one CPU process, one GPU, DDP, FSDP2, several nodes, as `accelerate launch` or `torchrun` sets up.
There is no random state to save, see `train.seeding`; what a run needs to go on is in its tensors and its step.
"""

import dataclasses
import json
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from eam_core.errors import EAMError
from train.config import LoopConfig
from train.data import Batch, DataConfig, DataError, TrainingData
from train.run_folder import RunFolder, write_text
from train.task import Task, Validation
from train.totals import Totals
from train.training_state import TrainingState

EXIT_STOPPED = 128 + signal.SIGTERM


class Trainer:
    """One run in one process; `run` is the whole of it."""

    def __init__(self, task: Task, loop: LoopConfig, data: DataConfig, run_dir: str, config: Mapping[str, Any]):
        """Join the pieces; `config` is the resolved recipe as plain values, stored beside the weights."""
        self.task, self.loop, self.config, self.folder = task, loop, config, RunFolder(run_dir)
        if torch.cuda.is_available():  # what runs outside of autocast, the autoencoder above all
            torch.set_float32_matmul_precision("high")
        unused = DistributedDataParallelKwargs(find_unused_parameters=task.batches_may_leave_parts_unused)
        self.accelerator = Accelerator(mixed_precision=loop.precision, kwargs_handlers=[unused])
        try:
            self.data = TrainingData(
                data,
                seed=loop.seed,
                batch_size=loop.batch_size,
                accumulation=loop.accumulation,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
            )
        except ValueError as error:  # how many processes there are, no config could know before
            raise EAMError(str(error)) from error
        trained = [p for p in task.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=loop.lr, betas=(loop.beta1, loop.beta2), weight_decay=loop.weight_decay, fused=True
        )
        if self.accelerator.is_fsdp2:
            self._set_up_fsdp2()
        self.module, self.optimizer = self.accelerator.prepare(task.module, optimizer)
        named = self.accelerator.unwrap_model(self.module).named_parameters()
        self.state = TrainingState({name: p for name, p in named if p.requires_grad}, self.optimizer)
        self.stopped_by: int | None = None
        self.totals = Totals()

    def _set_up_fsdp2(self) -> None:
        """Compute as without FSDP: under autocast, gradients summed in float32, frozen parts in their own precision."""
        plugin = self.accelerator.state.fsdp_plugin
        if self.task.unsharded:
            plugin.ignored_modules = "|".join(self.task.unsharded)
        if self.loop.precision == "bf16":
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )

    def run(self) -> Path:
        """Train to the end, from the last checkpoint where there is one.

        Returns:
            The run's folder.

        Raises:
            EAMError: the folder is another run's, a file cannot be read or written, or a loss was not finite.
        """
        main = self.accelerator.is_main_process
        if main:
            self.folder.write_config(self.config)
        self.accelerator.wait_for_everyone()
        start = self._resume()
        if start == self.loop.steps and (self.folder.path / "summary.json").exists():
            self.accelerator.print(f"the run in {self.folder.path} is finished")
            return self.folder.path
        if main:
            self.folder.cut_log(start)
        self.writer = SummaryWriter(str(self.folder.path / "tensorboard"), purge_step=start) if main else None
        self.started, self.first_step, self.num_images = time.monotonic(), start, 0
        quiet = {} if main else {"disable": True}  # not told otherwise, TQDM_DISABLE decides
        self.progress = tqdm(
            total=self.loop.steps, initial=start, desc=self.task.name, dynamic_ncols=True, mininterval=1, **quiet
        )
        with _noting_signals(self), self.progress:
            batches = self.data.batches(start)
            for step in range(start, self.loop.steps):
                try:
                    self._step(step, batches)
                except DataError:
                    if self.stopped_by:  # whoever asked us to stop has stopped the data workers too
                        self._stop(step)
                    raise
                self._after_step(step + 1)
        if start == self.loop.steps:  # stopped between its last checkpoint and its summary
            self._export(start, self.state.gather())
            self._validate(start)
        if self.writer:
            self.writer.close()
        return self.folder.path

    def _step(self, step: int, batches: Iterator[Batch]) -> None:
        """Do one optimiser step."""
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.loop.lr_at(step)
        self.optimizer.zero_grad(set_to_none=True)
        done: list[tuple[Batch, Mapping[str, Tensor]]] = []
        for index in range(self.loop.accumulation):
            batch = self._on_device(next(batches))
            last = index == self.loop.accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(self.module):
                with self.accelerator.autocast():  # which accelerate leaves out under FSDP2
                    out = self.module(batch, step)
                self.accelerator.backward(out["loss"].mean() / self.loop.accumulation)
            done.append((batch, {name: value.detach() for name, value in out.items()}))
        norm = self.accelerator.clip_grad_norm_(self.state.trained.values(), self.loop.clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self._check_finite(step, done, norm)
        self.optimizer.step()
        self.state.update_average(min(self.loop.ema, (1 + step) / (10 + step)))
        for _, out in done:
            self.totals.add(out)
        self.totals.add({"grad_norm": norm})
        self.num_images += sum(len(batch.hr) for batch, _ in done) * self.accelerator.num_processes

    def _check_finite(self, step: int, done: list[tuple[Batch, Mapping[str, Tensor]]], norm: Tensor) -> None:
        """Stop all processes before weights are touched when a loss or the gradient of any of them is not finite."""
        bad = torch.stack([(~value.isfinite()).sum() for value in (norm, *(out["loss"] for _, out in done))]).sum()
        if self.accelerator.reduce(bad.float(), "sum").item() == 0:
            return
        batches = [
            {"keys": batch.keys, "seeds": batch.seeds.tolist(), "loss": out["loss"].tolist()} for batch, out in done
        ]
        file = self.folder.path / f"nonfinite-step-{step}-process-{self.accelerator.process_index}.json"
        write_text(
            file,
            json.dumps({"step": step, "grad_norm": norm.item(), "batches": batches, "config": self.config}, indent=2),
        )
        raise EAMError(
            f"expected a finite loss and gradient, got another at step {step}; its samples are listed in {file}, the "
            "last checkpoint is untouched; lower --lr or --clip, or raise --warmup, in a new --run-dir"
        )

    def _after_step(self, done: int) -> None:
        """Log, save and validate when it is time; stop when a signal asked for it."""
        loop, last = self.loop, done == self.loop.steps
        speed = self.num_images / (time.monotonic() - self.started)
        self.progress.set_postfix_str(f"{speed:.3g} images/s", refresh=False)
        self.progress.update()
        if done % loop.log_every == 0 or last:
            self._log(done, {**self.totals.take(self.accelerator), "images_per_second": round(speed, 2)})
        stop = torch.tensor(float(self.stopped_by or 0), device=self.accelerator.device)
        stopped = int(self.accelerator.reduce(stop, "sum").item()) > 0
        if done % loop.save_every == 0 or last:
            self._save(done)
        if last or (loop.validate_every and done % loop.validate_every == 0):
            self._validate(done)
        if stopped and not last:
            self._stop(done)

    def _stop(self, done: int) -> NoReturn:
        """Save and leave, as a signal asked."""
        self._save(done)
        self.accelerator.print(f"stopped by a signal; step {done} is saved, the same command goes on from there")
        sys.exit(EXIT_STOPPED)

    def _on_device(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, hr=batch.hr.to(self.accelerator.device, non_blocking=True))

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        if not self.writer:
            return
        entry = {"step": step, "lr": self.loop.lr_at(step - 1), **values}
        self.folder.append_log(entry)
        for name, value in entry.items():
            if name != "step":
                self.writer.add_scalar(name, value, step)

    def _save(self, step: int) -> None:
        """Write a checkpoint and export the averaged weights; all processes take part, one writes."""
        tensors = self.state.gather()
        if self.accelerator.is_main_process:
            self.folder.save(step, tensors, keep_last=self.loop.keep_last)
        self._export(step, tensors)

    def _export(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the averaged weights as users load them; all processes wait for the one that writes."""
        if self.accelerator.is_main_process:
            averaged = {name: tensors[f"ema.{name}"] for name in self.state.average}
            self.exported = self.task.export(averaged, self.folder.path, {**self.config, "step": step})
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        """Go back to the last checkpoint; return the steps done."""
        checkpoint = self.folder.load_last()
        if checkpoint is None:
            return 0
        self.state.load(checkpoint, str(self.folder.checkpoints))
        self.accelerator.print(f"going on from step {checkpoint.step} of {self.loop.steps}")
        return checkpoint.step

    def _validate(self, step: int) -> None:
        """Score the averaged weights; write the summary at the end of the run."""
        batch = self._on_device(self.data.held_out_batch(self.task.val_count, self.task.val_size))
        self.module.eval()
        with self.state.averaged_weights(), _whole(self.module), self.accelerator.autocast():
            validation = self.task.validate(batch) if len(batch.hr) else Validation({}, {})
        scores = {f"validation/{name}": value for name, value in validation.scores.items()}
        self._log(step, scores)
        if not self.writer:
            return
        for name, picture in validation.pictures.items():
            self.writer.add_image(f"validation/{name}", picture.clamp(0, 1), step)
        told = ", ".join(f"{name} {value:.4g}" for name, value in validation.scores.items())
        tqdm.write(f"step {step}: {told or 'no picture is held out for validation; see --held-out'}")
        if step == self.loop.steps:
            self._write_summary(validation)

    def _write_summary(self, validation: Validation) -> None:
        seconds = time.monotonic() - self.started
        steps = self.loop.steps - self.first_step
        device = self.accelerator.device
        summary = {
            "task": self.task.name,
            "steps": self.loop.steps,
            "steps_since_last_start": steps,
            "seconds_since_last_start": round(seconds, 1),
            "images_per_second": round(self.num_images / seconds, 2),
            "validation": validation.scores,
            "exported": [path.name for path in getattr(self, "exported", [])],
            "trained_parameters": sum(value.numel() for value in self.state.average.values()),
            "processes": self.accelerator.num_processes,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "torch": torch.__version__,
        }
        write_text(self.folder.path / "summary.json", json.dumps(summary, indent=2) + "\n")


@contextmanager
def _whole(module: nn.Module) -> Iterator[None]:
    """Gather what FSDP2 shards of the outermost module, so that its parts can be called one by one."""
    if isinstance(module, FSDPModule):
        module.unshard()
    yield
    if isinstance(module, FSDPModule):
        module.reshard()


@contextmanager
def _noting_signals(trainer: Trainer) -> Iterator[None]:
    """Let the step that runs come to its end when the process is asked to stop."""

    def note(number: int, frame: object) -> None:
        trainer.stopped_by = number

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
