"""A chunk of logits has the rows asked for where they are few bytes, and never more than the limit."""

from hypothesis import given
from hypothesis import strategies as st

from megatron_longpo.utils.logits import LIMIT, rows_at_once


@given(st.integers(1, 10**5), st.integers(0, 10**6))
def test_a_chunk_of_logits_stays_under_the_limit(asked: int, words: int) -> None:
    rows = rows_at_once(asked, words)
    assert 1 <= rows <= asked
    assert rows == 1 or rows * words * 4 <= LIMIT
    assert rows == asked or (rows + 1) * words * 4 > LIMIT
