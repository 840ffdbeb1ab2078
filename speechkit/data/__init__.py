"""Audio in, batches out: manifests, items, samplers, tokenizers and augmentation."""
