# shellcheck shell=bash
# What the stages' scripts share. Slurm runs a copy of each script elsewhere, so they are submitted from the repository's
# root, and this file is found there.

# run_stage STAGE [key=value ...]: on this job's nodes; once more, from where it was, where it was asked to end early.
run_stage() {
    local hosts launcher status
    # shellcheck source=/dev/null
    [[ -f .venv/bin/activate ]] && source .venv/bin/activate
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
    echo "$(date '+%F %T') job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: stage $1 on $hosts"
    python -m verl_prism.cluster --hosts "$hosts" --logs "outputs/slurm/$SLURM_JOB_NAME-$SLURM_JOB_ID" \
        --shell 'srun --overlap --nodes=1 --ntasks=1 --nodelist={host}' -- \
        stage="$1" prism.resume=true "${@:2}" &
    launcher=$!
    # Preemption or the end of the time is near: finish the step, save, and end.
    trap 'kill -USR1 "$launcher" 2>/dev/null || true' USR1 TERM
    status=0
    wait_for "$launcher" || status=$?
    case $status in
    75 | 138) requeue || echo "not queued again; submit it again and the stage goes on" >&2 ;; # 138: died of USR1 at its start
    esac
    exit "$status"
}

# wait_for PID: its exit status. A signal that is trapped ends `wait` as well, and says so by a status over 128.
wait_for() {
    local status
    while true; do
        status=0
        wait "$1" || status=$?
        if ((status <= 128)) || ! kill -0 "$1" 2>/dev/null; then
            break
        fi
    done
    ((status <= 128)) || wait "$1" || status=$?
    return "$status"
}

# The same job again, unless it is being cancelled or Slurm itself has queued it again.
requeue() {
    [[ $(scontrol show job --oneliner "$SLURM_JOB_ID") == *" JobState=RUNNING "* ]] || return 0
    scontrol requeue "$SLURM_JOB_ID"
}
