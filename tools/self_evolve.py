r"""Run the whole method, round after round, from one file.

The current model writes pairs, is trained on them, exported and evaluated, and a rule decides whether the next round follows.

  python tools/self_evolve.py plan examples/self_evolution/mistral_7b.yaml     # every command; nothing is run
  python tools/self_evolve.py run examples/self_evolution/mistral_7b.yaml      # from the first stage that is not done
  python tools/self_evolve.py status examples/self_evolution/mistral_7b.yaml
  python tools/self_evolve.py report examples/self_evolution/mistral_7b.yaml   # the page on all rounds, also made by run

Killed at any moment, `run` goes on when it is given again. A stage runs again only if its command, or the content of what it
reads, has changed. docs/self-evolution.md explains the file.
"""

from __future__ import annotations

import argparse
import os
import runpy
from pathlib import Path

from megatron_longpo.evaluation.plan import SUITES
from megatron_longpo.evolution.config import Config, read_config
from megatron_longpo.evolution.decide import Question, decide
from megatron_longpo.evolution.plan import Plan, Toolbox, make_plan
from megatron_longpo.utils.errors import run_command
from megatron_longpo.utils.files import write_json

ROOT = Path(__file__).resolve().parents[1]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    for name, text in (
        ("plan", "print every command, and run none"),
        ("status", "print a table of the stages and their states"),
        ("run", "run every stage that is not done, in order, or hand them to Slurm"),
        ("report", "write the report page on all rounds, as run does at its end"),
    ):
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("config", type=Path, metavar="CONFIG", help="the YAML file")
        if name == "run":
            command.add_argument("--stage", metavar="NAME", help="run this stage alone, here; what it needs must be done")
    _add_decide(commands.add_parser("decide", help="decide on a round by its scores, as `run` does", allow_abbrev=False))
    return parser


def _add_decide(parser: argparse.ArgumentParser) -> None:
    where = {"base": "the base", "before": "the model of the round before", "after": "the round's model"}
    for name, text in where.items():
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FILE", help=f"results.json of {text}")
    parser.add_argument("--length", type=int, required=True, metavar="N", help="the round's length")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the decision, as JSON")
    scores = "task, suite, questions:NAME or questions:NAME/GROUP"
    parser.add_argument("--short", nargs="+", default=(), metavar="SCORE", help=f"their mean is the short score: {scores}")
    parser.add_argument("--max-short-loss", type=float, default=1.0, metavar="X", help="points below the base (default: 1)")
    parser.add_argument("--long", nargs="+", default=(), metavar="SCORE", help="their mean, at the length, is the long score")
    parser.add_argument("--min-long-gain", type=float, default=0.0, metavar="X", help="points above before (default: 0)")


def parser_of(script: str) -> argparse.ArgumentParser:
    """The parser of a command of this repository."""
    parser: argparse.ArgumentParser = runpy.run_path(str(ROOT / script))["build_parser"]()
    return parser


def plan_of(config: Config) -> Plan:
    """The stages of a file."""
    return make_plan(config, Toolbox(parser_of, SUITES))


def make_decision(arguments: argparse.Namespace) -> None:
    """Decide, and say why."""
    names = ("base", "before", "after", "length", "short", "max_short_loss", "long", "min_long_gain")
    decision = decide(Question(**{name: getattr(arguments, name) for name in names}))
    write_json(arguments.output, decision)
    print(f"{'go on' if decision['continue'] else 'stop'}: {'; '.join(decision['reasons'])}")


def main() -> None:
    """Run the command."""
    arguments = build_parser().parse_args()
    if arguments.subcommand == "decide":
        make_decision(arguments)
        return
    path = arguments.config.resolve()
    os.chdir(ROOT)
    arguments.config = Path(os.path.relpath(path)) if path.is_relative_to(ROOT) else path
    config = read_config(arguments.config)

    from megatron_longpo.evolution import commands

    if arguments.subcommand == "run":
        commands.run(config, plan_of(config), arguments.stage)
    else:
        show = {"plan": commands.show_plan, "status": commands.show_status, "report": commands.make_report}
        show[arguments.subcommand](config, plan_of(config))


if __name__ == "__main__":
    run_command(main)
