"""Blocks that models are made of, one family a file."""
