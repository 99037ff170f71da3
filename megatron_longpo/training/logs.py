"""What a run tells: console line and progress bar, metrics.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from megatron_longpo.config.schema import RunConfig
from megatron_longpo.parallel import cpu_backend
from megatron_longpo.utils.errors import UserError

_CONSOLE = ("loss", "nll_loss", "preference_loss", "rewards/margins", "rewards/accuracies", "grad_norm", "context_balance")


def peak_memory_bytes() -> int:
    """Largest memory of this process so far: allocated on the GPU, or resident on a CPU."""
    if cpu_backend.has_cuda():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class RunLog:
    """Writes the metrics of finished iterations. Does nothing on any rank but the first."""

    def __init__(self, config: RunConfig, train_iters: int, first_iteration: int, *, is_writer: bool) -> None:
        """Open the outputs; lines of iterations after ``first_iteration - 1``, left by a run that was killed, are removed.

        Raises:
            UserError: if Weights & Biases is asked for and not installed.
        """
        self._train_iters, self._interval = train_iters, config.logging.log_interval
        self._started, self._done = time.monotonic(), 0
        self._file: Any = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._bar: Any = None
        if not is_writer:
            return
        self._open_metrics(config, first_iteration)
        self._open_tensorboard(config, first_iteration)
        self._open_wandb(config)
        from tqdm import tqdm

        self._bar = tqdm(
            total=train_iters, initial=first_iteration - 1, desc="training", unit="iteration", disable=not sys.stderr.isatty()
        )

    def _open_metrics(self, config: RunConfig, first_iteration: int) -> None:
        path = config.logging.metrics_file or (config.checkpoint.save and os.path.join(config.checkpoint.save, "metrics.jsonl"))
        if not path:
            return
        kept = _lines_before(Path(path), first_iteration)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(f"{path}.tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, path)
        self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115

    def _open_tensorboard(self, config: RunConfig, first_iteration: int) -> None:
        folder = config.logging.tensorboard_dir or (
            config.checkpoint.save and os.path.join(config.checkpoint.save, "tensorboard")
        )
        if folder:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(folder, purge_step=first_iteration)

    def _open_wandb(self, config: RunConfig) -> None:
        if config.logging.wandb_project is None:
            return
        try:
            import wandb
        except ModuleNotFoundError:
            raise UserError("--wandb-project needs the wandb package: pip install wandb") from None
        self._wandb = wandb.init(project=config.logging.wandb_project, name=config.logging.wandb_name, resume="allow")

    def write(self, iteration: int, metrics: dict[str, Any]) -> None:
        """Record a finished iteration."""
        self._done += 1
        if self._file:
            self._file.write(json.dumps({"iteration": iteration, **metrics}) + "\n")
            self._file.flush()
        if self._tensorboard:
            for name, value in metrics.items():
                self._tensorboard.add_scalar(name, value, iteration)
        if self._wandb:
            self._wandb.log(metrics, step=iteration)
        if self._bar is not None:
            if iteration % self._interval == 0 or iteration == self._train_iters:
                self._bar.write(self._line(iteration, metrics), file=sys.stdout)
                sys.stdout.flush()
            self._bar.update()

    def _line(self, iteration: int, metrics: dict[str, Any]) -> str:
        left = (time.monotonic() - self._started) / self._done * (self._train_iters - iteration)
        parts = [f"iteration {iteration}/{self._train_iters}"]
        parts += [f"{name} {metrics[name]:.4g}" for name in _CONSOLE if name in metrics]
        parts += [f"{name} {value:.4g}" for name, value in metrics.items() if _is_shown(name)]
        parts += [
            f"lr {metrics['learning_rate']:.3g}",
            f"{metrics['tokens_per_second']:.0f} tokens/s",
            f"left {format_duration(left)}",
        ]
        return " | ".join(parts)

    def say(self, text: str) -> None:
        """Tell the user something, on the first rank."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Flush and close every output."""
        for output in (self._bar, self._file, self._tensorboard):
            if output is not None:
                output.close()
        if self._wandb:
            self._wandb.finish()


def _is_shown(name: str) -> bool:
    return name.startswith("validation/loss") or (name.startswith("eval/") and not name.endswith("/nll"))


def _lines_before(path: Path, iteration: int) -> list[str]:
    """Whole lines of earlier iterations; a line cut off by a kill is dropped."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        try:
            if json.loads(line)["iteration"] < iteration and line.endswith("\n"):
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def format_duration(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
