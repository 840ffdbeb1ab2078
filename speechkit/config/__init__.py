"""Reading a recipe's YAML and command line: the parts of `speechkit.hparams`."""
