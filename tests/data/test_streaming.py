import os
import signal
import time
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from components.distributions import Delta
from hybrids.data import Data, folder, folders
from hybrids.data.source import few
from hybrids.models.cache import encode_data

R, N = 8, 26


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(N // 2):
            pixels = np.random.default_rng(i).integers(0, 256, (R, R, 3), dtype=np.uint8)
            pixels[0, 0, 0] = 100 * (name == "b")
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def streamed(root, monkeypatch):
    """The folder, as if it were too large for memory."""

    def load(**settings):
        with monkeypatch.context() as patch:
            patch.setattr(folders, "IN_MEMORY", 0)
            return folder(root, **settings)

    return load


def taken(batches, count):
    return list(islice(iter(batches), count))


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def test_large_sets_stream_and_small_ones_do_not(root, streamed, capsys):
    small, large = folder(root), streamed(workers=3)
    assert small.stream is None and large.x is None and len(large) == len(small)
    assert "images are decoded by 3 worker(s) as batches need them" in capsys.readouterr().out
    assert large.shape == small.shape and large.classes == 2 and torch.equal(large.labels, small.labels)
    assert torch.equal(large.held_out, small.held_out) and large.card() == small.card()
    assert Data.from_card(large.card()).shape == (3, R, R)


def test_the_limit_is_of_decoded_bytes(root, monkeypatch):
    files = folder(root)
    size = len(files) * 3 * R * R
    for limit, streams in ((size, False), (size - 1, True)):
        monkeypatch.setattr(folders, "IN_MEMORY", limit)
        assert (folder(root).stream is not None) == streams


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_give_the_batches_that_memory_gives(root, streamed, workers):
    """Three epochs, batches that straddle them, labels with their images, on the second of two ranks."""
    small, large = folder(root), streamed(workers=workers)
    one, other = (taken(data.batches(4, 7, 1, 2, labels=True), 12) for data in (small, large))
    for key in ("x", "cond"):
        assert same([batch[key] for batch in one], [batch[key] for batch in other])
    pixel = torch.cat([(batch["x"][:, 0, 0, 0] + 1) * 127.5 for batch in other])
    assert torch.equal(pixel.round().long(), 100 * torch.cat([batch["cond"] for batch in other]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_where_it_was(streamed, workers):
    data = streamed(workers=workers)
    straight = taken(data.batches(5, 3), 9)
    stopped = data.batches(5, 3)
    taken(stopped, 4)
    # Workers have read ahead; the position is of what was taken.
    assert stopped.state_dict() == {"consumed": 20, "seed": 3}
    resumed = data.batches(5, 3)
    resumed.load_state_dict(stopped.state_dict())
    assert same(taken(resumed, 5), straight[4:])


def test_a_position_loaded_in_the_middle_is_followed(streamed):
    data = streamed(workers=2)
    straight = taken(data.batches(5), 6)
    batches = data.batches(5)
    iterator = iter(batches)
    next(iterator), next(iterator)
    batches.load_state_dict({"consumed": 0, "seed": 0})
    assert same(list(islice(iterator, 6)), straight)


def test_two_iterators_share_the_position(streamed):
    data = streamed(workers=1)
    batches = data.batches(5)
    assert same(taken(batches, 2) + taken(batches, 3), taken(data.batches(5), 5))


def test_streaming_leaves_the_run_s_random_numbers_alone(streamed):
    before = torch.get_rng_state()
    taken(streamed(workers=2).batches(5), 6)
    assert torch.equal(before, torch.get_rng_state())


def test_workers_ignore_the_signals_that_stop_a_run(streamed):
    """Slurm and torchrun signal the whole group: the step under way still needs its batch."""
    data = streamed(workers=2)
    batches = data.batches(5)
    got = taken(batches, 1)
    workers = batches._workers._iterator._workers
    for worker in workers:
        for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(worker.pid, kind)
    time.sleep(0.1)
    assert all(worker.is_alive() for worker in workers)
    assert same(got + taken(batches, 8), taken(data.batches(5), 9))


@pytest.mark.parametrize("kind, cause, remedy", [
    (signal.SIGKILL, "was killed by SIGKILL; most likely the machine or its container ran out of memory",
     "lower --workers (now 1) or --batch-size; go on from the last checkpoint with --resume auto"),
    (signal.SIGBUS, "was killed by SIGBUS; most likely the shared memory is full: enlarge /dev/shm", "--workers 0"),
    (signal.SIGSEGV, "was killed by SIGSEGV", "--workers 0 reads the images in the run's own process"),
])  # fmt: skip
def test_fault_14_a_killed_worker_is_explained_where_its_batch_is_taken(streamed, kind, cause, remedy):
    data = streamed(workers=1)
    batches = data.batches(5)
    first = taken(batches, 2)
    worker = batches._workers._iterator._workers[0]
    os.kill(worker.pid, kind)
    worker.join(5)
    # Between steps nothing is raised: a step under way is finished.
    time.sleep(0.05)
    with pytest.raises(RuntimeError) as caught:
        taken(batches, 8)
    assert f"a data worker (pid {worker.pid}) {cause}" in str(caught.value) and remedy in str(caught.value)
    # Asked again it starts over from its position.
    assert same(first + taken(batches, 2), taken(data.batches(5), 4))


def spoil(data, examples):
    names = [data.stream.files.name(int(data.stream.indices[i])) for i in examples]
    for name in names:
        with open(name, "r+b") as file:
            file.truncate(90)
    return names


@pytest.mark.parametrize("workers", [0, 1])
def test_fault_3_a_truncated_image_is_refused_by_name_when_its_batch_comes(streamed, workers):
    data = streamed(workers=workers)
    batches = data.batches(5)
    place = int(batches.order(0)[12])
    (name,) = spoil(data, [place])
    iterator = iter(batches)
    next(iterator), next(iterator)
    with pytest.raises(ValueError) as caught:
        next(iterator)
    assert f"1 image(s) cannot be read: {name}: it cannot be decoded" in str(caught.value)
    assert "--skip-bad-images N (now 0)" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_of_a_stream_give_their_place_to_the_next(streamed, workers):
    whole = taken(streamed(workers=0).batches(5), 8)
    data = streamed(workers=workers, skip_bad_images=2)
    batches = data.batches(5)
    order = torch.cat([batches.order(epoch) for epoch in range(3)]).tolist()
    # The next good image is of the other class.
    last_of_a = int((data.labels == 0).sum()) - 1
    spoil(data, [last_of_a - 1, last_of_a])
    images = torch.cat(taken(batches, 8))
    labelled = taken(streamed(workers=workers, skip_bad_images=2).batches(5, labels=True), 8)
    red = torch.cat([(batch["x"][:, 0, 0, 0] + 1) * 127.5 for batch in labelled])
    assert torch.equal(red.round().long(), 100 * torch.cat([batch["cond"] for batch in labelled]))
    good = {i: image for i, image in zip(order, torch.cat(whole))}
    for i, image in zip(order, images):
        assert torch.equal(image, good[last_of_a + 1 if i in (last_of_a - 1, last_of_a) else i])
    assert len(data.stream.skipping.bad) == 2


def test_a_few_examples_and_the_latents_of_a_stream_keep_their_labels(streamed):
    """Where an image is skipped, too."""
    data = streamed(workers=0, skip_bad_images=1)
    spoil(data, [int((data.labels == 0).sum()) - 1])
    some = few(data, 20)
    assert some.stream is None and len(some) == len(some.labels) == 20
    assert torch.equal(some.x[:, 0, 0, 0].long(), 100 * some.labels)
    latents = encode_data(data, lambda x: Delta(x[:, :1]), batch_size=7)
    assert latents.class_names == ("a", "b")
    assert torch.equal(((latents.x[:, 0, 0, 0, 0] + 1) * 127.5).round().long(), 100 * latents.labels)


def test_more_bad_images_than_may_be_skipped_end_the_stream(streamed):
    data = streamed(workers=1, skip_bad_images=1)
    spoil(data, [3, 9])
    with pytest.raises(ValueError, match=r"2 image\(s\) cannot be read: .*--skip-bad-images N \(now 1\)"):
        taken(data.batches(5), 8)


def test_bad_headers_are_found_before_anything_streams(root, streamed):
    (root / "a" / "3.png").write_bytes(b"")
    with pytest.raises(ValueError, match="a/3.png: it is empty"):
        streamed()


def test_faults_10_and_11_hold_for_streams(streamed):
    with pytest.raises(ValueError, match="--batch-size 20 on 2 processes needs 40 examples a step"):
        streamed().batches(20, world_size=2)
