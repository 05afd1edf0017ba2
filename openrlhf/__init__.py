"""Supervised fine-tuning whose mathematics does not depend on how it is laid out.

A sample's way, and the room of each stage:

    file → rows → messages → token ids + loss mask      datasets/
         → step window → micro-batches of this rank     batching/
         → hidden states → log-probs → loss             models/
         → optimizer step                               utils/deepspeed/, driven by trainer/
         → metrics, checkpoint, exported model          tracking/, checkpoint/
"""

__version__ = "0.1.0"
