#!/usr/bin/env bash
# Prepare shards as arrays:   sbatch [sbatch options] slurm/prepare.sh [where] [flags of `fitb prepare`]
#
# This job only checks, submits the arrays and exits. If jobs may not submit jobs on your site, run
# it with bash on the login node instead. `where` is --tasks 64, --time_min, --partition and so on;
# see `python -m fitb launch.prepare --help`. FITB_PYTHON names the interpreter (default: python).
# Site settings are in slurm/site.env, and `bash slurm/prepare.sh --dry-run [flags]` shows what
# would be submitted (see slurm/distill.sh).
#
# Invariants
# - The shards appear whole or not at all, and are the same for any number of tasks and hosts.
# - Finished work is not repeated: after a failure submit the same command again.
# - A stage that fails cancels those that wait for it.
#
#SBATCH --job-name=fitb-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:30:00
#SBATCH --open-mode=append

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
python=("${FITB_PYTHON:-python}") # not in a container: it needs sbatch
for word; do
  [[ $word != --dry[-_]run ]] || exec "${python[@]}" -m fitb.tools.dry_run prepare "$0" "$held" "$@"
done

set -euo pipefail # not earlier: modules use unset variables

export PYTHONUNBUFFERED=1
exec "${python[@]}" -m fitb launch.prepare --cluster slurm "$@"
