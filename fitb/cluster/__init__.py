"""The submit side: Slurm, submitit and plain processes; works where torch is not installed."""
