"""Where a run stands: read from its folder, drawn for people."""
