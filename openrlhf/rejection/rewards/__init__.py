"""What judges answers: `reward.py` (the interface) ← functions in processes of their own, a server, a model, labels."""
