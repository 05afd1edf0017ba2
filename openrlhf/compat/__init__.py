"""Other libraries' interfaces, in front of the parts of a run."""
