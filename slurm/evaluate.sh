#!/usr/bin/env bash
# Evaluate models:   sbatch [sbatch options] slurm/evaluate.sh [flags of `fitb evaluate`]
#
#   sbatch slurm/evaluate.sh --model runs/tb4/export
#   sbatch --ntasks=4 --gpus-per-node=4 slurm/evaluate.sh --model runs/tb4/export
#   sbatch --array=0-2 slurm/evaluate.sh --models+='runs/tb4/checkpoints/step-*' --out evals/tb4
#
# Submit from the root of the repository, or from anywhere if fitb is installed; `fitb scripts`
# prints where pip has put this file. FITB_PYTHON names the interpreter (default: python). Site
# settings are in slurm/site.env, and `bash slurm/evaluate.sh --dry-run [flags]` shows what would be
# submitted (see slurm/distill.sh).
#
# Invariants
# - One host, one task, one GPU, unless sbatch options say otherwise. Several tasks evaluate one
#   model together, with the same result as one. On a host without GPUs: --gpus-per-node=0.
# - The tasks of an array share the models: each takes every N-th and writes one file per model,
#   whole or not at all, into the folder of --out. Models with a result are skipped, so after a
#   failure just submit again; `fitb evaluate` with the same flags then prints the table.
# - The exit code of the command is the exit code of the job; several tasks that print no result
#   fail.
#
#SBATCH --job-name=fitb-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --open-mode=append

# Variables inherited from the submitting shell by accident; see slurm/distill.sh.
unset SLURM_EXPORT_ENV
[[ -z ${SLURM_CPU_BIND_LIST:-} ]] || unset "${!SLURM_CPU_BIND@}"
memory=("${!SLURM_MEM_PER_@}")
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
  [[ $word != --dry[-_]run ]] || exec "${python[@]}" -m fitb.tools.dry_run evaluate "$0" "$held" "$@"
done

set -euo pipefail # not earlier: modules use unset variables

export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
if ((!${SLURM_GPUS_ON_NODE:-0})); then # malloc keeps freed memory; see slurm/distill.sh
  export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_-0}
  export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_-2147483647}
fi
unset RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT # inherited
if ((${SLURM_NTASKS:-1} > 1)); then
  if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun 22.05 to 23.02 ignores SLURM_CPUS_PER_TASK
  fi
  codes=(0 0) # srun also exits with 0 if it has started nothing: only a result proves a start
  srun --kill-on-bad-exit=1 "${python[@]}" -m fitb evaluate "$@" |
    grep --text --line-buffered '' || codes=("${PIPESTATUS[@]}")
  ((codes[0] == 0)) || exit "${codes[0]}"
  ((codes[1] == 0)) || echo "fitb: srun ended with 0, and no task with a result" >&2
  exit "${codes[1]}"
fi
exec "${python[@]}" -m fitb evaluate "$@"
