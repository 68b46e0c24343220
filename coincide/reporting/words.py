"""Distinctive words of clusters, as suggested names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer, TfidfTransformer

UNSPACED = "\u3040-\u30ff\u3400-\u9fff"  # Chinese and Japanese: no spaces, so that words are pairs of characters
WORD = re.compile(rf"(?P<unspaced>[{UNSPACED}]+)|[^\W\d_{UNSPACED}](?:[^\W{UNSPACED}]|['’-](?=\w))*")
LONGEST_WORD = 40  # characters; longer runs are no words, such as encoded data
SHORTEST_WORD = 2


def distinctive_words(clusters: Iterable[Sequence[str]], *, count: int = 6) -> list[list[str]]:
    """Words that tell each cluster from the others, by TF-IDF.

    The frequency of a word in a cluster is the number of its texts that have the word, so that one long text does not
    decide. A word of a single text counts only if no word of the cluster is in two texts.

    Args:
        clusters: the texts of each cluster; iterated once.
        count: largest number of words per cluster.

    Returns:
        one list of words per cluster, the most distinctive first; empty for a cluster without words.
    """
    # sklearn refuses a vocabulary without words
    vectorizer = CountVectorizer(analyzer=lambda texts: ["", *_words_of_texts(texts)], dtype=np.int32)
    counts = vectorizer.fit_transform(clusters).sorted_indices()  # the order of the weights
    weights = TfidfTransformer(norm=None, sublinear_tf=True).fit_transform(counts)
    vocabulary = vectorizer.get_feature_names_out()
    words = []
    for start, end in zip(counts.indptr[:-1], counts.indptr[1:]):
        columns, frequency, weight = counts.indices[start:end], counts.data[start:end], weights.data[start:end]
        is_candidate = vocabulary[columns] != ""
        if (is_candidate & (frequency > 1)).any():
            is_candidate &= frequency > 1
        columns, weight = columns[is_candidate], weight[is_candidate]
        best = np.lexsort((columns, -weight))[:count]  # ties in alphabetical order
        words.append([str(vocabulary[column]) for column in columns[best]])
    return words


def _words_of_texts(texts):
    """Every word of every text, once per text."""
    for text in texts:
        yield from set(_words(text))


def _words(text: str) -> Iterator[str]:
    for match in WORD.finditer(text.lower()):
        word = match[0]
        if match["unspaced"]:
            yield from (word[i : i + 2] for i in range(len(word) - 1))
        elif SHORTEST_WORD <= len(word) <= LONGEST_WORD and word not in ENGLISH_STOP_WORDS:
            yield word
