"""A rehearsal of the ends that a scheduler makes: the own job, told to leave on purpose."""
