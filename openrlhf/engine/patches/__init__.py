"""Changes to how DeepSpeed, transformers and torch behave: a file each."""
