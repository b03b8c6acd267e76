"""Words, offsets and windows, on tokenizers of three kinds that are built here."""

from __future__ import annotations

import string
import unicodedata
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from harness.encoding import encoded_query, maximum_tokens, overlap
from harness.tagging import Word

_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation


def bert():
    """WordPiece; lower case, accents stripped: combining marks are in no token."""
    pieces = (f"##{character}" for character in string.ascii_lowercase + string.digits)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "bus", *_CHARACTERS, *pieces]
    tokenizer = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=specials)
    return tokenizer


def roberta(*, trim=True):
    """Byte-level BPE: a character may be several tokens, a word begins with its space."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=trim)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=trim)
    return tokenizer


def xlm_roberta(*, whole_spaces=False):
    """Unigram with Metaspace; NFKC makes several characters of one."""
    scored = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        ("▁", -2.0),
        ("▁bus", -1.0),
        *((c, -3.0) for c in _CHARACTERS),
    ]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    metaspace = pre_tokenizers.Metaspace()
    splits = [pre_tokenizers.WhitespaceSplit(), metaspace]
    tokenizer.pre_tokenizer = metaspace if whole_spaces else pre_tokenizers.Sequence(splits)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


KINDS = {
    "bert": bert,
    "roberta": roberta,
    "roberta, offsets with spaces": lambda: roberta(trim=False),
    "xlm-roberta": xlm_roberta,
    "xlm-roberta, spaces kept": lambda: xlm_roberta(whole_spaces=True),
}
WIDTHS = (3, 4, 5, 8, 16)


@cache
def tokenizer_of(kind, width=None):
    """One tokenizer of each kind and window width; building them takes longer than using them."""
    tokenizer = KINDS[kind]()
    if width is not None:
        tokenizer.enable_truncation(width, stride=overlap(width))
    return tokenizer


def encode(kind, text, width=None):
    """Encode as `Candidate` does."""
    encoding = tokenizer_of(kind, width).encode(text)
    return encoded_query(text, [encoding, *encoding.overflowing])


def words_of(kind, text):
    """The texts of the words."""
    return [text[word.start : word.end] for word in encode(kind, text).words]


# Scripts, marks, ligatures, emoji, white space of several widths: what goes wrong goes wrong here.
awkward = st.text(
    "ab.- \n\t\u0301\u0327e\u00e9\u0130\u00df\ufb01\u00bd\u200b\u00a0\u3000\u4e2d\U0001f600\u0915\u093f\u094d",
    max_size=30,
)
any_text = st.one_of(st.text(max_size=30), awkward, st.text("bus AC-7", max_size=60))


@given(any_text, st.sampled_from(sorted(KINDS)))
@example("cafe\u0301 bus", "bert")
@example("  \u00a0bus\u3000", "roberta, offsets with spaces")
def test_words_are_real_text_in_order(text, kind):
    """For any Unicode: a word lies inside the text, has no outer white space, and follows the word before it."""
    words = encode(kind, text).words
    for word in words:
        assert 0 <= word.start < word.end <= len(text)
        assert text[word.start : word.end].strip() == text[word.start : word.end]
    assert all(left.end <= right.start for left, right in pairwise(words))


@given(any_text, st.sampled_from(sorted(KINDS)))
@example("cafe\u0301", "bert")
@example("e\u0301\u0327", "bert")
def test_combining_marks_stay_with_their_word(text, kind):
    """A mark that follows a word is in that word, or in the next one if the tokenizer makes it one; never outside."""
    words = encode(kind, text).words
    begins = {word.start for word in words}
    for word in words:
        if word.end < len(text) and unicodedata.category(text[word.end]) == "Mn":
            assert word.end in begins


@given(any_text, st.sampled_from(sorted(KINDS)), st.sampled_from(WIDTHS))
@example("0:", "roberta", 3)
@example("bus " * 30, "bert", 8)
@example("b" * 40, "xlm-roberta", 5)
def test_windows_lose_and_repeat_nothing(text, kind, width):
    """Cut into windows, a text has the words it has in one piece, each owned by exactly one window."""
    whole, cut = encode(kind, text), encode(kind, text, width)
    assert list(cut.words) == list(whole.words)
    assert sorted(index for window in cut.windows for index in window.words) == list(range(len(whole.words)))
    for window in cut.windows:
        assert len(window.input_ids) == len(window.token_type_ids) <= width
        assert len(window.heads) == len(window.words)
        assert all(0 <= head < len(window.input_ids) for head in window.heads)


@given(any_text, st.sampled_from(sorted(KINDS)), st.sampled_from(WIDTHS))
@example("bus AC-7 " * 9, "bert", 8)
def test_a_windows_head_is_the_words_first_subword(text, kind, width):
    """The token that answers for a word is the same in windows as in one piece: the word's first."""
    whole, cut = encode(kind, text), encode(kind, text, width)
    expected = {
        index: whole.windows[0].input_ids[head]
        for head, index in zip(whole.windows[0].heads, whole.windows[0].words, strict=True)
    }
    for window in cut.windows:
        for head, index in zip(window.heads, window.words, strict=True):
            assert window.input_ids[head] == expected[index]


