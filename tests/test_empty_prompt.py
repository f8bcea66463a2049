# SPDX-License-Identifier: Apache-2.0
"""The empty prompt's embedding in a configuration: exact, checked, equal to what the text encoder makes."""

import base64
import json

import numpy as np
import pytest
import torch

from pipeline_zerostereo import ZeroStereoPipeline, decode_compact_prompt, encode_prompt_compactly
from tests.tiny_components import configured_prompt, embedded_pipeline, make_photos, official_pipeline, seeded

SOURCE = ("org/repo/text_encoder", "0123abcd")


def compact(**changes) -> dict:
    return {**encode_prompt_compactly(torch.tensor(configured_prompt()), *SOURCE), **changes}


def test_bytes_by_hand():
    encoded = encode_prompt_compactly(torch.tensor([[1.0, -2.0, 0.5], [0.1, 1.5, -0.0]]), *SOURCE)
    assert base64.b64decode(encoded.pop("base64")).hex() == "0000803f000000c00000003fcdcccc3d0000c03f00000080"
    assert encoded == {"dtype": "float32", "shape": [2, 3], "text_encoder": SOURCE[0], "revision": SOURCE[1]}


def test_the_round_trip_is_exact_to_the_bit_through_json():
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1024)).astype(np.float32))
    text = json.dumps(encode_prompt_compactly(values, *SOURCE))
    assert torch.equal(decode_compact_prompt(json.loads(text)), values)
    assert len(text) < 12_000, "a quarter of the list of numbers"


def test_both_forms_are_the_same_to_the_pipeline(tmp_path):
    as_list, as_dictionary = embedded_pipeline(), embedded_pipeline(empty_prompt_embeds=compact())
    expected = as_list.encode_empty_prompt()
    assert expected.shape == (1, 2, 32) and torch.equal(as_dictionary.encode_empty_prompt(), expected)
    as_dictionary.save_pretrained(tmp_path)
    loaded = ZeroStereoPipeline.from_pretrained(tmp_path)
    assert loaded.config.empty_prompt_embeds == compact()
    assert torch.equal(loaded.encode_empty_prompt(), expected)


def test_the_embedding_gives_the_output_of_the_text_encoder_to_the_bit(tmp_path):
    encoding = official_pipeline(tmp_path)
    embeds = encode_prompt_compactly(encoding.encode_empty_prompt()[0], *SOURCE)
    configured = official_pipeline(tmp_path, text_encoder=None, tokenizer=None, empty_prompt_embeds=embeds)
    photo = make_photos(1, 40, 56)
    made, again = (pipe(photo, generator=seeded(3), output_type="pt") for pipe in (encoding, configured))
    assert torch.equal(made.images, again.images)


WRONG = {
    "keys": (compact(more=1), r"`empty_prompt_embeds` must have the keys \[.*'text_encoder'\]; got \[.*'more'"),
    "dtype": (compact(dtype="float16"), '`empty_prompt_embeds` must have "dtype" "float32"; got \'float16\''),
    "shape": (compact(shape=[64]), r'must have a "shape" of two positive integers; got \[64\]'),
    "no size": (compact(shape=[0, 32]), r'must have a "shape" of two positive integers; got \[0, 32\]'),
    "size": (compact(shape=[2, 31]), r"must hold 248 bytes for float32 of shape \[2, 31\]; got 256"),
    "text": (compact(base64="no base64!"), "`empty_prompt_embeds` must hold base64 text; got 'no base64!'"),
    "no text": (compact(base64=None), "`empty_prompt_embeds` must hold base64 text; got 'None'"),
    "not finite": (
        compact(base64=base64.b64encode(np.full(64, np.nan, "<f4").tobytes()).decode()),
        "`empty_prompt_embeds` must be finite; got 64 infinite or NaN values of 64",
    ),
    "vector": ([0.5, 1.0], r"`empty_prompt_embeds` must be tokens x channels; got a list of shape \[2\]"),
    "ragged": ([[0.5, 1.0], [2.0]], "`empty_prompt_embeds` must be numbers, tokens x channels"),
    "words": ([["a"]], "`empty_prompt_embeds` must be numbers, tokens x channels"),
    "infinite": ([[float("inf")]], "`empty_prompt_embeds` must be finite; got 1 infinite or NaN values of 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_embedding_is_refused_at_construction(case):
    value, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        embedded_pipeline(empty_prompt_embeds=value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2), r"`prompt_embeds` must be a float32 tensor of shape \[tokens,channels\]; got .* \[2\]"),
        (torch.zeros(2, 3).half(), r"`prompt_embeds` must be a float32 tensor .* got torch.float16"),
        (torch.full((1, 2), torch.inf), "`prompt_embeds` must be finite; got 2 infinite or NaN values of 2"),
    ],
)
def test_what_cannot_be_encoded_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        encode_prompt_compactly(value, *SOURCE)
