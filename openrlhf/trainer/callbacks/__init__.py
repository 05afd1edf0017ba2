"""Everything in the loop that is not the step: a file each, behind one class.

A run's callbacks stand in this order, and each event reaches them in it:

    the user's own → tracking → non-finite guard → leaving → evaluation → early stop → leaving → saving

So a number that a user's callback logs is in the step's record, a step that went wrong is in the file before the run
stops for it, and a checkpoint knows the evaluation of its weights.
"""

from openrlhf.trainer.callbacks.callback import Callback, CallbackFailed

__all__ = ["Callback", "CallbackFailed"]
