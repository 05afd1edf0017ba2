"""All that knows DeepSpeed, and the parts of torch and transformers that are not documented; patches in `patches/`."""
