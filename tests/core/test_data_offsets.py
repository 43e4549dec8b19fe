"""The tokens of a span are the same whether they are found by lengths or by offsets."""

from __future__ import annotations

import pytest
from data_support import SHAPES, Shape, write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from edgetune.data import Tokenizer, load_tokenizer
from edgetune.data.offsets import Encoded, Locator, _by_offsets, _Bytes

BYTE_LEVEL = [name for name, shape in SHAPES.items() if not shape.pieces]
text = st.text("ab \n.é🎉e\u0301ﬁ<|[]/", max_size=20)
parts = st.lists(text | st.sampled_from(["<|im_end|>", "</s>", "<|user|>"]), max_size=5)


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("models")
    return {name: load_tokenizer(write_model(folder / name, SHAPES[name])) for name in BYTE_LEVEL}


def both(tokenizer: Tokenizer, whole: str) -> tuple[Encoded, Encoded]:
    offsets = tokenizer._inner.encode(whole, add_special_tokens=False)
    return tokenizer.encode_many([whole])[0], _by_offsets(offsets)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(parts=parts, data=st.data())
@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_lengths_and_offsets_agree(name, parts, data, tokenizers):
    whole, tokenizer = "".join(parts), tokenizers[name]
    by_bytes, by_offsets = both(tokenizer, whole)
    assert by_bytes.ids.tolist() == by_offsets.ids.tolist()
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    if start < stop:
        spans = {
            each.tokens_of((start, stop), tokenizer.is_special) for each in (by_bytes, by_offsets)
        }
        assert len(spans) == 1


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_lengths_are_used_where_they_prove_it(name, tokenizers):
    found = tokenizers[name].encode_many(["hello é🎉 <|user|>  world"])[0]
    assert isinstance(found.where, _Bytes) is not SHAPES[name].swallows


def test_lengths_are_not_used_where_the_text_is_changed(tmp_path):
    inner = load_tokenizer(write_model(tmp_path, SHAPES["chatml"]))._inner
    for normalizer, texts in (
        (normalizers.NFC(), {"hello": True, "e\u0301": False, "é": True}),
        (normalizers.Lowercase(), {"hello": False}),
    ):
        inner.normalizer = normalizer
        for whole, by_lengths in texts.items():
            assert isinstance(Locator(inner).encode([whole])[0].where, _Bytes) is by_lengths


def test_other_tokenizers_use_offsets(tmp_path):
    pieces: Shape = SHAPES["pieces"]
    tokenizer = load_tokenizer(write_model(tmp_path, pieces))
    assert not isinstance(tokenizer.encode_many(["hello"])[0].where, _Bytes)
