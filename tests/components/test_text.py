import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from components.text import Captioned, CharacterEncoder, HuggingFaceText, digit_names


def test_labels_have_names():
    assert digit_names(10)[0] == "zero" and digit_names(10)[9] == "nine" and len(digit_names(10)) == 10
    assert digit_names(1000)[42] == "zero four two" and len(set(digit_names(1000))) == 1000


def test_characters_become_tokens():
    """(B, L, F) and where there is a character; unknown ones are all 127, the rest is cut."""
    encoder = CharacterEncoder(8, 6, 1, 2)
    codes, mask = encoder.tokenize(["ab", "", "äöü", "abcdefgh"])
    assert codes.tolist() == [[97, 98, 0, 0, 0, 0], [0] * 6, [127] * 3 + [0] * 3, [97, 98, 99, 100, 101, 102]]
    assert torch.equal(mask, codes > 0)
    tokens, same = encoder(codes, mask)
    assert tokens.shape == (4, 6, 8) and tokens.isfinite().all() and torch.equal(same, mask)


def test_padding_is_masked():
    """The tokens of a text are the same whatever the length it is padded to, and depend on its order."""
    long, short = CharacterEncoder(8, 9, 2, 2), CharacterEncoder(8, 4, 2, 2)
    short.load_state_dict(long.state_dict())
    a, b = (encoder(*encoder.tokenize(["one", "eno"]))[0] for encoder in (long, short))
    torch.testing.assert_close(a[:, :3], b[:, :3])
    assert (a[0, :3] - a[1, :3].flip(0)).abs().max() > 1e-3


def test_a_label_is_its_caption():
    encoder = CharacterEncoder(8, 6, 1, 2)
    captioned = Captioned(["one", "two", "three"], encoder)
    tokens, mask = captioned(torch.tensor([2, 0, 2]))
    expected, visible = encoder(*encoder.tokenize(["three", "one", "three"]))
    assert torch.equal(tokens, expected) and torch.equal(mask, visible) and captioned.features == 8
    # Saved, so that a run brought back knows its captions without its data.
    assert {"codes", "mask"} <= captioned.state_dict().keys()


def test_without_transformers_the_error_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ValueError, match="'some/encoder' needs a package .* pip install transformers; CharacterEncoder"
    ):
        HuggingFaceText("some/encoder")


class Stub(nn.Module):
    """What `AutoModel` returns, as far as it is used: an embedding."""

    def __init__(self, **parts):
        super().__init__()
        self.table = nn.Embedding(50, 4)
        self.config = SimpleNamespace(hidden_size=4)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=self.table(input_ids) * attention_mask[..., None])


@pytest.mark.parametrize("parts", [(), ("encoder", "decoder"), ("text_model", "vision_model"), ("encoder",)])
def test_a_text_encoder_of_the_hub(parts, monkeypatch):
    """Frozen, in eval mode; the text's tower of two, the encoder of an encoder and decoder. By a stand-in for
    transformers, which is not installed here."""
    model = Stub(**{name: Stub() for name in parts})

    class Tokenizer:
        pad_token, eos_token = None, "</s>"

        def __call__(self, texts, padding, truncation, max_length, return_tensors):
            assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
            ids = torch.tensor([[len(word) for word in (t.split() + [""] * max_length)[:max_length]] for t in texts])
            return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    fake = ModuleType("transformers")
    fake.AutoModel = SimpleNamespace(from_pretrained=lambda name, **options: model)
    fake.AutoTokenizer = SimpleNamespace(from_pretrained=lambda name: Tokenizer())
    monkeypatch.setitem(sys.modules, "transformers", fake)
    encoder = HuggingFaceText("some/encoder", length=5)
    tower = {2: getattr(model, parts[0]) if parts else model}.get(len(parts), model)
    assert encoder.model is tower and encoder.features == 4 and encoder.tokenizer.pad_token == "</s>"
    captioned = Captioned(["a tiny seven", "two"], encoder)
    tokens, mask = captioned.train()(torch.tensor([1, 0]))
    assert tokens.shape == (2, 5, 4) and mask.tolist() == [[True] + [False] * 4, [True] * 3 + [False] * 2]
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters()) and not tokens.requires_grad


def captioned(*captions):
    return Captioned(captions, CharacterEncoder(8, 4, 1, 2))


@pytest.mark.parametrize("make, message", [
    (lambda: digit_names(0), "classes must be at least 1; got 0"),
    (lambda: captioned(), "captions must be one for each label; got none"),
    (lambda: captioned("seven", "seventy"),
     r"captions must differ within the encoder's length; got .*, some cut to the same codes"),
    (lambda: captioned("one", "two")(torch.zeros(2)),
     r"labels must be \(B,\) of dtype int64; got \(2,\) of torch.float32"),
    (lambda: captioned("one", "two")(torch.zeros(2, 1, dtype=torch.long)), r"got \(2, 1\) of torch.int64"),
    (lambda: CharacterEncoder(8, 4, 1, 2)(torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5) > 0),
     r"codes must be \(B, 4\); got shape \(2, 5\)"),
])  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
