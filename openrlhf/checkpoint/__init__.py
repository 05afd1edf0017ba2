"""What is on disk: training checkpoints and exported models."""
