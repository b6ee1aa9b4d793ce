#!/usr/bin/env bash
# A Slurm of one node that lies in one folder and touches nothing outside it, for the tests and for trying things out:
#
#   bash tests/runs/slurm_node.sh start FOLDER     install Slurm if it is missing (Debian, root), start it, run a job
#   export SLURM_CONF=FOLDER/slurm.conf       then sbatch, srun, squeue, scancel and hydra/launcher=slurm use it
#   bash tests/runs/slurm_node.sh stop FOLDER      stop it, with its jobs
#
# Exit status 77: Slurm is not installed here and cannot be; the last line says why. There is no accounting database, so
# sacct does not work, which submitit says once a minute ("Bypassing sacct error").
set -euo pipefail

what=${1:-}
[ "$what" = start ] || [ "$what" = stop ] || { sed -n '2,9s/^# \?//p' "$0"; exit 2; }
mkdir -p "${2:?which folder?}"
folder=$(realpath "$2")
export SLURM_CONF=$folder/slurm.conf

stop() {
  local name pid
  [ ! -s "$folder/slurmctld.pid" ] || scancel --quiet --state=PENDING,RUNNING 2>/dev/null || true
  for name in slurmd slurmctld munged; do
    pid=$(cat "$folder/$name.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    timeout 20 tail --pid="$pid" -f /dev/null || kill -9 "$pid" 2>/dev/null || true
  done
}
if [ "$what" = stop ]; then stop; exit; fi

if ! type -P munged slurmctld slurmd srun sbatch >/dev/null; then
  command -v apt-get >/dev/null || { echo "Slurm is not installed, and there is no apt-get to install it"; exit 77; }
  [ "$(id -u)" = 0 ] || { echo "Slurm is not installed, and only root can: apt-get install slurm-wlm munge"; exit 77; }
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge; } >"$folder/apt.log" 2>&1; then
    echo "Slurm is not installed, and apt-get cannot: $(grep '^E:' "$folder/apt.log" | tail -1)"
    exit 77
  fi
fi

host=$(hostname -s)
memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024))
port=$((20000 + RANDOM % 10000)) # its own, so that two of them and a Slurm of the machine do not meet
mkdir -p "$folder/state" "$folder/spool"
cat >"$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# A job that is put back into the queue waits for as long as its old credential is valid, by default two minutes.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
# Job numbers choose the port at which the tasks of a job meet.
FirstJobId=$((1000 + RANDOM % 8000))
JobRequeue=1
ReturnToService=2
# Two tasks run at once on a machine of one core as well.
SlurmdParameters=config_overrides
NodeName=localhost NodeHostname=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

(umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
# --force: the folder of a test is closed to other users, who are not meant to use this one.
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
  --seed-file="$folder/munge.seed" --log-file="$folder/munged.log" 2>/dev/null
slurmctld -i -c
slurmd
for _ in $(seq 60); do
  [ "$(sinfo --noheader --format=%T 2>/dev/null)" != idle ] || break
  sleep 0.5
done
if ! timeout 60 srun --ntasks=1 true; then
  echo "Slurm does not run a job; its logs are in $folder" >&2
  sinfo --list-reasons >&2 || true
  stop
  exit 1
fi
