"""Published checkpoints of other toolkits to our state dicts."""
