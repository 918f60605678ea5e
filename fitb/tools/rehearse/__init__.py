"""Rehearsal of the shutdowns that a scheduler causes, with the user's own job."""
