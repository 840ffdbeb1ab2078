"""Waveforms to features: spectra, cepstra and their normalisation."""
