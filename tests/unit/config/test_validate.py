"""Laws of validation: what is no run is refused, all of it at once, with both values and a cure."""

import pytest

from megatron_longpo.config.cli import parse_args
from megatron_longpo.config.fields import all_fields
from megatron_longpo.config.validate import NOT_NEGATIVE, POSITIVE, SHARES
from megatron_longpo.utils.errors import UserError

MODEL = "--pretrained-checkpoint model"
DATA = "--data-path pairs"
LENGTH = "--train-iters 4"
RUN = f"{MODEL} {DATA} {LENGTH}"


def refusal(flags: str, world_size: int = 1) -> str:
    with pytest.raises(UserError) as caught:
        parse_args(flags.split(), world_size=world_size)
    return str(caught.value)


@pytest.mark.parametrize(
    ("flags", "world_size", "words"),
    [
        (f"{DATA} {LENGTH}", 1, ["--pretrained-checkpoint"]),
        (f"--load run {DATA} {LENGTH}", 1, ["--pretrained-checkpoint"]),
        (f"{MODEL} {LENGTH}", 1, ["--data-path"]),
        (f"{MODEL} {DATA}", 1, ["--train-iters", "--train-samples", "--num-epochs"]),
        (f"{RUN} --train-samples 8 --num-epochs 1", 1, ["--train-iters 4", "--train-samples 8", "--num-epochs 1.0", "keep one"]),
        (f"{RUN} --lr-warmup-iters 2 --lr-warmup-fraction 0.5", 1, ["--lr-warmup-iters 2", "--lr-warmup-fraction 0.5"]),
        (f"{RUN} --micro-batch-size 1 --micro-batch-tokens 9", 1, ["--micro-batch-size 1", "--micro-batch-tokens 9", "keep one"]),
        (f"{RUN} --micro-batch-tokens 9 --global-batch-size 6", 4, ["--global-batch-size 6", "data-parallel size = 4", "is: 8"]),
        (
            f"{RUN} --micro-batch-tokens 9 --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"
            " --global-batch-size 6",
            4,
            ["multiple of 2 micro-batches", "makes up to 3", "works: 8"],
        ),
        (f"{RUN} --micro-batch-tokens 0", 1, ["--micro-batch-tokens is 0"]),
        (f"{RUN} --lr-warmup-iters 5", 1, ["--lr-warmup-iters 5", "--train-iters 4"]),
        (f"{RUN} --min-lr 1 --lr 0.5", 1, ["--min-lr 1.0", "--lr 0.5"]),
        (f"{MODEL} {LENGTH} --data-path 0.5 a b", 1, ["0.5 a b"]),
        (f"{MODEL} {LENGTH} --data-path a 0.5", 1, ["a 0.5"]),
        (f"{MODEL} {LENGTH} --data-path 0.5 a 0 b", 1, ["greater than 0"]),
        (f"{MODEL} {LENGTH} --data-path 0.5 a nan b", 1, ["greater than 0"]),
        (f"{RUN} --split 99", 1, ["--split 99"]),
        (f"{RUN} --split 0,1", 1, ["--split 0,1"]),
        (f"{RUN} --split 98,1,1", 1, ["--split 98,1,1"]),
        (f"{RUN} --split 1,-1", 1, ["--split 1,-1"]),
        (f"{RUN} --eval-interval 2", 1, ["--eval-interval 2", "--split 100,0"]),
        (f"{RUN} --context-parallel-size 0", 1, ["--context-parallel-size is 0"]),
        (f"{RUN} --global-batch-size 6", 4, ["--global-batch-size 6", "1 x 4", "8"]),
        (f"{RUN} --global-batch-size 8 --micro-batch-size 3", 1, ["--global-batch-size 8", "3 x 1", "9"]),
        (f"{RUN} --attention-backend te --no-prefix-sharing --no-recompute-attention", 1, ["--no-recompute-attention"]),
        (f"{RUN} --sequence-parallel", 1, ["--sequence-parallel", "--tensor-model-parallel-size"]),
        (f"{RUN} --num-layers-per-virtual-pipeline-stage 1", 1, ["--pipeline-model-parallel-size"]),
        (
            f"{RUN} --num-layers-per-virtual-pipeline-stage 1 --pipeline-model-parallel-size 2 --global-batch-size 3",
            2,
            ["--pipeline-model-parallel-size 2", "--global-batch-size 3 makes 3", "works: 4"],
        ),
        (f"{RUN} --overlap-param-gather --overlap-grad-reduce", 1, ["--use-distributed-optimizer"]),
        (f"{RUN} --overlap-param-gather --use-distributed-optimizer", 1, ["--overlap-grad-reduce"]),
        (f"{RUN} --use-distributed-optimizer --optimizer sgd", 1, ["--optimizer sgd", "adam or rmsprop"]),
        (f"{RUN} --nll-weight 0 --preference-weight 0", 1, ["nothing to learn"]),
        (f"{RUN} --loss-type sft-s2l", 1, ["--loss-type sft-s2l", "--reference live", "--reference cache"]),
        (f"{RUN} --lora-rank 8 --random-init", 1, ["--lora-rank", "--random-init", "stored nowhere"]),
        (f"{RUN} --label-smoothing 0.5", 1, ["--label-smoothing is 0.5", "[0, 0.5)"]),
        (f"{RUN} --lr-warmup-fraction 1", 1, ["--lr-warmup-fraction is 1.0"]),
        (f"{RUN} --save-interval 2", 1, ["--save-interval 2", "--save DIRECTORY"]),
        (f"{RUN} --keep-checkpoints 2", 1, ["--keep-checkpoints 2", "--save DIRECTORY"]),
    ],
)
def test_what_is_no_run_is_refused_in_one_line_with_the_values(flags, world_size, words):
    message = refusal(flags, world_size)
    assert "\n" not in message
    for word in words:
        assert word in message


