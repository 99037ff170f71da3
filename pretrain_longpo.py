"""Train a language model with the LongPO objective. Run with ``torchrun`` (or plain ``python`` for one process)."""

import os

from megatron_longpo.config.cli import parse_run
from megatron_longpo.utils.errors import run_command


def main() -> None:
    """Parse the command line and train, or say what the training would be."""
    config, described = parse_run()
    if described is not None:
        from megatron_longpo.training.dry_run import describe_run

        text = describe_run(config, described)
        if os.environ.get("RANK", "0") == "0":
            print(text)
        return
    from megatron_longpo.training.run import pretrain

    pretrain(config)


if __name__ == "__main__":
    run_command(main)
