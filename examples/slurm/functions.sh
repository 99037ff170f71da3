# Functions of the batch scripts; source it from the root of the repository.

# Set TORCHRUN_ARGS, with which one torchrun a node finds the others.
meet_at_first_node() {
    local head address port
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # The address by which Slurm itself reaches the node: a node's name need not resolve.
    address=$(scontrol show node "$head" --oneliner | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    port=$((20000 + SLURM_JOB_ID % 10000))
    export TORCHRUN_ARGS="--nnodes $SLURM_JOB_NUM_NODES --rdzv-backend c10d --rdzv-endpoint $address:$port --rdzv-id $SLURM_JOB_ID"
}

# Run a command, and pass USR1, Slurm's warning before the end of the time, on to it. Sets `status`, and `warned` to yes or no.
run_until_warned() {
    warned=no status=0
    "$@" &
    command=$!
    trap 'warned=yes; kill -USR1 "$command" || true' USR1
    while kill -0 "$command" 2>/dev/null; do wait "$command" || true; done # a trapped signal ends `wait` early
    wait "$command" || status=$?
}

# Put the job back into the queue if its command has stopped well because it was warned, and end.
end_or_requeue() {
    if [[ $warned == yes && $status == 0 ]]; then
        echo "saved before the end of the job's time; back to the queue"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
}
