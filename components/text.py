"""Text as a condition: captions of labels, and encoders of text to tokens for cross-attention."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Attention, check_event, positions

__all__ = ["Captioned", "CharacterEncoder", "HuggingFaceText", "digit_names"]

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Captioned(nn.Module):
    """Labels as text: each label's caption, encoded: (B,) int64 to (tokens (B, L, F), mask (B, L) bool).

    Arguments:
        captions: one for each label, in order.
        encoder: with `features`, `tokenize` and a forward as `CharacterEncoder`.
    Raises:
        ValueError: there are no captions, or two of them have the same codes.
    """

    codes: Tensor
    mask: Tensor

    def __init__(self, captions: Sequence[str], encoder: nn.Module) -> None:
        super().__init__()
        if not captions:
            raise ValueError("captions must be one for each label; got none")
        self.captions, self.encoder = tuple(captions), encoder
        self.features = int(encoder.features)  # type: ignore[arg-type]
        codes, mask = encoder.tokenize(captions)  # type: ignore[operator]
        self.num_classes = len(captions)
        if len(codes.unique(dim=0)) < len(set(captions)):
            raise ValueError(
                f"captions must differ within the encoder's length; got {captions}, some cut to the same codes"
            )
        self.register_buffer("codes", codes)
        self.register_buffer("mask", mask)

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (tokens, mask) of labels (B,) int64; raises ValueError for others."""
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise ValueError(f"labels must be (B,) of dtype int64; got {tuple(labels.shape)} of {labels.dtype}")
        return self.encoder(self.codes[labels], self.mask[labels])


class CharacterEncoder(nn.Module):
    """A small transformer on characters: text to tokens (B, L, F), one for each character, and their mask.

    It is trained together with the network that it conditions; it needs no download and is not pretrained.
    The code of a character is its code point up to 126, else 127; text longer than `length` is truncated. Attention
    masks positions without a character.

    Arguments:
        features: F, even and a multiple of heads.
        length: L.
        depth: the number of transformer blocks.
        heads: attention heads.
    """

    position_embedding: Tensor

    def __init__(self, features: int = 64, length: int = 32, depth: int = 1, heads: int = 4) -> None:
        super().__init__()
        self.features, self.length = features, length
        self.characters = nn.Embedding(128, features)
        self.register_buffer("position_embedding", positions(features, length), persistent=False)
        self.attentions = nn.ModuleList(Attention(features, heads) for _ in range(depth))
        self.mlps = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(features), nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, features)
            )
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in range(depth))
        self.norm = nn.LayerNorm(features)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return (codes (B, L) int64, mask (B, L) bool, True where there is a character) of B texts."""
        codes = torch.zeros(len(texts), self.length, dtype=torch.int64)
        for row, text in zip(codes, texts):
            points = [min(ord(character), 127) for character in text[: self.length]]
            row[: len(points)] = torch.tensor(points, dtype=torch.int64)
        return codes, codes > 0

    def forward(self, codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return (tokens (B, L, F), mask) of what `tokenize` returned; raises ValueError for other codes."""
        check_event("codes", codes, (self.length,))
        h = self.characters(codes) + self.position_embedding
        # An empty text would attend to nothing, which is NaN.
        visible = mask | ~mask.any(1, keepdim=True)
        for norm, attention, mlp in zip(self.norms, self.attentions, self.mlps):
            h = h + attention(norm(h), mask=visible)
            h = h + mlp(h)
        return self.norm(h), mask


class HuggingFaceText(nn.Module):
    """A text encoder of the hub, frozen: text to the last hidden states (B, L, F) and their mask.

    Of a model with two towers the text's is taken, of an encoder and decoder the encoder. Its weights are saved with
    the model that uses it.

    Arguments:
        name: such as "openai/clip-vit-base-patch32" or "google-t5/t5-small".
        length: L, to which texts are cut and padded.
        options: passed to `from_pretrained`.
    Raises:
        ValueError: transformers is not installed.
    """

    def __init__(self, name: str, length: int = 77, **options: Any) -> None:
        super().__init__()
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise ValueError(
                f"text encoder {name!r} needs a package that is not here: pip install transformers; "
                "CharacterEncoder needs none"
            ) from error
        self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model: Any = AutoModel.from_pretrained(name, **options)
        tower: Any = getattr(model, "text_model", None) or getattr(model, "encoder", None)
        self.model: Any = tower if hasattr(model, "vision_model") or hasattr(model, "decoder") else model
        self.model.requires_grad_(False).eval()
        sizes = (getattr(model.config, "text_config", model.config), model.config)
        self.features = int(next(c.hidden_size for c in sizes if hasattr(c, "hidden_size")))
        self.length = length

    def train(self, mode: bool = True) -> "HuggingFaceText":
        """Do nothing: it stays in eval mode."""
        return super().train(False)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return (codes (B, L) int64, mask (B, L) bool) of B texts."""
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return tokens["input_ids"], tokens["attention_mask"].bool()

    @torch.no_grad()
    def forward(self, codes: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return (tokens (B, L, F), mask) of what `tokenize` returned."""
        return self.model(input_ids=codes, attention_mask=mask.long()).last_hidden_state, mask


def digit_names(classes: int) -> list[str]:
    """Return the labels 0, 1, …, classes - 1 in words, digit by digit: "seven", or of 1000 classes "zero four two"."""
    if classes < 1:
        raise ValueError(f"classes must be at least 1; got {classes}")
    digits = len(str(classes - 1))
    return [" ".join(WORDS[int(digit)] for digit in f"{label:0{digits}d}") for label in range(classes)]
