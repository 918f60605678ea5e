#!/usr/bin/env bash
# A run for each combination of settings, as tasks of a job array:
#   sbatch --array=0-3 slurm/sweep.sh --grid.optim.lr '[1e-4, 3e-4]' --grid.seed '[0, 1]' [flags]
# Flags are those of `fitb train`; each --grid.KEY is a list of values of one of them.
# --random N draws N of them, also from ranges: --grid.optim.lr '{low: 1e-5, high: 1e-3, log: true}'.
# Each task is slurm/distill.sh, with all that its head says: it is preempted, requeued and resumed as
# itself, in RUN_DIR/INDEX-SETTINGS, and is a W&B run of one group. The same command again starts
# what has failed and leaves what is finished. `fitb sweep RUN_DIR` prints the table.
#
#SBATCH --job-name=fitb-sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300

signalled=0
trap 'signalled=1' USR1 TERM
site=${FITB_SITE:-${SLURM_SUBMIT_DIR:-.}/slurm/site.env}
read_site() { # a function, since some `activate` scripts read the caller's arguments
  # shellcheck source=/dev/null
  if [[ -r $site ]]; then . "$site"; fi
}
fitb() { # in a shell of its own, as distill.sh is to read the settings itself
  (
    read_site
    python=("${FITB_PYTHON:-python}")
    if [[ -n ${FITB_APPTAINER:-} ]]; then
      read -ra options <<<"${FITB_APPTAINER_OPTIONS---nv}"
      python=(apptainer exec "${options[@]}" "$FITB_APPTAINER" "${FITB_APPTAINER_PYTHON:-python}")
    fi
    "${python[@]}" "$@"
  )
}
if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
  echo "fitb: not a task of a job array; submit with sbatch --array=0-N slurm/sweep.sh ..." >&2
  exit 93
fi
for try in 1 2 3; do # filesystem errors may pass; a mistyped flag or a missing python does not
  flags=$(fitb -m fitb.cluster.sweep "$SLURM_ARRAY_TASK_ID" "$@")
  case $? in 0) break ;; 2 | 93 | 126 | 127) exit 93 ;; esac
  ((try == 3)) && exit 1
  sleep 20
done
# The script beside this one as it was submitted, or where the job was, or that of the package.
submitted=$(scontrol show job --oneliner "$SLURM_JOB_ID" | grep --only-matching --perl-regexp 'Command=\K\S+')
for folder in "${submitted%/*}" "${SLURM_SUBMIT_DIR:-.}/slurm" "$(fitb -m fitb scripts)"; do
  [[ ! -r $folder/distill.sh ]] || break
done
eval "flags=($flags)"
((!signalled)) || { sleep 2 && kill -USR1 $$; } & # once the script below catches it
exec bash "$folder/distill.sh" "${flags[@]}"
