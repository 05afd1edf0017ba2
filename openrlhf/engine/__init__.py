"""All that knows DeepSpeed: configuration, engine, optimizers, parameters; its patches stand in `patches/`."""
