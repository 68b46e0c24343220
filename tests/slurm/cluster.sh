#!/usr/bin/env bash
# A real Slurm of two nodes on this machine, for tests:
#   cluster.sh up [without-accounting] | down | start DAEMON | stop DAEMON
# DAEMON is slurmctld, slurmdbd, slurmd-n1 or slurmd-n2; a stopped daemon keeps its state on disk.
#
# Accounting uses a private MariaDB, each node has two fake GPUs, and all daemons listen on loopback, on
# nonstandard ports. The configuration has to be under /etc/slurm, because jobs do not inherit SLURM_CONF; a
# configuration that this script did not write is never changed. Requires root, as slurmd does.
set -euo pipefail

STATE=/tmp/coincide-slurm
CONF=/etc/slurm
MARK="# written by coincide's tests/slurm/cluster.sh"
PACKAGES="slurm-wlm slurmdbd mariadb-server munge"

ours() { [ ! -e "$CONF/slurm.conf" ] || grep -qF "$MARK" "$CONF/slurm.conf"; }

wait_for() { # seconds, command…
  local left=$(($1 * 5)); shift
  until "$@" >/dev/null 2>&1; do
    ((left--)) || { echo "timed out waiting for: $*" >&2; tail -n 5 "$STATE"/log/* >&2 || true; return 1; }
    sleep 0.2
  done
}

configure() { # slurmdbd | none
  local host cpus memory accounting="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=26819
AccountingStorageTRES=gres/gpu"
  [ "$1" = slurmdbd ] || accounting=
  host=$(hostname -s) cpus=$(nproc) memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 * 9 / 10))
  mkdir -p "$CONF" "$STATE"/{log,ctld,n1,n2,db,run}
  cat >"$CONF/slurm.conf" <<EOF
$MARK
ClusterName=coincide
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/%n
SlurmctldPidFile=$STATE/run/slurmctld.pid
SlurmdPidFile=$STATE/run/slurmd-%n.pid
SlurmctldLogFile=$STATE/log/slurmctld.log
SlurmdLogFile=$STATE/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
JobAcctGatherParams=OverMemoryKill
JobRequeue=1
GresTypes=gpu
$accounting
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=26821 CPUs=$cpus RealMemory=$memory Gres=gpu:2
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=26822 CPUs=$cpus RealMemory=$memory Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=1:00:00 OverSubscribe=FORCE:4
EOF
  printf '%s\nNodeName=n[1-2] Name=gpu File=/dev/tty[0-1]\n' "$MARK" >"$CONF/gres.conf"
  printf '%s\nCgroupAutomount=no\n' "$MARK" >"$CONF/cgroup.conf"
  cat >"$CONF/slurmdbd.conf" <<EOF
$MARK
AuthType=auth/munge
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=26819
SlurmUser=root
LogFile=$STATE/log/slurmdbd.log
PidFile=$STATE/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=26806
StorageUser=slurm
StoragePass=coincide
StorageLoc=slurm_acct_db
EOF
  chmod 600 "$CONF/slurmdbd.conf"
}

start_accounting() {
  mariadb-install-db --no-defaults --datadir="$STATE/db" --auth-root-authentication-method=normal \
    --user=root >"$STATE/log/mariadb.log" 2>&1
  mariadbd --no-defaults --user=root --datadir="$STATE/db" --socket="$STATE/run/db.sock" --port=26806 \
    --bind-address=127.0.0.1 --pid-file="$STATE/run/mariadbd.pid" --innodb-buffer-pool-size=64M \
    >>"$STATE/log/mariadb.log" 2>&1 &
  wait_for 30 mariadb --no-defaults --socket="$STATE/run/db.sock" -e "select 1"
  mariadb --no-defaults --socket="$STATE/run/db.sock" -e "create user slurm@'127.0.0.1' identified by 'coincide';
    create user slurm@localhost identified by 'coincide'; create database slurm_acct_db;
    grant all on slurm_acct_db.* to slurm@'127.0.0.1'; grant all on slurm_acct_db.* to slurm@localhost"
  start slurmdbd
  wait_for 30 sacctmgr -i show cluster
  sacctmgr -i add cluster coincide >/dev/null || true
  sacctmgr -i add account tests cluster=coincide >/dev/null || true
  sacctmgr -i add user root account=tests >/dev/null || true
}

# start a daemon by name; slurmctld and slurmd restore their saved state
start() {
  case "$1" in
    slurmd-n?) slurmd -N "${1#slurmd-}" ;;
    *) "$1" ;;
  esac
}

stop() {
  local pid
  [ -f "$STATE/run/$1.pid" ] || return 0
  pid=$(cat "$STATE/run/$1.pid")
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 100); do alive "$pid" || return 0; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
}

# kill -0 also succeeds for zombies, which containers do not always reap
alive() { [ -r "/proc/$1/stat" ] && ! grep -q ') Z ' "/proc/$1/stat" 2>/dev/null; }

up() {
  [ "$(id -u)" = 0 ] || { echo "a test cluster needs root: slurmd starts jobs as their users" >&2; exit 1; }
  ours || { echo "$CONF/slurm.conf was not written by this script: the Slurm installation of this machine is left unchanged" >&2; exit 1; }
  # shellcheck disable=SC2086
  command -v slurmctld mariadbd munged >/dev/null ||
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $PACKAGES >/dev/null; }
  down
  local accounting=slurmdbd
  [ "${1:-}" != without-accounting ] || accounting=none
  configure "$accounting"
  if ! pgrep -x -r D,R,S munged >/dev/null; then
    install -d -o munge -g munge /run/munge
    su -s /bin/sh munge -c "/usr/sbin/munged --pid-file=/run/munge/munged.pid"
    touch "$STATE/run/munged-is-ours"
  fi
  [ "$accounting" = none ] || start_accounting
  start slurmctld
  start slurmd-n1
  start slurmd-n2
  wait_for 60 sh -c 'test "$(sinfo -h -N -t idle | wc -l)" = 2'
  sinfo
}

down() {
  ours || return 0
  local name
  for name in slurmd-n1 slurmd-n2 slurmctld slurmdbd mariadbd; do stop $name; done
  pkill -f "slurmstepd: \[" 2>/dev/null || true
  if [ -e "$STATE/run/munged-is-ours" ]; then
    cp /run/munge/munged.pid "$STATE/run/munged.pid" 2>/dev/null || true
    stop munged
  fi
  rm -rf "$STATE" "$CONF"/{slurm,gres,cgroup,slurmdbd}.conf
}

case "${1:-}" in
  up) up "${2:-}" ;;
  down) down ;;
  start | stop) "$1" "${2:?which daemon?}" ;;
  *) echo "usage: $0 up [without-accounting] | down | start DAEMON | stop DAEMON" >&2; exit 2 ;;
esac
