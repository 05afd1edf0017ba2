"""Training checkpoints and exported models on disk."""
