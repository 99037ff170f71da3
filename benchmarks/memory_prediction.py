r"""Predicted against measured peak memory of a training step on CPU, in fresh processes, for several layouts and settings.

    python -m benchmarks.memory_prediction                    # the table of docs/memory.md, about 10 minutes on 2 cores
    python -m benchmarks.memory_prediction --case tp2 --json build/bench/memory.json

The step is the trainer's own (`training.step.train_step`) on one pair of random tokens and a model of random weights, in fp32.
A rank's peak is its high-water mark of resident memory minus what was resident after the imports; a case's peak is that of its
fullest rank. A step on a short pair comes first, so that the optimizer's state stands.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longpo.config.schema import OptimizerConfig, ParallelConfig, RunConfig, TrainingConfig
from megatron_longpo.estimation.memory import estimate_memory
from megatron_longpo.estimation.shape import PairShape
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.utils.errors import UserError, run_command

if TYPE_CHECKING:
    from megatron_longpo.data.pair import PreferencePair
    from megatron_longpo.parallel.state import ParallelState

MODEL = ModelArchitecture(
    family="llama", num_layers=4, hidden_size=512, ffn_hidden_size=1408, num_attention_heads=8, num_query_groups=4,
    kv_channels=64, vocab_size=32000, norm_epsilon=1e-5, rotary_base=1e6, max_position_embeddings=65536,
)  # fmt: skip
ATTENTIVE = dataclasses.replace(
    MODEL, num_layers=1, ffn_hidden_size=256, num_attention_heads=16, num_query_groups=16, kv_channels=64, vocab_size=1024
)
"""Few words, a narrow feed-forward, many heads: its worst moment is attention."""
ROOT = Path(__file__).parents[1]
ANSWER = 256
ONE_PROCESS, ONE_PAIR = ParallelConfig(), TrainingConfig(global_batch_size=1)
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "262144",  # otherwise glibc keeps freed tensors resident
    "MALLOC_TRIM_THRESHOLD_": "262144",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A row of the table.

    Attributes:
        says: what it is, in words.
        length: tokens of each side.
        ranks: number of processes.
        parallel: layout.
        training: recomputation and micro-batches.
        optimizer: name.
        sharing: whether the prefix is encoded once.
        model: the model.
    """

    says: str
    length: int = 4096
    ranks: int = 1
    parallel: ParallelConfig = ONE_PROCESS
    training: TrainingConfig = ONE_PAIR
    optimizer: str = "adam"
    sharing: bool = True
    model: ModelArchitecture = MODEL

    @property
    def config(self) -> RunConfig:
        """The run."""
        optimizer = OptimizerConfig(optimizer=self.optimizer)  # type: ignore[arg-type]
        return RunConfig(parallel=self.parallel, training=self.training, optimizer=optimizer)


def _training(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"global_batch_size": 1, **changes})


FULL = _training(recompute_granularity="full")
CASES = {
    "short": Case(says="one process, 2K", length=2048),
    "plain": Case(says="one process"),
    "longer": Case(says="one process, 8K", length=8192),
    "no-sharing": Case(says="two sequences (`--no-prefix-sharing`)", sharing=False),
    "sgd": Case(says="SGD instead of Adam", optimizer="sgd"),
    "selective": Case(says="selective recompute", length=8192, training=_training(recompute_granularity="selective")),
    "full": Case(says="full recompute", length=8192, training=FULL),
    "full-keep": Case(
        says="full recompute, attention kept (`--no-recompute-attention`)",
        length=8192,
        training=dataclasses.replace(FULL, recompute_attention=False),
    ),
    "block": Case(
        says="2 of 4 layers recomputed (`block`)",
        length=8192,
        training=_training(recompute_granularity="full", recompute_method="block", recompute_num_layers=2),
    ),
    "tp2": Case(
        says="TP 2, sequence parallel",
        length=8192,
        ranks=2,
        parallel=ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    ),
    "cp2": Case(
        says="CP 2, all-gather",
        length=8192,
        ranks=2,
        parallel=ParallelConfig(context_parallel_size=2, cp_comm_type="all_gather"),
    ),
    "cp2-ring": Case(
        says="CP 2, ring", length=8192, ranks=2, parallel=ParallelConfig(context_parallel_size=2, cp_comm_type="p2p")
    ),
    "cp2-heads": Case(
        says="CP 2, heads traded", length=8192, ranks=2, parallel=ParallelConfig(context_parallel_size=2, cp_comm_type="a2a")
    ),
    "attentive": Case(says="wide attention", length=8192, model=ATTENTIVE),
    "attentive-gather": Case(
        says="wide attention, CP 2, all-gather",
        length=8192,
        ranks=2,
        model=ATTENTIVE,
        parallel=ParallelConfig(context_parallel_size=2, cp_comm_type="all_gather"),
    ),
    "attentive-ring": Case(
        says="wide attention, CP 2, ring",
        length=8192,
        ranks=2,
        model=ATTENTIVE,
        parallel=ParallelConfig(context_parallel_size=2, cp_comm_type="p2p"),
    ),
    "attentive-heads": Case(
        says="wide attention, CP 2, heads traded",
        length=8192,
        ranks=2,
        model=ATTENTIVE,
        parallel=ParallelConfig(context_parallel_size=2, cp_comm_type="a2a"),
    ),
    "pp2": Case(
        says="PP 2, four micro-batches",
        ranks=2,
        parallel=ParallelConfig(pipeline_model_parallel_size=2),
        training=_training(global_batch_size=4),
    ),
    "dp2": Case(
        says="DP 2, distributed optimizer",
        ranks=2,
        parallel=ParallelConfig(use_distributed_optimizer=True),
        training=_training(global_batch_size=2),
    ),
}


