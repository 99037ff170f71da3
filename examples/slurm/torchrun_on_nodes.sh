#!/usr/bin/env bash
# usage, inside a job: torchrun_on_nodes.sh PYTHON ARGUMENTS-OF-TORCHRUN
# One torchrun on each node of the job, together one run. USR1 reaches the workers, which save and exit.
set -euo pipefail
source examples/slurm/functions.sh

meet_at_first_node
read -ra meeting <<<"$TORCHRUN_ARGS"
run_until_warned srun --kill-on-bad-exit=1 bash examples/slurm/run_on_node.sh "$1" -m torch.distributed.run "${meeting[@]}" "${@:2}"
exit "$status"
