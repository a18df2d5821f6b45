# shellcheck shell=bash
# Functions that the scripts of all stages share. Slurm runs a copy of each script from another
# folder, so the scripts find this file only if they are submitted from the root of the repository.

# run_stage STAGE [key=value ...]
# Run a stage on the nodes of this job. If it was asked to end early, put the job into the queue
# again, where it resumes from its latest checkpoint.
run_stage() {
    local hosts launcher status
    # shellcheck source=/dev/null
    [[ -f .venv/bin/activate ]] && source .venv/bin/activate
    hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
    echo "$(date '+%F %T') job $SLURM_JOB_ID, start ${SLURM_RESTART_COUNT:-0}: stage $1 on $hosts"
    python -m verl_prism.cluster --hosts "$hosts" \
        --logs "outputs/slurm/$SLURM_JOB_NAME-$SLURM_JOB_ID" \
        --shell 'srun --overlap --nodes=1 --ntasks=1 --nodelist={host}' -- \
        stage="$1" prism.resume=true "${@:2}" &
    launcher=$!
    # Preemption or the time limit is near: finish the step, save and end.
    trap 'kill -USR1 "$launcher" 2>/dev/null || true' USR1 TERM
    status=0
    wait_for "$launcher" || status=$?
    # 75: saved. 138: killed by USR1 before it handled the signal.
    if ((status == 75 || status == 138)); then
        requeue || echo "the job was not requeued; submit it again to resume the stage" >&2
    fi
    exit "$status"
}

# wait_for PID
# Return the exit status of a process. `wait` also returns when a trapped signal arrives, with a
# status above 128, while the process is still running.
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

# Put this job into the queue again, unless it is being cancelled or Slurm has requeued it already.
requeue() {
    [[ $(scontrol show job --oneliner "$SLURM_JOB_ID") == *" JobState=RUNNING "* ]] || return 0
    scontrol requeue "$SLURM_JOB_ID"
}