NUMBERS = [info for info in all_fields() if info.kind in (int, float)]


@pytest.mark.parametrize("info", NUMBERS, ids=lambda info: info.name)
def test_every_number_has_a_range(info):
    assert sum(info.name in names for names in (POSITIVE, NOT_NEGATIVE, SHARES)) == 1
    too_low = "0" if info.name in POSITIVE else "-1"
    if info.name.startswith("train_") or info.name == "num_epochs":
        flags = f"{MODEL} {DATA} {info.flag}={too_low}"
    else:
        flags = f"{RUN} {info.flag}={too_low}"
    assert info.flag in refusal(flags)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_setting_is_infinite_or_nan(value):
    for info in NUMBERS:
        if info.kind is float and info.name != "num_epochs":
            assert f"{info.flag} is {value}" in refusal(f"{RUN} {info.flag}={value}")


def test_all_problems_are_told_at_once_one_line_each():
    lines = refusal("--lr nan --sequence-parallel").splitlines()
    assert lines[0] == "5 problems in the configuration:"
    assert len(lines) == 6
    assert all(line.startswith("  ") for line in lines[1:])


@pytest.mark.parametrize(
    ("flags", "world_size"),
    [
        (RUN, 1),
        (f"{MODEL} {LENGTH} --data-path 0.7 a 0.3 b", 1),
        (f"{RUN} --split 99,1 --eval-interval 2", 1),
        (f"{RUN} --lr 0", 1),
        (f"{RUN} --micro-batch-tokens 9 --global-batch-size 8", 4),
        (f"{RUN} --tensor-model-parallel-size 2 --sequence-parallel", 4),
        (f"{RUN} --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 --global-batch-size 4", 2),
        (f"{RUN} --use-distributed-optimizer --optimizer rmsprop", 8),
        (f"{RUN} --save out --save-interval 2 --keep-checkpoints 1", 1),
    ],
)
def test_what_is_a_run_is_taken(flags, world_size):
    parse_args(flags.split(), world_size=world_size)


@pytest.mark.parametrize(
    ("flags", "flag"),
    [
        ("--optimizer rmsprop --adam-eps 1e-3", "--adam-eps"),
        ("--sgd-momentum 0.9", "--sgd-momentum"),
        ("--rmsprop-alpha 0.9", "--rmsprop-alpha"),
        ("--min-lr 1e-8 --lr-decay-style constant", "--min-lr"),
        ("--recompute-num-layers 2 --recompute-granularity selective", "--recompute-num-layers"),
        ("--eval-iters 2", "--eval-iters"),
        ("--no-drop-last", "--drop-last"),
        ("--wandb-name x", "--wandb-name"),
        ("--simpo-gamma 1", "--simpo-gamma"),
        ("--loss-type hinge --label-smoothing 0.1", "--label-smoothing"),
        ("--loss-type simpo --reference-context long", "--reference-context"),
        ("--preference-weight 0 --loss-type ipo", "--loss-type"),
        ("--loss-type solo-dpo --reference-context long", "--reference-context"),
        ("--loss-type solo-orpo --reference live", "--reference"),
        ("--loss-type simpo --solo-alpha 2", "--solo-alpha"),
        ("--loss-type sft-s2l --reference live --reference-context long", "--reference-context"),
    ],
)
def test_a_flag_that_changes_nothing_is_warned_about(flags, flag, capsys):
    parse_args(f"{RUN} {flags}".split(), world_size=1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"warning: {flag} has no effect: ")
