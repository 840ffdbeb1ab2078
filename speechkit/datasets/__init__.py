"""One module per corpus: what is on disk becomes a manifest."""
