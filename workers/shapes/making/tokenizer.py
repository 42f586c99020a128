"""Build the world's CLIP tokenizer: its words are one token each, other text is bytes."""

from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from workers.shapes.vocabulary import WORDS

MAX_TOKENS = 16
"""Length of a padded prompt, and the number of positions of the text encoder."""
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
TokenPair = tuple[str, str]


def build_tokenizer(words: tuple[str, ...] = WORDS) -> CLIPTokenizer:
    """Return a CLIP tokenizer that pads, as Stable Diffusion 1 does, with its end-of-text token."""
    merges = learn_merges(words)
    # The 256 characters by which byte-level encoding writes bytes, printable Latin-1 first, as in
    # GPT-2.
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(symbol + WORD_END for symbol in alphabet)]
    tokens += [left + right for left, right in merges]
    tokens += [START, END]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,  # type: ignore[arg-type]  # pairs are what it passes on, whatever it says
        model_max_length=MAX_TOKENS,
    )


def learn_merges(words: tuple[str, ...]) -> list[TokenPair]:
    """Return byte-pair merges, in order of priority, that make each word one token.

    New merges rank after those already there, so they never change how an earlier word is split.
    """
    merges: list[TokenPair] = []
    for word in words:
        while len(symbols := _split(word, merges)) > 1:
            merges.append((symbols[0], symbols[1]))
    return merges


def _split(word: str, merges: list[TokenPair]) -> list[str]:
    """Split a word as byte-pair encoding does: apply the first merge in rank until none applies."""
    symbols = [*word[:-1], word[-1] + WORD_END]
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
        first = min(pairs, key=ranks.__getitem__)
        joined: list[str] = []
        for symbol in symbols:
            if joined and (joined[-1], symbol) == first:
                joined[-1] += symbol
            else:
                joined.append(symbol)
        symbols = joined
    return symbols
