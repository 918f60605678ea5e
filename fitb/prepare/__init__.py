"""From text at any scale to a shard set: stages that run on this machine or as Slurm arrays."""
