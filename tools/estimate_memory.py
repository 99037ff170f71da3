r"""Which layouts of a training fit some devices: bytes by cause, operations, and the flags to paste. No GPU, no weights.

    python tools/estimate_memory.py --model mistral-7b --length 131072 --num-devices 8 --device-gib 80
    python tools/estimate_memory.py --model models/Qwen2.5-7B-Instruct --length 131072 --answer-tokens 512 --turns 4 --json

Layouts are listed fastest first by an estimate of their time (operations, bubble, links), each with the cheapest recomputation
that fits. The numbers are arithmetic; docs/memory.md says what goes into them and compares them with measurements. For one
given configuration: pretrain_longpo.py --dry-run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatron_longpo.config.schema import DataConfig, OptimizerConfig, ReferenceConfig, RunConfig, TrainingConfig
from megatron_longpo.estimation.flops import pair_flops, two_pass_flops
from megatron_longpo.estimation.layouts import Machine, Plan, paste_flags, plan_layouts
from megatron_longpo.estimation.models import MODELS
from megatron_longpo.estimation.report import GIB, table, values
from megatron_longpo.estimation.shape import PairShape
from megatron_longpo.models.architecture import ModelArchitecture
from megatron_longpo.utils.errors import UserError, run_command

SHORT_CONTEXT = 4096
"""Tokens of a short context, for the operations of the public method's live reference."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help=f"Hugging Face folder, or one of: {', '.join(MODELS)}")
    parser.add_argument("--length", type=int, required=True, metavar="N", help="tokens of the longer side, answers included")
    parser.add_argument("--answer-tokens", type=int, default=512, metavar="N", help="tokens of one answer (default: 512)")
    parser.add_argument("--turns", type=int, default=1, metavar="N", help="turns of a pair (default: 1)")
    parser.add_argument("--num-devices", type=int, default=8, metavar="N", help="devices in all (default: 8)")
    parser.add_argument(
        "--devices-per-node", type=int, default=8, metavar="N", help="tensor parallelism stays inside (default: 8)"
    )
    parser.add_argument("--device-gib", type=float, default=80.0, metavar="X", help="memory of a device (default: 80)")
    reserve = "of that, not the run's: CUDA context, NCCL, fragmentation (default: 8; an assumption, not a measurement)"
    parser.add_argument("--reserve-gib", type=float, default=8.0, metavar="X", help=reserve)
    parser.add_argument("--global-batch-size", type=int, default=8, metavar="N", help="pairs of an iteration (default: 8)")
    parser.add_argument("--micro-batch-size", type=int, default=1, metavar="N", help="pairs of a micro-batch (default: 1)")
    parser.add_argument("--logit-chunk-size", type=int, default=1024, metavar="N", help="as in training (default: 1024)")
    parser.add_argument("--optimizer", choices=("adam", "rmsprop", "sgd"), default="adam", help="(default: adam)")
    parser.add_argument("--fp32", action="store_true", help="train in fp32 instead of bf16")
    parser.add_argument("--live-reference", action="store_true", help="a frozen model in memory instead of the cache")
    parser.add_argument("--no-prefix-sharing", action="store_true", help="both sides as whole sequences")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="layouts to list (default: 10)")
    parser.add_argument("--json", action="store_true", help="print values instead of a table")
    return parser


def read_model(name: str) -> ModelArchitecture:
    """A preset, or the architecture of a Hugging Face folder.

    Raises:
        UserError: it is neither.
    """
    if name in MODELS:
        return MODELS[name]
    config = Path(name) / "config.json"
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"--model {name}: no preset and no folder with a config.json; presets: {', '.join(MODELS)}") from None
    except ValueError as error:
        raise UserError(f"{config}: not JSON ({error})") from None
    from megatron_longpo.models.hf_config import architecture_from_hf

    return architecture_from_hf(fields, str(config))


def read_run(arguments: argparse.Namespace) -> tuple[RunConfig, PairShape, Machine]:
    """The run, the pair and the machine that the flags describe.

    Raises:
        UserError: a number cannot be.
    """
    counts = ("length", "answer_tokens", "turns", "num_devices", "devices_per_node", "global_batch_size", "micro_batch_size")
    for name in (*counts, "logit_chunk_size", "device_gib", "top"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be greater than 0")
    tail = arguments.answer_tokens * arguments.turns
    if tail + 1 > arguments.length:
        raise UserError(f"{arguments.turns} answers of {arguments.answer_tokens} tokens do not fit --length {arguments.length}")
    if not 0 <= arguments.reserve_gib < arguments.device_gib:
        raise UserError(f"--reserve-gib {arguments.reserve_gib} must be less than --device-gib {arguments.device_gib}")
    config = RunConfig(
        data=DataConfig(prefix_sharing=not arguments.no_prefix_sharing),
        optimizer=OptimizerConfig(optimizer=arguments.optimizer),
        reference=ReferenceConfig(reference="live" if arguments.live_reference else "cache"),
        training=TrainingConfig(
            global_batch_size=arguments.global_batch_size,
            micro_batch_size=arguments.micro_batch_size,
            logit_chunk_size=arguments.logit_chunk_size,
            bf16=not arguments.fp32,
        ),
    )
    machine = Machine(
        num_devices=arguments.num_devices,
        device_bytes=int(arguments.device_gib * GIB),
        reserve_bytes=int(arguments.reserve_gib * GIB),
        node_size=arguments.devices_per_node,
    )
    return config, PairShape(length=arguments.length, tail=tail, prefix_sharing=not arguments.no_prefix_sharing), machine


def summary(architecture: ModelArchitecture, shape: PairShape, turns: int) -> dict[str, float]:
    """Operations of a pair."""
    ours = pair_flops(architecture, shape)
    public = two_pass_flops(architecture, shape, turns, SHORT_CONTEXT + shape.tail // turns)
    return {"rows": shape.rows, "pair_flops": ours, "two_pass_flops": public, "ratio": ours / public}


def main() -> None:
    """Run the command."""
    print(report(build_parser().parse_args()))


def report(arguments: argparse.Namespace) -> str:
    """What the command prints.

    Raises:
        UserError: nothing fits, or the arguments make no run.
    """
    architecture = read_model(arguments.model)
    config, shape, machine = read_run(arguments)
    plans = plan_layouts(architecture, config, shape, machine)
    pair = summary(architecture, shape, arguments.turns)
    if arguments.json:
        return json.dumps({"pair": pair, "layouts": [values(plan) for plan in plans[: arguments.top]]}, indent=2)
    if not plans:
        raise UserError(
            f"no layout of {machine.num_devices} devices of {arguments.device_gib:g} GiB fits; give more --num-devices, "
            "or a shorter --length"
        )
    operations = (
        f"{arguments.model}, sides of {shape.length} tokens: {shape.rows} rows, {pair['pair_flops'] / 1e15:.2f} PFLOP a pair "
        f"({pair['ratio']:.3f} of two passes with a live reference)"
    )
    return f"{operations}\n{listing(plans, arguments.top, machine)}"


def listing(plans: list[Plan], top: int, machine: Machine) -> str:
    """The table, and the flags of its first row."""
    usable = f"{machine.usable_bytes / GIB:g} of {machine.device_bytes / GIB:g} GiB"
    head = f"{len(plans)} layouts fit {usable} on {machine.num_devices} devices; the first {min(top, len(plans))}, fastest first:"
    return "\n".join([head, "", table(plans[:top]), "", "flags of the first:", paste_flags(plans[0].config)])


if __name__ == "__main__":
    run_command(main)
