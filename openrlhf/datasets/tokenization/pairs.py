"""A pair → its two samples: each answer is encoded as the row of its own that it could be, and both must be usable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from openrlhf.datasets.samples import BadRow, EncodedSample, LeftOut, Pair, RowContent
from openrlhf.datasets.tokenization.encoder import SampleEncoder

IDENTICAL = "identical answers"


def encode_pair(encoder: SampleEncoder, pair: Pair, row_weight: float) -> tuple[EncodedSample, EncodedSample]:
    """The chosen answer's sample and the rejected one's, with the remarks on both.

    The masks are those of supervised fine-tuning; the row's weight stands beside them, since a pair weighs as a whole.
    A pair of which one answer is too long is left out; with `overlong truncate` that answer is cut alone.

    Raises BadRow if an answer cannot be used, LeftOut if one does not become a sample or both are the same.
    """
    chosen, rejected = _encode(encoder, pair.chosen, "chosen"), _encode(encoder, pair.rejected, "rejected")
    if np.array_equal(chosen.input_ids, rejected.input_ids):
        raise LeftOut(f"{IDENTICAL} within max_len" if chosen.was_cut and rejected.was_cut else IDENTICAL)
    if pair.shares_beginning:
        chosen, rejected = _behind_shared_tokens(chosen, rejected)
    remarks = tuple({*pair.remarks, *chosen.remarks, *rejected.remarks})
    of_chosen, of_rejected = (
        replace(sample, row_weight=row_weight, margin=pair.margin, remarks=remarks) for sample in (chosen, rejected)
    )
    return of_chosen, of_rejected


def _encode(encoder: SampleEncoder, content: RowContent, answer: str) -> EncodedSample:
    try:
        sample = encoder.encode(content)
    except BadRow as problem:
        raise BadRow(f"the {answer} answer: {problem}") from None
    if sample.is_weighted:
        raise BadRow(
            f"the {answer} answer: a message has a weight other than 0 and 1, but the answers of a pair count as a "
            "whole: give the row a weight"
        )
    return sample


def _behind_shared_tokens(chosen: EncodedSample, rejected: EncodedSample) -> tuple[EncodedSample, EncodedSample]:
    """Targets begin at the same place on both sides, behind the same tokens.

    The characters that two texts share may be cut into other tokens on each side (12 against 1|3). Both answers are
    judged behind one and the same prompt, so a token that the sides do not share is of the answer.
    """
    ids = chosen.input_ids, rejected.input_ids
    num_both = min(map(len, ids))
    differing = np.flatnonzero(ids[0][:num_both] != ids[1][:num_both])
    num_shared = int(differing[0]) if len(differing) else num_both
    first_targets = [int(np.flatnonzero(sample.loss_mask)[0]) + 1 for sample in (chosen, rejected)]
    first = min(num_shared, *first_targets)
    if first == 0:
        raise BadRow("the two texts share no first token, and there is no prompt: name its column by --data.prompt_key")
    for sample in (chosen, rejected):
        sample.loss_mask[first - 1 : -1] = 1
    return chosen, rejected
