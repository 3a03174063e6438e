"""Which term pulls how hard, and where: gradient norms and cosines by term, to tune a hybrid."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .player import Player
from .terms import Terms

__all__ = ["Probe", "Probes", "probe"]


@dataclass(frozen=True)
class Probe:
    """What each term's gradient is like in the parameters of one player.

    norms: {term: ‖w ∇ mean(term)‖}; cosines: {(term, other): cosine of their gradients}, 0 where one has none.
    Printed, it is a table.
    """

    player: str
    norms: dict[str, float]
    cosines: dict[tuple[str, str], float]

    def __str__(self) -> str:
        names = list(self.norms)
        width = max(len(name) for name in names)
        rows = [f"{self.player}: gradient norm, and cosine with each term"]
        for name in names:
            cosines = "  ".join(f"{self.cosines[name, other]:+.2f}" for other in names)
            rows.append(f"  {name:{width}}  {self.norms[name]:10.4g}  {cosines}")
        return "\n".join(rows)


class Probes(dict[str, Probe]):
    """{player's name: Probe}; printed, a table of each."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.values()))


def probe(terms: Terms, players: Player | Iterable[Player]) -> Probes:
    """Differentiate every term of an objective by itself, with its weight, in the parameters that each player moves.

    Call it on Terms whose graph is still there, outside a turn (in a turn the others are frozen): nothing is changed,
    and `terms.total.backward()` still works afterwards. Terms of weight 0 are measurements and have no gradient.
    Each term costs one backward pass for each player. Returns {player's name: Probe}, which prints as
    tables.
    """
    players = [players] if isinstance(players, Player) else list(players)
    found = Probes()
    for player in players:
        parameters = player.parameters_moved()
        gradients = {
            name: _gradient(weight * values.mean(), parameters)
            for name, (weight, values) in terms.items()
            if isinstance(weight, Tensor) or weight != 0
        }
        norms = {name: gradient.norm() for name, gradient in gradients.items()}
        cosines = {
            (a, b): (gradients[a] @ gradients[b] / (norms[a] * norms[b]).clamp(min=1e-30)).item()
            for a in gradients
            for b in gradients
        }
        found[player.name] = Probe(player.name, {name: norm.item() for name, norm in norms.items()}, cosines)
    return found


def _gradient(loss: Tensor, parameters: list[torch.nn.Parameter]) -> Tensor:
    """The flat gradient (P,), float64; zeros where the loss does not reach."""
    wanted = [p for p in parameters if p.requires_grad]
    if not loss.requires_grad or not wanted:
        return torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=parameters[0].device)
    found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found)]
    return torch.cat([part.flatten().double() for part in parts])
