"""A pruned tokenizer is one: any text comes back, and text of kept tokens keeps its tokens."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bake.errors import Malformed, Unsupported
from bake.vocabulary.ids import Numbering
from bake.vocabulary.keep import keep
from bake.vocabulary.tokenizer import parsed, pruned

from .made import MARKERS, TEXT, falling, library, ours

SIZE, KEPT = 700, 448
WHOLE = library(SIZE)
OURS = ours(WHOLE)
REQUIRED = {*OURS.bytes_there(), *(one.id for one in OURS.added)}
IDS = keep(OURS.bpe(), falling(3, SIZE), REQUIRED, KEPT).ids
NUMBER = Numbering(IDS)
PRUNED = Tokenizer.from_str(json.dumps(pruned(OURS, NUMBER, IDS)))
WORDS = TEXT.split() + list(MARKERS)
SCRIPTS = st.one_of(
    st.text(),
    st.text(st.characters(min_codepoint=0, max_codepoint=0x1F)),
    st.text(st.characters(min_codepoint=0x300, max_codepoint=0x36F)),
    st.text(st.characters(min_codepoint=0x400, max_codepoint=0x4FF)),
    st.text(st.characters(min_codepoint=0x590, max_codepoint=0x6FF)),
    st.text(st.characters(min_codepoint=0x900, max_codepoint=0x97F)),
    st.text(st.characters(min_codepoint=0xE00, max_codepoint=0xE7F)),
    st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF)),
    st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)),
    st.text(st.characters(min_codepoint=0x1F300, max_codepoint=0x1FAFF)),
    st.lists(st.sampled_from(WORDS)).map(" ".join),
    st.lists(st.sampled_from(WORDS)).map("".join),
)
TEXTS = st.lists(SCRIPTS, max_size=4).map("".join)


def ids(made, text):
    return made.encode(text, add_special_tokens=False).ids


def back(made, text):
    return made.decode(ids(made, text), skip_special_tokens=False)


@given(TEXTS)
@example("👩‍👩‍👧 e\u0301 \x00\x7f\u200b\ufeff \ud7ff")
@example("<|im_start|>user\nпривет<|im_end|>\n<think>")
def test_any_text_comes_back_as_normalised(text):
    assert back(PRUNED, text) == WHOLE.normalizer.normalize_str(text)


@given(TEXTS)
def test_any_text_comes_back_as_it_did_before(text):
    assert back(PRUNED, text) == back(WHOLE, text)


@given(TEXTS)
def test_text_of_kept_tokens_has_the_same_tokens(text):
    before = ids(WHOLE, text)
    after = [IDS[one] for one in ids(PRUNED, text)]
    if set(before) <= set(IDS):
        assert after == before
    assert len(after) >= len(before)


@given(st.lists(st.sampled_from(range(KEPT)), max_size=12))
def test_any_kept_tokens_decode_as_they_did_before(some):
    before = WHOLE.decode([IDS[one] for one in some], skip_special_tokens=False)
    assert PRUNED.decode(some, skip_special_tokens=False) == before


def test_ids_are_numbered_in_their_old_order():
    texts = [PRUNED.id_to_token(one) for one in range(KEPT)]
    assert texts == [WHOLE.id_to_token(one) for one in IDS]
    assert PRUNED.get_vocab_size() == KEPT


def test_added_tokens_are_what_they_were():
    assert [one.content for one in PRUNED.get_added_tokens_decoder().values()] == list(MARKERS)
    assert ids(PRUNED, "<|im_end|>") == [NUMBER(WHOLE.token_to_id("<|im_end|>"))]


def test_where_merges_are_ignored_whole_words_keep_their_tokens():
    whole = library(SIZE, ignore_merges=True)
    read = ours(whole)
    kept = keep(read.bpe(), falling(4, SIZE), REQUIRED, KEPT).ids
    made = Tokenizer.from_str(json.dumps(pruned(read, Numbering(kept), kept)))
    for word in WORDS:
        before = ids(whole, word)
        if set(before) <= set(kept):
            assert [kept[one] for one in ids(made, word)] == before
        assert back(made, word) == back(whole, word)


def test_merges_written_as_words_are_read_and_written_so():
    tree = json.loads(WHOLE.to_str())
    tree["model"]["merges"] = [" ".join(pair) for pair in tree["model"]["merges"]]
    read = parsed(json.dumps(tree).encode(), "t")
    assert read.merges == OURS.merges
    made = pruned(read, NUMBER, IDS)
    assert all(isinstance(one, str) for one in made["model"]["merges"])
    assert ids(Tokenizer.from_str(json.dumps(made)), TEXT) == ids(PRUNED, TEXT)


def test_templates_and_padding_are_renumbered():
    from tokenizers import processors

    whole = library(SIZE)
    end = whole.token_to_id("<|im_end|>")
    whole.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="$A <|im_end|>", special_tokens=[("<|im_end|>", end)]
            ),
        ]
    )
    whole.enable_padding(pad_id=end, pad_token="<|im_end|>")
    made = Tokenizer.from_str(json.dumps(pruned(ours(whole), NUMBER, IDS)))
    assert made.encode("a").ids[-1] == NUMBER(end)
    assert made.padding["pad_id"] == NUMBER(end)


def changed(**model):
    tree = json.loads(WHOLE.to_str())
    tree["model"] |= model
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (changed(type="Unigram"), "'Unigram', not byte-level BPE"),
        (changed(type="WordPiece"), "'WordPiece', not byte-level BPE"),
        (changed(byte_fallback=True), "SentencePiece"),
        (changed(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (changed(dropout=0.1), "dropout"),
    ],
)
def test_what_is_not_byte_level_bpe_is_refused_by_name(raw, said):
    with pytest.raises(Unsupported, match=said):
        parsed(raw, "tokenizer.json")


def test_bpe_without_bytes_is_refused():
    tree = json.loads(WHOLE.to_str())
    tree["pre_tokenizer"] = {"type": "Whitespace"}
    with pytest.raises(Unsupported, match="pre_tokenizer has no ByteLevel"):
        parsed(json.dumps(tree).encode(), "tokenizer.json")


def merges():
    return json.loads(WHOLE.to_str())["model"]["merges"]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{", "not JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[]", "'model'"),
        (changed(vocab={}), "'vocab'"),
        (changed(vocab={"a": 0, "b": 2}), "0 to 1"),
        (changed(vocab={"a": 0, "b": 0}), "0 to 1"),
        (changed(merges=None), "'merges'"),
        (changed(merges=[["a"]]), "merge 0 is no pair"),
        (changed(merges=[*merges(), merges()[5]]), "stands twice"),
        (changed(merges=[*merges(), ["zq", "qz"]]), "which no id has"),
    ],
)
def test_a_tokenizer_that_contradicts_itself_is_refused(raw, said):
    with pytest.raises(Malformed, match=said):
        parsed(raw, "tokenizer.json")


@pytest.mark.parametrize(
    ("at", "change", "said"),
    [
        (0, {"id": 5}, "expected 696"),
        (3, {"id": 950}, "expected 699"),
        (1, {"content": "<|endoftext|>"}, "one content"),
        (1, {"id": 696}, "one id"),
        (1, {"id": "x"}, "no list of ids"),
    ],
)
def test_added_tokens_that_could_get_other_ids_are_refused(at, change, said):
    tree = json.loads(WHOLE.to_str())
    tree["added_tokens"][at] |= change
    with pytest.raises(Malformed, match=said):
        parsed(json.dumps(tree).encode(), "tokenizer.json")


def test_a_digest_is_of_what_the_tokens_are_and_not_of_how_they_are_written():
    tree = json.loads(WHOLE.to_str())
    again = parsed(json.dumps(tree, indent=3).encode(), "other.json")
    assert again.digest == OURS.digest != ours(library(SIZE - 1)).digest


def test_a_digest_is_not_of_what_was_added():
    tree = json.loads(WHOLE.to_str())
    del tree["added_tokens"][-1]
    assert parsed(json.dumps(tree).encode(), "t").digest == OURS.digest
