"""Whole models, waveform in."""
