"""Submitting and running jobs: Slurm, submitit and local processes, all without torch."""
