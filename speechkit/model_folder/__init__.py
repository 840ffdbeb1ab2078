"""What a model folder may hold: the parts of `speechkit.pretrained`."""
