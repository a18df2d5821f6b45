"""A fresh probe: can a classifier that never saw training tell the policy from the teacher?

It is a logistic regression on the words of a text and on sequences of up to five of them. It gets
the teacher's and the policy's text for the same question and says which one is the teacher's,
so its accuracy can be compared with the discriminator's: 0.5 if the two cannot be told apart. It is
trained on one half of the questions and tested on the other half.

It sees no image. It notices style, such as wording, layout and length, and of errors only those
that make some phrase more frequent in one side's texts than in the other's. A wrong sum can be such
a phrase; a wrong digit in a caption is not, because it is right for another image.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from verl_prism.measures.text import tokens
from verl_prism.report.intervals import UNDEFINED, Interval, rate_interval

FEATURES = 2**18  # sequences of words are hashed into this many features
LONGEST_SEQUENCE = 5  # tokens: `3 + 5 = 8`
CHUNK_PAIRS = 256  # texts in memory at a time
INVERSE_PENALTY = 10.0  # on features of mean norm 1
MIN_QUESTIONS = 4  # two to train on, two to test on

TextPair = tuple[str, str]  # the teacher's text and another one


def difference_features(pairs: Iterable[TextPair]) -> csr_matrix:
    """Return features[P, F]: those of the first text of each pair minus those of the second.

    A feature of a text is log(1 + number of occurrences) of a sequence of one to five words,
    punctuation marks and line ends. Equal texts give a row of zeros.
    """
    vectorizer = HashingVectorizer(
        tokenizer=tokens,
        token_pattern=None,
        lowercase=False,
        ngram_range=(1, LONGEST_SEQUENCE),
        n_features=FEATURES,
        alternate_sign=False,
        norm=None,
        dtype=np.float32,
    )
    chunks = [csr_matrix((0, FEATURES), dtype=np.float32)]
    for chunk in _chunks(pairs):
        first, second = zip(*chunk, strict=True)
        chunks.append(vectorizer.transform(first).log1p() - vectorizer.transform(second).log1p())
    return vstack(chunks, format="csr")


def probe_accuracy(features: csr_matrix, questions: Sequence[int], seed: int) -> Interval:
    """Return the accuracy of a probe on questions that it was not trained on; a tie counts half.

    features[P, F]: of each pair, as in `difference_features`. questions[P]: the pair's question.

    The roles of the halves are not exchanged to use both for testing: without a difference to
    find, both results would err in the same direction, and the interval would be too narrow.
    """
    numbers = np.asarray(questions)
    distinct = np.unique(numbers)
    if len(distinct) < MIN_QUESTIONS:
        return UNDEFINED
    drawn = np.random.default_rng(seed).permutation(distinct)
    train = np.isin(numbers, drawn[: len(drawn) // 2])
    scores = _fit(features[train], features[~train])
    values = np.where(scores == 0, 0.5, scores > 0)
    tested = numbers[~train]
    return rate_interval([values[tested == question] for question in np.unique(tested)])


def shuffled(features: csr_matrix, questions: Sequence[int], seed: int) -> csr_matrix:
    """Return features as if teacher and policy changed places in half of the questions, at random.

    A probe of them is a control: it has nothing to find.
    """
    distinct, numbers = np.unique(np.asarray(questions), return_inverse=True)
    signs = np.random.default_rng((seed, 1)).choice([-1.0, 1.0], size=len(distinct))
    return features.multiply(signs[numbers][:, None].astype(np.float32)).tocsr()


def _fit(train: csr_matrix, test: csr_matrix) -> np.ndarray:
    """Return scores[T] of test[T, F], positive where the first text is taken for the teacher's.

    Without an intercept a pair and its mirror image have the same loss. Every second pair is
    mirrored, because the regression needs two classes.
    """
    known = np.unique(train.indices)
    train, test = train[:, known], test[:, known]  # the weights of other features stay zero
    scale = _mean_norm(train)
    if scale == 0:
        return np.zeros(test.shape[0])
    signs = np.where(np.arange(train.shape[0]) % 2, -1, 1)
    model = LogisticRegression(C=INVERSE_PENALTY, fit_intercept=False, max_iter=1000)
    model.fit(train.multiply(signs[:, None] / scale).tocsr(), signs)
    return model.decision_function(test / scale)


def _mean_norm(features: csr_matrix) -> float:
    return float(np.sqrt(features.multiply(features).sum(axis=1)).mean())


def _chunks(pairs: Iterable[TextPair]) -> Iterator[list[TextPair]]:
    iterator = iter(pairs)
    while chunk := list(islice(iterator, CHUNK_PAIRS)):
        yield chunk
