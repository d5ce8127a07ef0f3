"""Physics: arrays in, arrays out. No thread, no socket, no clock, no model."""
