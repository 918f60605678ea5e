"""Checks of a machine before the first run: packages, GPUs, Slurm, folders, network, models."""
