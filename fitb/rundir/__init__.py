"""The run folder, whoever writes or reads it: names, records, ownership, checkpoints, status."""
