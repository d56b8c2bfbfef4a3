"""Pieces of text for tokens."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.texts import line_of_tokens, text_frame, token_texts
from mopd.tokens import ByteCodec, HFCodec
from tests.helpers import chatml_tokenizer

CODECS = {"bytes": ByteCodec(), "chatml": HFCodec(chatml_tokenizer())}


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
@given(text=st.text(max_size=40))
def test_pieces_join_to_the_decoded_text(codec: ByteCodec | HFCodec, text: str) -> None:
    ids = codec.encode_text(text)
    pieces = token_texts(ids, codec)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == codec.decode(ids)


def test_a_character_stands_with_the_byte_that_ends_it() -> None:
    # é is two bytes, the flag 🎉 four
    ids = list("aé🎉b".encode())
    assert token_texts(ids, ByteCodec()) == ["a", "", "é", "", "", "", "🎉", "b"]


def test_bytes_that_are_no_character_do_not_swallow_what_follows() -> None:
    pieces = token_texts([0xFF, *b"ok", 0xE2, 0x82], ByteCodec())
    assert "".join(pieces) == "\ufffdok\ufffd"
    assert pieces.index("k") == 2


def test_a_decoder_that_strips_the_first_space_keeps_the_others() -> None:
    class Metaspace(ByteCodec):
        """Words are tokens with the space before them, which the decoder takes off at the start of a text."""

        words = ("the", "cat")

        def decode(self, ids, *, skip_special=False):
            return "".join(f" {self.words[i]}" for i in ids).removeprefix(" ")

    assert token_texts([0, 1, 1], Metaspace()) == ["the", " cat", " cat"]


def test_lines_end_with_their_break() -> None:
    assert line_of_tokens(["a", "\n", "b\n\nc", "d"]) == [0, 0, 1, 3]
    assert line_of_tokens([]) == []


def test_a_rollout_has_one_row_however_many_contexts() -> None:
    tokens = pl.DataFrame(
        {
            "context_id": ["c1", "c2", "c2"],
            "rollout_id": ["r1", "r1", "r2"],
            "token_ids": pl.Series([[104, 105], [104, 105], [33]], dtype=pl.List(pl.Int32)),
        }
    )
    contexts = pl.DataFrame({"context_id": ["c1", "c2"], "group_id": ["g", "g"]})
    frame = text_frame(tokens, contexts, ByteCodec())
    assert frame["token_texts"].to_list() == [["h", "i"], ["!"]]
    assert frame["group_id"].to_list() == ["g", "g"]
