"""Entropy coding of a codec's codes, and the codec's file format."""
