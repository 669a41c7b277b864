"""Draws of answers that depend on the seed alone, as transformers' `generate` calls them."""

import torch
from torch import Tensor

from .messages import CaptionError

TOP_P = 0.9


class SeededSampling:
    """A logits processor after which the likeliest token is a draw.

    By the Gumbel-max trick: logits plus Gumbel noise have their largest value where a draw would fall. The noise of a
    step is one row for the whole batch, from the CPU: what is drawn for a conversation depends neither on its
    neighbours nor on the device, up to rounding of the logits.
    """

    def __init__(self, seed: int, temperature: float, top_p: float = TOP_P) -> None:
        """Start a draw; a temperature of 0 leaves the logits alone."""
        self.temperature, self.top_p = temperature, top_p
        # Seeds of nodes go up to 2**64 - 1, a generator's to 2**63 - 1.
        self.generator = torch.Generator().manual_seed(seed % 2**63)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return logits [B,V] to take the largest of."""
        if scores.isnan().any():
            raise CaptionError(
                "expected logits from the vision-language model, got values that are no numbers; "
                "its weights are broken or do not stand this precision: download it again or use another model"
            )
        if self.temperature == 0:
            return scores
        scores = scores.float() / self.temperature
        noise = torch.empty(scores.shape[-1]).exponential_(generator=self.generator)
        kept = scores.masked_fill(_unlikely(scores, self.top_p), -torch.inf)
        return kept - noise.log().to(scores.device)


def _unlikely(scores: Tensor, top_p: float) -> Tensor:
    """Mark [B,V] all but the likeliest tokens that together have the probability top_p; the likeliest one stays."""
    ordered, order = scores.softmax(dim=-1).sort(dim=-1, descending=True)
    beyond = ordered.cumsum(dim=-1) - ordered >= top_p
    return torch.zeros_like(beyond).scatter(-1, order, beyond)
