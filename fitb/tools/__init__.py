"""Commands that look at a run, a machine or a site."""
