"""Encoding: only what is wrong with a sample rejects it; what is wrong with the set-up stops the job."""

import copy
import dataclasses
import time

import numpy as np
import pytest
from jinja2 import UndefinedError
from test_activations import as_samples, encoder_of, run_extract

from coincide.base.activation_store import Activations
from coincide.base.errors import UserError
from coincide.dataset.samples import Sample
from coincide.extraction import activations, encoding
from coincide.extraction.encoding import Encoded, encoded_groups
from coincide.models.chat import Masks
from coincide.models.loading import load_model

REFUSES_LONG_CONVERSATIONS = (
    "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %} {{ p.text }}{% endif %}{% endfor %}{% endfor %}"
)
DROPS_EARLIER_ANSWERS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' or loop.last %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %} {{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
TEXT_ONLY = (
    "{{ bos_token }}{% for m in messages %}{% for p in m.content %}"
    "{% if p.type == 'text' %} {{ p.text }}{% endif %}{% endfor %}{% endfor %}"
)
UNDEFINED_NAME = "{{ bos_token }}{{ settings.system_prompt }}"


@pytest.fixture
def loaded(tiny_model):
    return load_model(tiny_model, device="cpu")


@pytest.fixture
def conversations(tiny_data):
    """(records, images folder): one record with an image and one question, one record with two questions."""
    single = next(r for r in tiny_data[0] if "image" in r and len(r["conversations"]) == 2)
    double = next(r for r in tiny_data[0] if len(r["conversations"]) == 4)
    return copy.deepcopy([single, double]), tiny_data[1]


def encoder_with(loaded, folder, template):
    """Encoder whose processor has another chat template."""
    encoder = encoder_of(*loaded, folder)
    encoder.processor.chat_template = template
    return encoder


def test_a_conversation_that_the_template_refuses_is_rejected(loaded, conversations):
    records, folder = conversations
    encoder = encoder_with(loaded, folder, REFUSES_LONG_CONVERSATIONS)
    first, second = (encoder([sample])[0] for sample in as_samples(records))
    assert not hasattr(first, "reason")
    assert second.reason == "malformed turns"
    assert "one question only" in second.detail


def test_image_marks_that_do_not_match_the_images_reject_the_sample(loaded, conversations):
    (record, _), folder = conversations
    record["conversations"][0]["value"] += " <image>"
    (rejected,) = encoder_of(*loaded, folder)(as_samples([record]))
    assert rejected.reason == "image token count mismatch"
    assert rejected.detail == "2 image marks in the conversation, 1 images"


@pytest.mark.parametrize(
    ("template", "message"),
    [(DROPS_EARLIER_ANSWERS, "chat template does not keep earlier turns"), (TEXT_ONLY, "chat template writes 0 image")],
)
def test_a_template_that_cannot_be_used_stops_the_job(loaded, conversations, template, message):
    records, folder = conversations
    encoder = encoder_with(loaded, folder, template)
    with pytest.raises(UserError, match=message):
        encoder(as_samples(records[:1] if template == TEXT_ONLY else records[1:]))


def test_a_faulty_template_stops_the_job(loaded, conversations):
    records, folder = conversations
    with pytest.raises(UndefinedError):
        encoder_with(loaded, folder, UNDEFINED_NAME)(as_samples(records))


def broken_preprocessing(*arguments, **options):
    raise KeyError("pixel_values")


def test_an_error_of_the_processor_stops_the_job_and_names_the_sample(loaded, conversations):
    records, folder = conversations
    encoder = encoder_of(*loaded, folder)
    encoder.processor.image_processor.preprocess = broken_preprocessing
    with pytest.raises(KeyError, match="pixel_values") as error:
        encoder(as_samples(records)[:1])
    assert f"while encoding sample {records[0]['id']} (row 0 of the dataset)" in error.value.__notes__


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_processor_stops_the_extraction(loaded, tiny_data, tmp_path, workers):
    records, folder = tiny_data
    loaded[1].image_processor.preprocess = broken_preprocessing
    with pytest.raises(KeyError, match="pixel_values"):
        run_extract(loaded, as_samples(records), folder, tmp_path / "a.parquet", workers=workers)
    assert not (tmp_path / "a.parquet").exists()


def test_a_user_error_of_a_worker_process_is_its_message_only(loaded, conversations):
    records, folder = conversations
    encoder = encoder_with(loaded, folder, DROPS_EARLIER_ANSWERS)
    with pytest.raises(UserError) as error:
        list(encoded_groups([as_samples(records)[1:]], encoder, workers=1))
    assert "Traceback" not in str(error.value)


# --- read-ahead ----------------------------------------------------------------------------------------------


def encoded_sample(number, size):
    """An Encoded with an image of `size` bytes."""
    mask = np.zeros(4, bool)
    sample = Sample(str(number), number, {})
    return Encoded(sample, np.arange(4), Masks(mask, mask, mask), {}, {"pixel_values": np.ones(size, np.uint8)})


class LargeEncoder:
    """Stands for the encoding of page-sized images: makes an image of a megabyte per sample at once."""

    size = 10**6

    def __call__(self, group):
        return [encoded_sample(number, self.size) for number in group]


def test_read_ahead_is_limited_by_bytes(monkeypatch):
    """40 groups of a megabyte, of which 5 may be ahead of a slow model, and one more per worker."""
    monkeypatch.setattr(encoding, "BYTES_AHEAD", 5 * 10**6)
    budget = encoding._Budget(encoding.BYTES_AHEAD, 2)
    monkeypatch.setattr(encoding, "_Budget", lambda limit, workers: budget)
    numbers, ahead = [], []
    for group in encoded_groups([[number] for number in range(40)], LargeEncoder(), workers=2):
        numbers.append(group[0].sample.dataset_row)
        time.sleep(0.05)
        ahead.append(budget.ahead)
    assert numbers == list(range(40))
    assert 2 * 10**6 < max(ahead) <= 7.1 * 10**6


def test_a_group_above_the_limit_does_not_stop_the_others(monkeypatch):
    monkeypatch.setattr(encoding, "BYTES_AHEAD", 1000)
    groups = encoded_groups([[number] for number in range(12)], LargeEncoder(), workers=3)
    assert [group[0].sample.dataset_row for group in groups] == list(range(12))


def test_image_inputs_that_samples_share_count_once():
    first = encoded_sample(0, 1000)
    second = dataclasses.replace(first, sample=Sample("1", 1, {}), ids=np.arange(8))
    assert encoding.encoded_bytes([first, second]) == 1000 + 4 * 8 + 8 * 8 + 4


def test_a_window_is_read_in_parts_of_limited_size(loaded, tiny_data, tmp_path, monkeypatch):
    """The activations are the same; only the batches differ, which changes the rounding."""
    samples, folder = as_samples(tiny_data[0]), tiny_data[1]
    run_extract(loaded, samples, folder, tmp_path / "whole.parquet")
    held = []
    read_part = activations._read_part

    def counted(extractor, part, *arguments):
        held.append(sum(map(encoding.encoded_bytes, part)))
        read_part(extractor, part, *arguments)

    monkeypatch.setattr(activations, "_read_part", counted)
    monkeypatch.setattr(activations, "WINDOW_BYTES", 40_000)
    run_extract(loaded, samples, folder, tmp_path / "parts.parquet")
    assert len(held) > 3
    assert max(held) < 40_000 + 20_000
    whole, parts = (np.asarray(Activations(tmp_path / f"{name}.parquet"), np.float32) for name in ("whole", "parts"))
    np.testing.assert_allclose(parts, whole, atol=1e-3)
