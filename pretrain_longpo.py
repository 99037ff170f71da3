"""Train a language model with the LongPO objective. Run with ``torchrun`` (or plain ``python`` for one process)."""

from megatron_longpo.config.cli import parse_args
from megatron_longpo.utils.errors import run_command


def main() -> None:
    """Parse the command line and train."""
    config = parse_args()
    from megatron_longpo.training.run import pretrain

    pretrain(config)


if __name__ == "__main__":
    run_command(main)
