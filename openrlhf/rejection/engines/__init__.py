"""Who answers prompts: one interface (`engine.py`), and an engine behind it in each other file."""
