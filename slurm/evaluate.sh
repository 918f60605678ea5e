#!/usr/bin/env bash
# Evaluate a model in one task:   sbatch [sbatch options] slurm/evaluate.sh [flags of `fitb evaluate`]
#
# Submit from the root of the repository, or from anywhere if fitb is installed. FITB_PYTHON names
# the interpreter (default: python).
#
# Invariants
# - One host, one task, one GPU. On a host without GPUs: --gpus-per-node=0.
# - Nothing is written but the report, so a job that was killed is simply submitted again.
# - The exit code of the command is the exit code of the job.
#
#SBATCH --job-name=fitb-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --open-mode=append

set -euo pipefail

export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
exec "${FITB_PYTHON:-python}" -m fitb evaluate "$@"
