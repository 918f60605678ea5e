#!/usr/bin/env bash
# Prepare shards as arrays:   sbatch [sbatch options] slurm/prepare.sh [where] [flags of `fitb prepare`]
#
# This job only checks, submits the arrays and leaves; where jobs may not submit jobs, run it with
# bash on the login node instead. `where` is --tasks 64, --time_min, --partition and so on; see
# `python -m fitb.prepare.slurm --help`. FITB_PYTHON names the interpreter (default: python).
#
# Invariants
# - The shards appear whole or not at all, and are the same for any number of tasks and hosts.
# - What is done is not done again: after a failure submit the same line again.
# - A stage that fails cancels those that wait for it.
#
#SBATCH --job-name=fitb-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:30:00
#SBATCH --open-mode=append

set -euo pipefail

export PYTHONUNBUFFERED=1
exec "${FITB_PYTHON:-python}" -m fitb.prepare.slurm --cluster slurm "$@"
