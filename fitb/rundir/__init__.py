"""The run folder: names of its files, records, ownership, checkpoints, restart and status."""
