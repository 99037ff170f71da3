"""Examples cannot rot: what their scripts and READMEs start is started with flags that the commands take."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from megatron_longpo.config.cli import parse_args
from megatron_longpo.config.layout import check_layout
from tests.support.recorded_commands import ROOT, Command, recorded_commands

MISTRAL_7B = SimpleNamespace(num_attention_heads=32, num_query_groups=8, num_layers=32, ffn_hidden_size=14336)
QWEN2_5_7B = SimpleNamespace(num_attention_heads=28, num_query_groups=4, num_layers=28, ffn_hidden_size=18944)

TRAININGS = [
    # what is typed, architecture, processes, sequence length
    ("bash examples/mistral_7b_128k/train.sh", MISTRAL_7B, 8, 131072),
    ("bash examples/qwen2.5_7b_128k/train.sh", QWEN2_5_7B, 8, 131072),
    ("sbatch examples/slurm/train.sbatch examples/mistral_7b_128k/train.sh", MISTRAL_7B, 8, 131072),
    ("sbatch --nodes 2 examples/slurm/train.sbatch examples/qwen2.5_7b_128k/train.sh", QWEN2_5_7B, 16, 131072),
    ("sbatch --nodes 2 examples/slurm/train.sbatch examples/continue_256k_512k/train.sh 256k", MISTRAL_7B, 16, 262144),
    ("sbatch --nodes 2 examples/slurm/train.sbatch examples/continue_256k_512k/train.sh 512k", MISTRAL_7B, 16, 524288),
]

OTHER_SCRIPTS = [
    ("bash examples/mistral_7b_128k/convert.sh", "hf_to_mcore.py"),
    ("bash examples/mistral_7b_128k/convert.sh export", "mcore_to_hf.py"),
    ("bash examples/qwen2.5_7b_128k/convert.sh", "hf_to_mcore.py"),
    ("bash examples/qwen2.5_7b_128k/convert.sh export", "mcore_to_hf.py"),
    ("bash examples/continue_256k_512k/convert.sh 512k", "mcore_to_hf.py"),
    ("sbatch examples/slurm/convert.sbatch models/m checkpoints/m", "hf_to_mcore.py"),
    ("sbatch examples/slurm/convert.sbatch --export runs/m exported/m", "mcore_to_hf.py"),
    (
        "sbatch examples/slurm/generate.sbatch books pairs.jsonl models/m 131072 'http://n1/v1 http://n2/v1' --verify filter",
        "generate_preference_data.py",
    ),
    ("sbatch examples/slurm/preprocess.sbatch pairs.jsonl data/pairs models/m 131072", "preprocess_preference_data.py"),
    ("sbatch examples/slurm/stage.sbatch python rounds.yaml 128k/train", "self_evolve.py"),
    (
        "SLURM_JOB_ID=7 SLURM_JOB_NODELIST='n[1-2]' SLURM_JOB_NUM_NODES=2 bash examples/slurm/torchrun_on_nodes.sh "
        "python --nproc-per-node 8 pretrain_longpo.py --pretrained-checkpoint m --data-path data/pairs --num-epochs 1 "
        "--global-batch-size 16",
        "pretrain_longpo.py",
    ),
]

# Stops a command once its arguments are read, so that only they are judged.
READ_ARGUMENTS_ONLY = """
import argparse, os, runpy, sys
read = argparse.ArgumentParser.parse_args
def stop(*arguments, **options):
    read(*arguments, **options)
    sys.exit(0)
argparse.ArgumentParser.parse_args = stop
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))  # as running the file does
runpy.run_path(sys.argv[0], run_name="__main__")
sys.exit("the command read no arguments")
"""


def assert_flags_are_taken(command: Command) -> None:
    if command.script == "pretrain_longpo.py":
        parse_args(command.flags, world_size=command.world_size)
        return
    assert (ROOT / command.script).exists(), f"{command.script} is not in the repository"
    done = subprocess.run(
        [sys.executable, "-c", READ_ARGUMENTS_ONLY, command.script, *command.flags],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("shell", "architecture", "world_size", "seq_length"), TRAININGS, ids=lambda value: str(value)[:80])
def test_a_training_example_is_a_run_that_fits_its_model(tmp_path, capsys, shell, architecture, world_size, seq_length):
    (command,) = recorded_commands(shell, tmp_path)
    assert (command.script, command.world_size) == ("pretrain_longpo.py", world_size)
    config = parse_args(command.flags, world_size=world_size)
    check_layout(config.parallel, architecture, world_size)
    assert capsys.readouterr().err == "", "no flag is without effect"
    # The paper's training details.
    assert (config.objective.beta, config.objective.preference_weight, config.optimizer.lr) == (0.1, 0.01, 5e-7)
    assert (config.model.rotary_base, config.reference.reference_rotary_base) == (1e7, None)
    assert (config.training.global_batch_size, config.training.num_epochs) == (8, 1)
    assert config.data.seq_length == seq_length
    assert config.checkpoint.load == config.checkpoint.save


def test_flags_given_to_an_example_win_over_its_own(tmp_path):
    (command,) = recorded_commands("bash examples/mistral_7b_128k/train.sh --preset release --lr 1e-6", tmp_path)
    config = parse_args(command.flags, world_size=8)
    assert (config.objective.beta, config.optimizer.optimizer, config.optimizer.lr) == (0.01, "rmsprop", 1e-6)


@pytest.mark.parametrize(("shell", "script"), OTHER_SCRIPTS)
def test_a_script_s_flags_are_taken_by_its_command(tmp_path, shell, script):
    (command,) = recorded_commands(shell, tmp_path)
    assert command.script.endswith(script)
    assert_flags_are_taken(command)


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/README.md"))]
COMMANDS = {
    page: "\n".join(re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    for page in PAGES
}


@pytest.mark.parametrize("page", [page for page in PAGES if COMMANDS[page]], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_on_a_page_are_taken(tmp_path, page):
    for command in recorded_commands(COMMANDS[page], tmp_path):
        assert_flags_are_taken(command)


def test_every_script_is_tried():
    tried = " ".join([line[0] for line in TRAININGS] + [line[0] for line in OTHER_SCRIPTS])
    for script in [*ROOT.glob("examples/*/*.sh"), *ROOT.glob("examples/*/*.sbatch")]:
        assert str(script.relative_to(ROOT)) in tried or script.name in ("run_on_node.sh", "functions.sh"), script


def test_a_flag_that_a_command_does_not_know_is_seen():
    with pytest.raises(AssertionError, match="unrecognized arguments: --no-such"):
        assert_flags_are_taken(Command("checkpoint_conversion/hf_to_mcore.py", ["--hf", "a", "--save", "b", "--no-such"], 1))
