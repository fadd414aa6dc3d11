"""A small pruned vocabulary for tests, and ids that stand for each other in it."""

from serve.translate import Vocabulary

SIZE = 100
# Original ids in the order of the served ones: not monotonous, the first and the last of all kept.
KEPT = (90, 3, 50, 7, 0, 99, 12, 65, 33, 8)
GONE = 51
VOCABULARY = Vocabulary.of(KEPT, SIZE)


def served(original: int) -> int:
    return KEPT.index(original)
