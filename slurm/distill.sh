#!/usr/bin/env bash
# Distil on several hosts:   sbatch [sbatch options] slurm/distill.sh [flags of `fitb train`]
#
# Submit from the root of the repository, or from anywhere if fitb is installed; `fitb scripts`
# prints where pip has put this file. Options on the command line override the #SBATCH lines.
# On hosts without GPUs: --gpus-per-node=0.
# FITB_PYTHON names the interpreter (default: python). Task logs: RUN_DIR/logs/JOB.TASK.out.
# Site settings (account, modules, container, scratch) are in slurm/site.env, made once by
# `fitb site init`. Run `. slurm/site.env` in the shell before sbatch; the job sources it again.
#   bash slurm/distill.sh --dry-run [flags]      prints the script, the effective options and the
#                                                configuration; submits and writes nothing
# FITB_PREFLIGHT=1 checks every host before the tasks start, and requeues without the bad ones.
# FITB_EXCLUDE_SLOW=1 requeues without the hosts that training has found slow.
# After a crash the tasks start again at once in the same job, if all hosts answer and there is time
# (--stop.restarts). A warning other than SBATCH_SIGNAL or the line below: FITB_LEAD_S=SECONDS.
# FITB_LAUNCHER=torchrun starts one task on each host, in which torchrun starts one rank per GPU, or
# on CPUs as many ranks as srun would; FITB_PROCESSES_PER_NODE overrides the number.
#
# Where a site forbids requeueing, submit a chain of jobs instead. Each continues where the one
# before stopped; jobs that start after the end of the run exit at once:
#   export FITB_CHAIN=tb4-$(date +%s)
#   for i in 1 2 3; do sbatch -J $FITB_CHAIN --no-requeue -d singleton slurm/distill.sh [flags]; done
#
# Invariants
# - One task per GPU, or per process on CPUs. A task that sees all GPUs of its host takes that of its
#   number, one that sees a single GPU takes that. torchrun's ranks have the same numbers as srun's,
#   and shut down and exit with the same codes.
# - The job keeps its id and its run directory for all its attempts; without --run_dir that is
#   runs/JOB_NAME. Every attempt runs the same command, and `fitb train` resumes by itself. The jobs
#   of a chain have different ids and one name: singleton makes them run one after another.
# - USR1 300 s before the time limit reaches this shell alone (B:), which forwards it to srun and so
#   to all tasks. A preemption sends the tasks SIGTERM directly. Either way they save and exit with
#   85.
# - No exit code is lost: srun runs in the background, and a wait interrupted by a signal is
#   repeated. No exit code proves success: a run is finished when its attempt has written so (see
#   fitb/rundir/restart.py); srun exits with 0 where it has started nothing.
# - srun does not kill on a bad exit: 85 is one, and the first rank to exit would replace the codes
#   of the others and cut off their final messages to W&B. A rank that hangs after another ended
#   has 10 seconds; in good order rank 0 ends first.
# - fitb.rundir.restart alone decides whether tasks start again, here or by a requeue. A job that Slurm is ending (scancel) or has
#   already requeued is left alone; scancel is final. In a chain nothing is requeued: after 85 the
#   next job continues, and after a 0 or a 93 RUN_DIR/done.json keeps later jobs from starting
#   tasks.
# - The script writes about a run only while the job owns it. A host that was cut off from the
#   network still runs an attempt that Slurm has started elsewhere, and a second job may be started
#   on a run that is alive: either ends with 93, says which attempt owns the run, and leaves
#   events.jsonl and done.json as they are.
#
#SBATCH --job-name=fitb-distill
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300

export FITB_BEGAN
FITB_BEGAN=$(date +%s)
srun_pid='' signalled=0 told=0
# shellcheck disable=SC2317 # the trap calls it
pass_on() {
  signalled=1 told=1
  echo "fitb: stop signal received; forwarding it to the tasks"
  [[ -z $srun_pid ]] || kill -USR1 "$srun_pid" 2>/dev/null
}
trap pass_on USR1 TERM # srun would answer TERM by killing the tasks

