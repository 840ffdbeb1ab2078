"""From posteriors to token sequences: search and alignment."""
