"""Training of causal language models whose mathematics does not depend on how it is laid out.

A sample's way, and the room of each stage:

    file → rows → messages → token ids + loss mask      datasets/
         → unit → step window → micro-batches           batching/
         → hidden states → log-probs                    models/
         → share of the window's loss                   objectives/
         → backward, optimizer step                     engine/, driven by trainer/
         → metrics, checkpoint, exported model          tracking/, checkpoint/

`config/` holds the settings, `run/` puts the parts of a run together, `strategy/` and `utils/` are the interface of
OpenRLHF. docs/architecture.md names all rooms.
"""

__version__ = "0.1.0"
