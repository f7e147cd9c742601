"""Named data sets, deterministic views of them, and the order in which they are read."""
