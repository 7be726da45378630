"""Ids by their number: the n-th string of a pattern, without making those before it.

Beside the processor in the flow. Parts of a table that are drawn apart from each other get distinct
ids when each takes its own numbers.
"""

import re
import string
from dataclasses import dataclass
from functools import cached_property
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import numpy as np

from sdv_nvib.errors import InvalidParameterError, ModelFileError

__all__ = ['CountedIds', 'PatternIds', 'check_regex', 'pattern_of_template']

MAX_INDEX = 2**63 - 1
MAX_REPEAT = 16  # of `*` and `+`, as in RDT
MAX_REGEX_LENGTH, MAX_REGEX_COST = 1000, 10**6
CATEGORIES = {
    _parser.CATEGORY_SPACE: r'\s',
    _parser.CATEGORY_NOT_SPACE: r'\S',
    _parser.CATEGORY_DIGIT: r'\d',
    _parser.CATEGORY_NOT_DIGIT: r'\D',
    _parser.CATEGORY_WORD: r'\w',
    _parser.CATEGORY_NOT_WORD: r'\W',
}
PLACEHOLDERS = {'#': '[0-9]', '%': '[1-9]', '$': '[2-9]', '!': '[0-9]?', '@': '[1-9]?'}


@dataclass(frozen=True)
class CountedIds:
    """Whole numbers from `first` on, up to `last`."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """How many there are."""
        return self.last - self.first + 1

    def values(self, start: int, count: int) -> np.ndarray:
        """Numbers `start` to `start + count`, `(count,)` int64."""
        return np.arange(self.first + start, self.first + start + count)


@dataclass(frozen=True)
class _Run:
    """`low` to `high` characters of an alphabet."""

    alphabet: str
    low: int
    high: int

    @cached_property
    def size(self) -> int:
        """How many strings there are."""
        return sum(len(self.alphabet) ** length for length in range(self.low, self.high + 1))

    def texts(self, index: np.ndarray) -> np.ndarray:
        """The strings of these numbers, the shorter ones first, `(N,)`."""
        letters = np.array(list(self.alphabet), dtype=object)
        texts = np.full(len(index), '', dtype=object)
        places = np.arange(len(index))
        for length in range(self.low, self.high + 1):
            block = len(letters) ** length
            is_here = index < min(block, MAX_INDEX)
            digits, text = index[is_here], texts[places[is_here]]
            for _ in range(length):
                text = letters[digits % len(letters)] + text
                digits = digits // len(letters)
            texts[places[is_here]] = text
            if is_here.all():
                break
            places, index = places[~is_here], index[~is_here] - block
        return texts


class PatternIds:
    """The distinct strings of a regular expression, by number.

    A sequence of runs of characters is a number with one digit per run. Two numbers give the same
    string only where it can be cut into runs in two ways; such patterns are refused.

    Args:
        pattern: Literals, classes, `.` and groups; repeats of characters, and of groups where the
            number of times is fixed. As in RDT, `*` and `+` are at most 16 times.
        where: Table and column, for errors.
        as_number: Whether the strings become numbers, in which leading zeros are lost.

    Attributes:
        size: How many strings there are.

    Raises:
        InvalidParameterError: The pattern is of another kind, or ambiguous.

    Examples:
        >>> ids = PatternIds('[A-Z]{2}-[0-9]{3}', "Table 't', column 'id'")
        >>> ids.size
        676000
        >>> ids.values(1_000, 2).tolist()
        ['AB-000', 'AB-001']
    """

    def __init__(self, pattern: str, where: str, as_number: bool = False) -> None:
        self.pattern = pattern
        self._runs = list(_runs(_parser.parse(pattern), pattern, where))
        self.size = 1
        for run in self._runs:
            self.size *= run.size
        if self._is_ambiguous(as_number):
            raise InvalidParameterError(
                f'{where}: ids of parts must follow a format in which no two numbers give the '
                f'same id, received {pattern!r}. Give a regex_format of fixed length in the '
                'metadata, and fit again.'
            )

    def _is_ambiguous(self, as_number: bool) -> bool:
        """Whether a string may be cut into runs in two ways.

        It cannot where at most one run varies in length, or where no run can be followed by one of
        its own characters: reading from the left then says where every run ends.
        """
        varying = [place for place, run in enumerate(self._runs) if run.low != run.high]
        if as_number and varying and '0' in self._runs[0].alphabet:
            return True
        if len(varying) <= 1:
            return False
        for place in varying:
            for run in self._runs[place + 1 :]:
                if set(run.alphabet) & set(self._runs[place].alphabet):
                    return True
                if run.low:
                    break
        return False

    def values(self, start: int, count: int) -> np.ndarray:
        """Strings number `start` to `start + count`, `(count,)` objects."""
        rest = np.arange(start, start + count)
        texts = np.full(count, '', dtype=object)
        for run in reversed(self._runs):
            index = rest % run.size if run.size <= MAX_INDEX else rest
            rest = rest // run.size if run.size <= MAX_INDEX else np.zeros_like(rest)
            texts = run.texts(index) + texts
        return texts


def _runs(parsed: Any, pattern: str, where: str) -> list[_Run]:
    """A parsed pattern as runs of characters."""
    runs: list[_Run] = []
    for kind, value in parsed:
        if kind == _parser.AT:
            continue
        if kind == _parser.SUBPATTERN:
            runs += _runs(value[3], pattern, where)
        elif kind == _parser.MAX_REPEAT:
            low, high, repeated = value
            high = MAX_REPEAT if high == _parser.MAXREPEAT else high
            inner = _runs(repeated, pattern, where)
            if len(inner) == 1 and inner[0].low == inner[0].high == 1:
                runs.append(_Run(inner[0].alphabet, low, high))
            elif low == high:
                runs += inner * low
            else:
                raise _unsupported(pattern, where)
        else:
            runs.append(_Run(_alphabet(kind, value, pattern, where), 1, 1))
    return runs


def _alphabet(kind: Any, value: Any, pattern: str, where: str) -> str:
    """The distinct characters that one place of a pattern may have."""
    if kind == _parser.LITERAL:
        return chr(value)
    if kind == _parser.RANGE:
        return ''.join(map(chr, range(value[0], value[1] + 1)))
    if kind == _parser.ANY:
        return string.printable
    if kind == _parser.CATEGORY:
        return ''.join(re.findall(CATEGORIES[value], string.printable))
    if kind == _parser.IN and value[0][0] != _parser.NEGATE:
        characters = [_alphabet(one, of, pattern, where) for one, of in value]
        return ''.join(dict.fromkeys(''.join(characters)))
    raise _unsupported(pattern, where)


def _unsupported(pattern: str, where: str) -> InvalidParameterError:
    return InvalidParameterError(
        f'{where}: ids of parts must follow a format of literals, classes and repeats, received '
        f'{pattern!r}. Give a simpler regex_format in the metadata, and fit again.'
    )


def pattern_of_template(template: str, letters: str) -> str:
    """The regular expression of what Faker's `bothify` makes of a template.

    Examples:
        >>> pattern_of_template('id??#', 'ab')
        'id[ab][ab][0-9]'
    """
    places = {**PLACEHOLDERS, '?': f'[{re.escape(letters)}]'}
    return ''.join(places.get(character, re.escape(character)) for character in template)


def check_regex(regex: Any) -> None:
    """Refuse a regular expression whose texts would take RDT long to begin with.

    Raises:
        ModelFileError: It is too long, or repeats too much.
    """
    if not isinstance(regex, str) or len(regex) > MAX_REGEX_LENGTH:
        raise ModelFileError(
            f'A regex_format must be text of at most {MAX_REGEX_LENGTH} characters, received '
            f'{str(regex)[:80]!r}.'
        )
    if _regex_cost(_parser.parse(regex)) > MAX_REGEX_COST:
        raise ModelFileError(
            f'A regex_format must not repeat its parts so often, received {regex[:80]!r}.'
        )


def _regex_cost(parsed: Any) -> int:
    """About how many parts RDT makes for a parsed regular expression before the first text."""
    cost = 0
    for operation, arguments in parsed:
        if operation in (_parser.MAX_REPEAT, _parser.MIN_REPEAT):
            _, most, inner = arguments
            most = MAX_REPEAT if most == _parser.MAXREPEAT else most
            cost += (int(most) + 1) ** 2 * _regex_cost(inner)
        elif operation == _parser.SUBPATTERN:
            cost += _regex_cost(arguments[3])
        else:
            cost += 1
    return cost