# Variables inherited from the submitting shell by accident: --export=NONE, with which srun would
# hide this script's exports from the tasks, and, if that shell is itself in a job, its CPUs and
# memory.
unset SLURM_EXPORT_ENV
[[ -z ${SLURM_CPU_BIND_LIST:-} ]] || unset "${!SLURM_CPU_BIND@}"
memory=("${!SLURM_MEM_PER_@}") # srun refuses two limits; one of them is inherited
((${#memory[@]} < 2)) || unset "${memory[@]}"

# Site settings (slurm/site.example.env). sbatch has already read its own variables by now.
held=${!SBATCH_*} site=${FITB_SITE:-${SLURM_SUBMIT_DIR:-.}/slurm/site.env}
read_site() { # a function, since some `activate` scripts read the caller's arguments
  # shellcheck source=/dev/null
  if [[ -r $site ]]; then . "$site"; fi
  [[ -r $site || -z ${FITB_SITE:-} ]] || echo "fitb: FITB_SITE=$site cannot be read here" >&2
}
read_site
if [[ -z $held && -n ${!SBATCH_*} ]]; then
  echo "fitb: sbatch has not seen ${!SBATCH_*} of $site: run \`. $site\` before sbatch" >&2
fi
python=("${FITB_PYTHON:-python}")
if [[ -n ${FITB_APPTAINER:-} ]]; then
  read -ra options <<<"${FITB_APPTAINER_OPTIONS---nv}"
  python=(apptainer exec "${options[@]}" "$FITB_APPTAINER" "${FITB_APPTAINER_PYTHON:-python}")
fi
for word; do
  [[ $word != --dry[-_]run ]] || exec "${python[@]}" -m fitb.tools.dry_run distill "$0" "$held" "$@"
done

set -uo pipefail # not -e: exit codes are handled below; not earlier: modules use unset variables

cpus=${SLURM_CPUS_PER_TASK:-1} # of a rank
if [[ ${FITB_LAUNCHER:-srun} == torchrun ]]; then
  hosts=${SLURM_JOB_NUM_NODES:-1}
  per_host=${SLURM_NTASKS_PER_NODE:-$((${SLURM_NTASKS:-$hosts} / hosts))}
  cpus_per_host=$((cpus * per_host))
  ((${SLURM_GPUS_ON_NODE:-0})) && per_host=$SLURM_GPUS_ON_NODE
  export FITB_PROCESSES_PER_NODE=${FITB_PROCESSES_PER_NODE:-$per_host}
fi

for try in 1 2 3; do # filesystem errors may pass; a mistyped flag or a missing python does not
  job_plan=$("${python[@]}" -m fitb.cluster.slurm "$@")
  case $? in 0) break ;; 10) exit 0 ;; 2 | 93 | 126 | 127) exit 93 ;; esac
  ((try == 3)) && exit 1
  sleep 20
done
{
  IFS= read -r run_dir && read -r MASTER_ADDR && read -r MASTER_PORT && read -r seen &&
    read -ra ports
} <<<"$job_plan" || exit 93
mkdir -p -- "$run_dir/logs" || exit 93

# An array task's own job id may mean the whole array to Slurm's commands.
export FITB_JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
FITB_JOB=${FITB_JOB:-$SLURM_JOB_ID}
export MASTER_ADDR PYTHONUNBUFFERED=1
unset RANK LOCAL_RANK WORLD_SIZE # inherited; the tasks take Slurm's
# Each task opens its own log, since --output is a pattern and must not contain a user's path. A
# host that cannot is named in the job's log and ends the step: no other task can begin without it.
# shellcheck disable=SC2016 # the task expands it
in_log='log=$0/$FITB_JOB.$SLURM_PROCID.out
why=$({ true >>"$log"; } 2>&1) && exec "$@" >>"$log" 2>&1
echo "fitb: $SLURMD_NODENAME cannot write $log: ${why##*: }" >&2
sleep 1 # for the messages of other hosts
scancel --signal=KILL "$FITB_JOB.$SLURM_STEP_ID"
exit 1'
tasks=(--kill-on-bad-exit=0 --wait=10 bash -c "$in_log" "$run_dir/logs") shape=()
if [[ ${FITB_LAUNCHER:-srun} == torchrun ]]; then
  cpus=$((cpus_per_host > FITB_PROCESSES_PER_NODE ? cpus_per_host / FITB_PROCESSES_PER_NODE : 1))
  shape=("--ntasks=$hosts" --ntasks-per-node=1 "--cpus-per-task=$cpus_per_host")
  tasks+=("${python[@]}" -m fitb.training.torchrun)
else
  tasks+=("${python[@]}" -m fitb train)
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus}
if ((!${SLURM_GPUS_ON_NODE:-0})); then # malloc keeps freed memory: page faults would cost
  export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_-0} # more time than the arithmetic
  export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_-2147483647}
fi
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun 22.05 to 23.02 ignores SLURM_CPUS_PER_TASK
fi

