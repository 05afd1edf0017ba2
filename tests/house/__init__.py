"""The measures of the house, counted from the source: `python -m tests.house`."""
