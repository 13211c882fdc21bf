"""Tokenizers from the metadata of GGUF files: byte-level BPE, SentencePiece BPE and WordPiece.

The files hold a vocabulary and name a kind and a way of splitting words; what is meant by the names is known from the
models that use them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from llmdpd_jax.errors import UserError

# Values of tokenizer.ggml.token_type. Control and user-defined tokens are matched as a whole.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of WordPiece vocabularies
SPACE = "▁"  # stands for a space in SentencePiece, and for the start of a word in WordPiece vocabularies


@dataclass(frozen=True)
class Splitting:
    """How a family of byte-level BPE tokenizers cuts text into words."""

    pattern: str | None = None  # words; None: those of GPT-2
    single_digits: bool = False  # cut every digit off, before GPT-2's words
    compose: bool = False  # NFC first
    whole_words: bool = False  # a word that is a token is not built from its parts
    starts: bool = False  # the beginning-of-text token is put before the text unless the file says otherwise


def _words(digits: str) -> str:
    """The words of Llama 3, Qwen 2 and DBRX, which differ in how many digits make one."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


SPLITTINGS = {
    "gpt-2": Splitting(),
    "olmo": Splitting(compose=True),
    "smollm": Splitting(single_digits=True),
    "llama-bpe": Splitting(_words(r"\p{N}{1,3}"), whole_words=True, starts=True),
    "dbrx": Splitting(_words(r"\p{N}{1,3}")),
    "qwen2": Splitting(_words(r"\p{N}"), compose=True),
}


def make_tokenizer(metadata) -> Tokenizer:
    """The tokenizer that a file's `gguf.Metadata` describe.

    Raises: UserError if it is of a kind or splitting that is not known here.
    """
    kind = metadata["tokenizer.ggml.model"]
    makers = {"gpt2": _byte_level, "llama": _sentence_piece, "bert": _word_piece}
    if kind not in makers:
        raise UserError(
            f"{metadata.path}: tokenizer {kind!r} is not supported, only these are: {', '.join(makers)}; "
            "use the model's folder of safetensors instead"
        )
    return makers[kind](metadata)


def _byte_level(metadata) -> Tokenizer:
    name = metadata["tokenizer.ggml.pre"]
    if name not in SPLITTINGS:
        raise UserError(
            f"{metadata.path}: tokenizer 'gpt2' with splitting {name!r} is not supported, only with "
            f"{', '.join(SPLITTINGS)}; use the model's folder of safetensors instead"
        )
    splitting = SPLITTINGS[name]
    vocabulary = _vocabulary(metadata)
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.whole_words))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if splitting.single_digits else []
    if splitting.pattern is not None:
        steps = [pre_tokenizers.Split(Regex(splitting.pattern), behavior="isolated")]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.pattern is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_])
    if splitting.compose:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(_whole_tokens(metadata))
    _add_ends(tokenizer, metadata, starts=splitting.starts)
    return tokenizer


def _sentence_piece(metadata) -> Tokenizer:
    vocabulary = _vocabulary(metadata)
    types, scores = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.scores"]
    ranked = {word: score for (word, kind, score) in zip(vocabulary, types, scores, strict=True) if kind == NORMAL}
    unknown = metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.unknown_token_id"]]
    model = models.BPE(
        vocab=vocabulary, merges=list(_merges(ranked)), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    steps = [normalizers.Replace(" ", SPACE)]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens(_whole_tokens(metadata))
    _add_ends(tokenizer, metadata, starts=True)
    return tokenizer


def _merges(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """The pairs that byte-pair encoding joins, best first: every way to cut a token in two, by the token's score."""
    for word in sorted(scores, key=scores.__getitem__, reverse=True):
        for cut in range(len(word) - 1, 0, -1):
            if word[:cut] in scores and word[cut:] in scores:
                yield word[:cut], word[cut:]


def _word_piece(metadata) -> Tokenizer:
    words = metadata["tokenizer.ggml.tokens"]
    vocabulary = {_hashed(word): token for token, word in enumerate(words)}
    for name in ("[CLS]", "[SEP]", "[UNK]"):
        if name not in vocabulary:
            raise UserError(f"{metadata.path}: a WordPiece vocabulary without {name} is not supported")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    # The files do not say whether case matters; a vocabulary without capitals does.
    cased = any(word != word.lower() for word in words if not _is_special(word))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    special = [AddedToken(name, special=True, normalized=False) for name in SPECIAL if name in vocabulary]
    tokenizer.add_special_tokens(special)
    return tokenizer


def _hashed(word: str) -> str:
    """A WordPiece token as usually written: these files mark starts of words, others the continuations by "##"."""
    if word.startswith(SPACE):
        return word[1:]
    return word if _is_special(word) else f"##{word}"


def _is_special(word: str) -> bool:
    return len(word) > 2 and word[0] == "[" and word[-1] == "]"


def _vocabulary(metadata) -> dict[str, int]:
    return {word: token for token, word in enumerate(metadata["tokenizer.ggml.tokens"])}


def _whole_tokens(metadata) -> Sequence[AddedToken]:
    return [
        AddedToken(word, special=kind == CONTROL, normalized=False)
        for word, kind in zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]


def _add_ends(tokenizer: Tokenizer, metadata, starts: bool) -> None:
    """Puts the tokens for beginning and end of text around it if the file asks for them."""
    words = metadata["tokenizer.ggml.tokens"]
    template, special = ["$A"], []
    for name, default in (("bos", starts), ("eos", False)):
        if metadata.get(f"tokenizer.ggml.add_{name}_token", default):
            token = metadata[f"tokenizer.ggml.{name}_token_id"]
            special.append((words[token], token))
            template.insert(0 if name == "bos" else len(template), words[token])
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