lead=${SBATCH_SIGNAL:-$(grep --max-count=1 '^#SBATCH --signal=' "$0")}
[[ $lead == *@* ]] || lead=@60 # what Slurm takes
lead=${lead##*@} lead=${FITB_LEAD_S:-${lead%%[^0-9]*}}
if [[ ! $lead =~ ^(0|[1-9][0-9]*)$ ]]; then
  echo "fitb: FITB_LEAD_S=$lead; expected the seconds of sbatch --signal, such as 300" >&2
  exit 93
fi
export FITB_LEAD_S=$lead

ending() { # whether Slurm is ending this job; if so, it is left alone
  for _ in {1..6}; do # a busy controller answers later; none at all does not end the chain
    record=$(scontrol show job --oneliner "$FITB_JOB") && break
    sleep 5
  done
  state=$(grep --only-matching 'JobState=[A-Z_]*' <<<"$record")
  [[ -n $state && $state != JobState=RUNNING ]] || return
  echo "fitb: no requeue from here: Slurm reports $state for this job"
}
look_for_room() { # room=: seconds before the stop signal, 0 if the tasks cannot start again here
  room=0
  ((code != 0 && code != 85 && code != 93 && !told && FITB_START + 1 < ${#ports[@]})) || return
  if ! timeout --signal=KILL 30 srun "${shape[@]}" true; then # where tasks cannot be killed it waits
    echo "fitb: not all hosts answer, or some are still busy: no start here"
    return
  fi
  end=$(grep --only-matching --perl-regexp 'EndTime=\K\S+' <<<"$record")
  [[ -n $end ]] || return # Slurm does not answer
  end=$(date --date="$end" +%s 2>/dev/null) || end=$(($(date +%s) + 1000000)) # no time limit
  room=$((end - $(date +%s) - FITB_LEAD_S))
  ((room > 0)) || room=0
}

for FITB_START in "${!ports[@]}"; do
  export FITB_START MASTER_PORT=${ports[FITB_START]}
  echo "fitb: job $FITB_JOB restart ${SLURM_RESTART_COUNT:-0} start $FITB_START in $run_dir, rank 0" \
    "at $MASTER_ADDR:$MASTER_PORT"
  code=0
  if [[ -n ${FITB_PREFLIGHT:-} && -n ${FITB_APPTAINER:-} ]]; then
    echo "fitb: FITB_PREFLIGHT starts Slurm steps, which FITB_APPTAINER prevents; unset one of them"
    exit 93
  elif [[ -n ${FITB_PREFLIGHT:-} ]]; then
    "${python[@]}" -m fitb.cluster.preflight "$@" --run_dir "$run_dir" &
    wait "$!"
    code=$?
    ((!signalled)) || kill "$!" 2>/dev/null # it may take longer than the warning leaves
    ((code == 85 || code == 93)) && exit "$code" # it has already decided, and requeued the job
  fi
  if ((signalled)); then
    code=85
  elif ((code == 0)); then
    srun "${shape[@]}" "${tasks[@]}" "$@" --run_dir "$run_dir" &
    srun_pid=$!
    ((!told)) || kill -USR1 "$srun_pid" 2>/dev/null # it came before the process id was known
    signalled=1
    while ((signalled)); do
      signalled=0
      wait "$srun_pid"
      code=$?
    done
    srun_pid=''
  fi
  echo "fitb: tasks ended with $code"

  if ((code)) && ending; then
    exit "$code"
  fi
  look_for_room
  "${python[@]}" -m fitb.rundir.restart "$run_dir" "$code" "$seen" "$room"
  verdict=$?
  ((verdict == 11)) || break
  seen=$((seen + 1)) # only an attempt is followed by another one here
done
if ((verdict == 85)) && [[ -n ${FITB_CHAIN:-} ]]; then
  echo "fitb: the next link of chain $FITB_CHAIN goes on"
elif ((verdict == 85)) && { ((code)) || ! ending; }; then
  trap '' TERM # Slurm ends this script some seconds after the requeue
  scontrol requeue "$FITB_JOB" ||
    echo "fitb: the requeue was refused; submit the same command again, or a chain (see the head" \
      "of slurm/distill.sh)"
fi
if ((verdict == 85)) && [[ -n ${FITB_EXCLUDE_SLOW:-} && -z ${FITB_APPTAINER:-} ]]; then
  "${python[@]}" -m fitb.cluster.exclusion "$run_dir"
fi
exit "$verdict"