def predict(case: Case) -> int:
    """Bytes of the fullest rank, by arithmetic."""
    shape = PairShape(length=case.length, tail=ANSWER, prefix_sharing=case.sharing)
    return estimate_memory(case.model, case.config, shape, case.ranks, fused=False).peak


def measure(case_name: str) -> int:
    """Bytes of the fullest rank, measured in fresh processes.

    Raises:
        UserError: a rank failed; its output is shown.
    """
    ranks = CASES[case_name].ranks
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"{rank}.json" for rank in range(ranks)]
        processes = []
        for rank, output in enumerate(outputs):
            joined = {**rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            command = [sys.executable, "-m", "benchmarks.memory_prediction", "--rank-of", case_name, "--json", str(output)]
            processes.append(subprocess.Popen(command, env={**os.environ, **ENVIRONMENT, **joined}, cwd=ROOT))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise UserError(f"case {case_name}: ranks ended with {codes}")
        return max(json.loads(output.read_text(encoding="utf-8"))["peak"] for output in outputs)


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def run_rank(case: Case) -> int:
    """Bytes of this process above what is resident after the imports, at the peak of a step."""
    import torch

    from megatron_longpo.data.loader import rank_batch
    from megatron_longpo.data.packing import PackItem
    from megatron_longpo.models.gpt import build_model
    from megatron_longpo.parallel import state as parallel_state
    from megatron_longpo.training.data import packing_options
    from megatron_longpo.training.optimizer import build_optimizer
    from megatron_longpo.training.step import StepContext, train_step, wrap_data_parallel

    config = dataclasses.replace(case.config, data=dataclasses.replace(case.config.data, prefix_sharing=case.sharing))
    torch.set_num_threads(1)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # the matrix library's own buffers
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts again
    state: ParallelState = parallel_state.initialize(config.parallel)
    model = wrap_data_parallel(build_model(case.model, config.parallel, config.training, state), config)
    optimizer = build_optimizer(config, model)
    context = StepContext(config.objective, config.training.global_batch_size, 1, state)
    count = config.training.global_batch_size // state.dp_group.size()
    for length in (2 * ANSWER, case.length):
        item = PackItem(_random_pair(length, case.model.vocab_size), _no_reference())
        batches = [rank_batch([item], packing_options(config, state), state) for _ in range(count)]
        train_step(model, optimizer, batches, context)
        del batches
    peak = _resident("VmHWM") - before
    parallel_state.destroy()
    return peak


def _random_pair(length: int, words: int) -> PreferencePair:
    import numpy as np

    from megatron_longpo.data.pair import PreferencePair, Side

    generator = np.random.default_rng(0)
    chosen = generator.integers(0, words, length, dtype=np.int32)
    rejected = chosen.copy()
    rejected[-ANSWER:] = (rejected[-ANSWER:] + 1) % words
    span = ((length - ANSWER, length),)
    return PreferencePair("random", Side(chosen, span), Side(rejected, span), (), (), ())


def _no_reference() -> Any:
    import numpy as np

    return np.full((1, 2), -float(ANSWER))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| setting | length | ranks | predicted MiB | measured MiB | predicted / measured |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['says']} | {row['length']} | {row['ranks']} | {row['predicted'] / 2**20:.0f} | {row['measured'] / 2**20:.0f} "
        f"| {row['predicted'] / row['measured']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="only this row; may be given several times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here as well")
    parser.add_argument("--rank-of", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        arguments.json.write_text(json.dumps({"peak": run_rank(CASES[arguments.rank_of])}), encoding="utf-8")
        return
    from tqdm import tqdm

    rows = []
    for name in tqdm(arguments.case or CASES, unit="case", disable=None):
        case = CASES[name]
        row = {"case": name, "says": case.says, "length": case.length, "ranks": case.ranks}
        rows.append({**row, "predicted": predict(case), "measured": measure(name)})
    print(table(rows))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = arguments.json.with_name(arguments.json.name + ".tmp")
        temporary.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, arguments.json)


if __name__ == "__main__":
    run_command(main)
