#!/usr/bin/env bash
# Prepare shards in one task:   sbatch [sbatch options] slurm/prepare.sh [flags of `fitb prepare`]
#
# Submit from the root of the repository, or from anywhere if fitb is installed. FITB_PYTHON names
# the interpreter (default: python).
#
# Invariants
# - One host, one task, no GPU; every core it is given is used.
# - The shards appear whole or not at all: a job that was killed is simply submitted again.
# - The exit code of the command is the exit code of the job.
#
#SBATCH --job-name=fitb-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --open-mode=append

set -euo pipefail

export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
exec "${FITB_PYTHON:-python}" -m fitb prepare "$@"
