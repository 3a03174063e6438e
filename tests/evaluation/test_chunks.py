import json

import pytest
import torch

from hybrids.evaluation.chunks import Chunks

CARD = {"seed": 0, "ode": False, "tolerance": 1e-5, "examples": None}


@pytest.fixture
def chunks(tmp_path):
    made = Chunks(tmp_path / "parts", CARD)
    assert made.claim() == []
    return made


def test_what_is_written_is_there_bit_for_bit(chunks):
    values = {"nats": torch.randn(5, dtype=torch.float64), "nats_per_level": torch.randn(5, 3, dtype=torch.float64)}
    assert 3 not in chunks
    chunks.write(3, values)
    found = Chunks(chunks.folder, CARD).read(3)
    assert 3 in chunks and 2 not in chunks and found.keys() == values.keys()
    assert all(torch.equal(found[name], values[name]) for name in values)


def test_the_same_card_goes_on(chunks):
    chunks.write(0, {"nats": torch.ones(2)})
    again = Chunks(chunks.folder, dict(reversed(CARD.items())))
    assert again.claim() == [] and 0 in again


def test_another_card_starts_over_and_says_what_changed(chunks):
    chunks.write(0, {"nats": torch.ones(2)})
    other = Chunks(chunks.folder, {**CARD, "seed": 1, "draws": 4})
    assert other.claim() == ["draws", "seed"] and 0 not in other
    assert other.claim() == []


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_card_that_is_none_starts_over(chunks, text):
    chunks.write(0, {"nats": torch.ones(2)})
    (chunks.folder / "card.json").write_text(text)
    chunks.claim()
    assert 0 not in chunks and json.loads((chunks.folder / "card.json").read_text()) == CARD


def test_one_that_was_being_written_is_not_there(chunks, monkeypatch):
    def cut(path, values):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("hybrids.evaluation.chunks.write_tensors", cut)
    with pytest.raises(KeyboardInterrupt):
        chunks.write(0, {"nats": torch.ones(2)})
    assert 0 not in chunks
    monkeypatch.undo()
    chunks.write(0, {"nats": torch.ones(2)})
    assert 0 in chunks


def test_they_are_removed(chunks):
    chunks.write(0, {"nats": torch.ones(2)})
    chunks.remove()
    assert not chunks.folder.exists()