def test_words_at_an_inner_edge_are_left_to_the_other_window():
    """A word in two windows is answered where it has more context: of the four shared, each window has two."""
    windows = encode("bert", "bus " * 40, 16).windows
    assert len(windows) > 2
    for left, right in pairwise(windows):
        last, first = left.heads[-1], right.heads[0]
        assert last == 12  # 14 is the last place before [SEP]
        assert first == 3  # 1 is the first place after [CLS]
        assert left.words[-1] + 1 == right.words[0]


def test_a_short_text_is_one_window():
    """A text that fits is not cut."""
    assert len(encode("bert", "bus from a to b", 16).windows) == 1


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("bert", "AC bus, 7:30", ["AC", "bus", ",", "7", ":", "30"]),
        ("bert", "cafe\u0301 au lait", ["cafe\u0301", "au", "lait"]),
        ("bert", "\u0301bus", ["bus"]),  # a mark before any word belongs to none
        ("bert", "\u4e2d\u56fdbus", ["\u4e2d", "\u56fd", "bus"]),
        ("roberta", "AC bus  now", ["AC", "bus", "now"]),
        ("roberta, offsets with spaces", "AC bus  now", ["AC", "bus", "now"]),
        ("roberta", "na\u00efve \U0001f600", ["na\u00efve", "\U0001f600"]),
        ("xlm-roberta", " AC  bus ", ["AC", "bus"]),
        ("xlm-roberta, spaces kept", " AC  bus ", ["AC", "bus"]),
        ("xlm-roberta", "\ufb01ne \u00bd", ["\ufb01ne", "\u00bd"]),
    ],
)
def test_words_of_known_texts(kind, text, words):
    """Each kind of tokenizer cuts words where a reader would, spaces left out, marks kept."""
    assert words_of(kind, text) == words


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("text", ["", " ", "\n\t \u00a0\u3000"])
def test_white_space_has_no_words(kind, text):
    """Nothing, and nothing but white space, have no words, and still one window to run."""
    query = encode(kind, text)
    assert query.words == []
    assert [list(window.words) for window in query.windows] == [[]]


def test_words_are_pairs_of_code_points():
    """Offsets count code points, not bytes or UTF-16 units."""
    assert encode("bert", "\U0001f600 bus").words[-1] == Word(2, 5)


@pytest.mark.parametrize(
    ("config", "tokenizer_config", "expected"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, {}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512}, {"model_max_length": 128}, 128),
        ({"model_type": "bert", "max_position_embeddings": 64}, {"model_max_length": 512}, 64),
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 3}, {}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512}, {"model_max_length": int(1e30)}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512}, {"model_max_length": 1e30}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, {}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514}, {}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": None}, {}, 512),
        (
            {"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1},
            {"model_max_length": 512},
            512,
        ),
        ({"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 0}, {}, 513),
        ({"model_type": "data2vec-text", "max_position_embeddings": 514, "pad_token_id": 1}, {}, 512),
        ({"model_type": "xlm-roberta-xl", "max_position_embeddings": 514, "pad_token_id": 1}, {}, 512),
        ({"model_type": "deberta-v2", "max_position_embeddings": -1}, {}, 512),
        ({}, {}, 512),
        ({}, {"model_max_length": 2048}, 2048),
        ({"max_position_embeddings": "many"}, {"model_max_length": None}, 512),
    ],
)
def test_maximum_tokens(config, tokenizer_config, expected):
    """The shortest limit counts, without the rows of the position table that RoBERTa's numbering never reaches."""
    assert maximum_tokens(config, tokenizer_config) == expected


@pytest.mark.parametrize(
    "model_type",
    [
        "camembert", "data2vec-text", "esm", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
        "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    ],
)  # fmt: skip
def test_models_that_number_like_roberta(model_type):
    """Each of transformers' models that leaves the first rows of the position table unused is known as one."""
    assert maximum_tokens({"model_type": model_type, "max_position_embeddings": 514, "pad_token_id": 1}, {}) == 512


def test_roberta_positions_really_end_there():
    """A RoBERTa reads the tokens that `maximum_tokens` promises, and one more is too many."""
    import torch
    from transformers import RobertaConfig, RobertaForTokenClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=20, max_position_embeddings=20, **sizes)
    model = RobertaForTokenClassification(config).eval()
    longest = maximum_tokens(config.to_dict(), {})
    with torch.inference_mode():
        assert model(torch.full((1, longest), 5)).logits.shape[1] == longest
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, longest + 1), 5))
