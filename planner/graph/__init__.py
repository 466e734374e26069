"""One training step as ops on values; the layouts in which values lie over a mesh."""
