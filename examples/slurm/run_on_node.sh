#!/usr/bin/env bash
# usage: run_on_node.sh COMMAND [ARGS]   (COMMAND becomes torchrun)
# Run torchrun on one node and hand USR1 to its workers, which save and exit. torchrun itself would die of the signal, and puts
# its workers into sessions of their own, where a signal to the step may not reach them.
set -euo pipefail

(trap '' USR1; exec "$@") &
agent=$!
trap 'pkill -USR1 -P "$agent" || true' USR1

while kill -0 "$agent" 2>/dev/null; do wait "$agent" || true; done # a trapped signal ends `wait` early
wait "$agent"
