"""The output layer: log-probs of target tokens without holding the logits of all of them."""
