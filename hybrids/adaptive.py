"""VQGAN's adaptive weight: an adversarial gradient as long as the reconstruction's, where both meet."""

import torch
from torch import Tensor, nn

from components.ranks import mean_over_ranks

__all__ = ["adaptive"]

LIMIT = 1e4
"""As Esser et al. clamp it in their code."""


def adaptive(reconstruction: Tensor, adversarial: Tensor, at: nn.Module, weight: float = 1.0) -> Tensor:
    """λ = w min(‖∇_L rec‖/(‖∇_L adv‖ + 1e-4), 1e4), L the weight of a layer: (), detached.

    So λ ‖∇_L adv‖ = w ‖∇_L rec‖ ‖∇_L adv‖/(‖∇_L adv‖ + 1e-4), whatever the units of the two losses: no factor for the
    number of dimensions is needed. Gradients are averaged over ranks before their norms are taken, so λ is equal on all
    of them; of several micro-batches each has its own λ. Call it where the loss is computed, in a player's forward, on
    every rank. Where gradients are off there is nothing to balance, and λ is 0.
    Esser et al. 2021, 2012.09841, eq. 7 (δ = 1e-6 there, 1e-4 in their code).

    Arguments: reconstruction and adversarial, () each, what the decoder minimizes; at, the decoder's last layer, which
    has a `weight`; weight w.
    Raises ValueError for a layer without weight, and where one of the losses does not depend on it.
    """
    layer = getattr(at, "weight", None)
    if not isinstance(layer, Tensor):
        raise ValueError(f"at must be a layer with a weight, such as decoder.last; got {type(at).__name__}")
    if not torch.is_grad_enabled():
        return torch.zeros_like(reconstruction)
    losses = {"reconstruction": reconstruction, "adversarial": adversarial}
    norms = {}
    for name, loss in losses.items():
        gradient = None
        if loss.requires_grad and layer.requires_grad:
            (gradient,) = torch.autograd.grad(loss, layer, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise ValueError(f"the {name} loss does not depend on the weight of {type(at).__name__}, or that is frozen")
        norms[name] = torch.linalg.vector_norm(mean_over_ranks(gradient))
    return weight * (norms["reconstruction"] / (norms["adversarial"] + 1e-4)).clamp(max=LIMIT)
