#!/usr/bin/env bash
# A real Slurm with two nodes, n1 and n2, on this host, for the tests. It needs no systemd, keeps
# its files in one folder and uses free ports.
#
#   tests/slurm/slurm.sh install        install Debian's packages with apt-get (as root)
#   tests/slurm/slurm.sh up FOLDER      start Slurm; then: export SLURM_CONF=FOLDER/slurm.conf
#   tests/slurm/slurm.sh down FOLDER    stop the daemons that `up` started
#
# The path of FOLDER must be short (the path of a socket has at most 107 characters). munged requires
# that others have access to its parents.
# Jobs in partition `high` preempt jobs in `low`, the default. A preempted job gets the signal of its
# --signal option and has 5 minutes to end.
set -euo pipefail

install() {
    [[ $(type -P slurmctld) && $(type -P munged) ]] && return
    apt-get update -qq
    # RUNLEVEL=1 keeps the packages from starting their services; `up` starts its own.
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends slurm-wlm munge
}

free_ports() {
    python3 -c 'import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(server.getsockname()[1] for server in held))' "$1"
}

configure() {
    local ports
    read -ra ports < <(free_ports 3)
    cat >slurm.conf <<CONF
ClusterName=prism
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# a requeued job waits until its credential expires
AuthInfo=socket=$PWD/munge.socket,cred_expire=15
StateSaveLocation=$PWD/state
SlurmctldPidFile=$PWD/slurmctld.pid
SlurmctldLogFile=$PWD/slurmctld.log
SlurmdSpoolDir=$PWD/spool-%n
SlurmdPidFile=$PWD/slurmd-%n.pid
SlurmdLogFile=$PWD/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MinJobAge=7200
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=1
NodeName=n2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=1
PartitionName=low Default=YES Nodes=n1,n2 MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=300
PartitionName=high Nodes=n1,n2 MaxTime=INFINITE DefaultTime=60 PriorityTier=2 PreemptMode=OFF
CONF
}

# daemon NAME COMMAND...
# Start a daemon in its own session and record its process id.
daemon() {
    setsid "${@:2}" </dev/null >>"$1.out" 2>&1 &
    echo $! >>pids
}

up() {
    mkdir -p "$1"
    cd "$1"
    [[ ! -e pids ]] || { echo "$PWD: Slurm is running there, or was not stopped" >&2; exit 1; }
    mkdir -p state spool-n1 spool-n2
    [[ -e munge.key ]] || mungekey --create --keyfile "$PWD/munge.key"
    configure
    export SLURM_CONF=$PWD/slurm.conf
    daemon munged munged --foreground --force \
        --socket="$PWD/munge.socket" --key-file="$PWD/munge.key" --pid-file="$PWD/munged.pid" \
        --log-file="$PWD/munged.log" --seed-file="$PWD/munged.seed"
    wait_for "munged" test -S munge.socket
    daemon slurmctld slurmctld -D
    daemon slurmd-n1 slurmd -D -N n1
    daemon slurmd-n2 slurmd -D -N n2
    wait_for "two idle nodes" both_idle
}

both_idle() {
    local idle
    idle=$(sinfo --noheader --Node --partition=low --states=idle --format=%N 2>/dev/null | wc -l)
    ((idle == 2))
}

# wait_for WHAT COMMAND...
# Wait until the command succeeds, at most a minute.
wait_for() {
    local deadline=$((SECONDS + 60))
    until "${@:2}"; do
        if ((SECONDS > deadline)); then
            echo "no $1 within a minute; see the logs in $PWD" >&2
            exit 1
        fi
        sleep 0.2
    done
}

down() {
    cd "$1"
    [[ -e pids ]] || return 0
    export SLURM_CONF=$PWD/slurm.conf
    squeue --noheader --format=%A 2>/dev/null | xargs --no-run-if-empty scancel || true
    wait_for "end of its jobs" no_jobs
    local pid
    for pid in $(tac pids); do
        kill "$pid" 2>/dev/null || true
        wait_for "end of process $pid" gone "$pid"
    done
    rm pids
}

no_jobs() { [[ -z $(squeue --noheader 2>/dev/null) ]]; }
gone() { [[ ! -e /proc/$1 || $(</proc/"$1"/stat) == *") Z "* ]]; }

case ${1:-} in
install) install ;;
up | down) "$1" "$2" ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
