"""The areas of ``tools/benchmark.py``, one module each; import from the modules."""
