"""Label mapping (LM): which source classes does the surrogate see in the target?

Zhang et al. 2023, arXiv:2310.08782. Shapes: N target examples, n of a chunk, C source classes.
"""

import numpy as np
import numpy.typing as npt

from dp4tl_ray.algorithms.memory import row_chunks


def label_mapping_scores(
    logits_NC: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Count the votes of the target examples for each source class.

    Returns:
        Votes (C,): the number of target examples whose predicted class it is. A target
        of N examples leaves at least C - N classes without a vote, so ties are the rule.
        Mass (C,): the sum over the target examples of the predicted probability; breaks the ties.
    """
    num_classes = logits_NC.shape[1]
    votes_C, mass_C = np.zeros(num_classes, np.int64), np.zeros(num_classes)
    for part in row_chunks(len(logits_NC), 24 * num_classes):
        logits_nC = logits_NC[part]
        votes_C += np.bincount(logits_nC.argmax(axis=1), minlength=num_classes)
        mass_C += softmax(logits_nC).sum(axis=0)
    return votes_C, mass_C


def softmax(logits_NC: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return probabilities, (N, C), in float64."""
    shifted = logits_NC.astype(np.float64) - logits_NC.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    probabilities: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
