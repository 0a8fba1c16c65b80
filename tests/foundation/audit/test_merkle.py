"""The tree against RFC 9162's recursive definitions, written here as they stand there."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.audit.merkle import EMPTY_ROOT, Range, Tree, leaf_hash, verify_consistency, verify_inclusion

MOST = 70
LEAVES = [leaf_hash(bytes([i])) for i in range(MOST)]
TREE = Tree(LEAVES)


def split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def naive_root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m: int, leaves: list[bytes]) -> tuple[bytes, ...]:
    if len(leaves) == 1:
        return ()
    k = split(len(leaves))
    if m < k:
        return (*naive_path(m, leaves[:k]), naive_root(leaves[k:]))
    return (*naive_path(m - k, leaves[k:]), naive_root(leaves[:k]))


def naive_proof(m: int, leaves: list[bytes], whole: bool = True) -> tuple[bytes, ...]:
    n = len(leaves)
    if m == n:
        return () if whole else (naive_root(leaves),)
    k = split(n)
    if m <= k:
        return (*naive_proof(m, leaves[:k], whole), naive_root(leaves[k:]))
    return (*naive_proof(m - k, leaves[k:], False), naive_root(leaves[:k]))


def test_hashes_are_domain_separated() -> None:
    assert leaf_hash(b"") == bytes.fromhex("6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d")
    assert bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855") == EMPTY_ROOT


@pytest.mark.parametrize("size", range(MOST + 1))
def test_roots_are_those_of_the_definition(size: int) -> None:
    expected = naive_root(LEAVES[:size])
    assert Range().extended(LEAVES[:size]).root() == expected
    assert TREE.root(size) == expected


@given(st.integers(0, MOST), st.integers(0, MOST))
def test_a_range_grows_in_any_steps(first: int, second: int) -> None:
    first, second = sorted((first, second))
    grown = Range().extended(LEAVES[:first]).extended(LEAVES[first:second])
    assert grown == Range().extended(LEAVES[:second])


def test_every_inclusion_proof() -> None:
    for size in range(1, MOST + 1):
        for index in range(size):
            path = TREE.inclusion(index, size)
            assert path == naive_path(index, LEAVES[:size])
            assert verify_inclusion(LEAVES[index], index, size, path, TREE.root(size))


def test_every_consistency_proof() -> None:
    for second in range(1, MOST + 1):
        for first in range(1, second + 1):
            path = TREE.consistency(first, second)
            assert path == naive_proof(first, LEAVES[:second])
            assert verify_consistency(first, second, path, TREE.root(first), TREE.root(second))


indices = st.tuples(st.integers(1, MOST), st.integers(1, MOST)).map(sorted)


@given(indices, st.data())
def test_a_false_inclusion_is_refused(pair: list[int], data: st.DataObject) -> None:
    index, size = pair[0] - 1, pair[1]
    path, root = TREE.inclusion(index, size), TREE.root(size)
    other = data.draw(st.integers(0, MOST - 1).filter(lambda i: i != index))
    assert not verify_inclusion(LEAVES[other], index, size, path, root)
    assert not verify_inclusion(LEAVES[index], other, size, path, root)
    assert not verify_inclusion(LEAVES[index], index, size, (*path, root), root)
    if path:
        broken = data.draw(st.integers(0, len(path) - 1))
        assert not verify_inclusion(LEAVES[index], index, size, (*path[:broken], *path[broken + 1 :]), root)


@given(indices, st.data())
def test_a_false_consistency_is_refused(pair: list[int], data: st.DataObject) -> None:
    first, second = pair
    path, roots = TREE.consistency(first, second), (TREE.root(first), TREE.root(second))
    other = data.draw(st.integers(0, MOST).filter(lambda i: i not in pair))
    assert not verify_consistency(first, second, path, TREE.root(other), roots[1])
    assert not verify_consistency(first, second, path, roots[0], TREE.root(other))
    assert not verify_consistency(first, second, (*path, roots[0]), *roots)
    if path:
        broken = data.draw(st.integers(0, len(path) - 1))
        assert not verify_consistency(first, second, (*path[:broken], *path[broken + 1 :]), *roots)


def test_an_empty_log_is_the_beginning_of_any() -> None:
    assert verify_consistency(0, 5, (), EMPTY_ROOT, TREE.root(5))
    assert not verify_consistency(0, 5, (), TREE.root(1), TREE.root(5))
    assert not verify_consistency(3, 2, (), TREE.root(3), TREE.root(2))


def test_what_is_outside_is_refused() -> None:
    for call in (
        lambda: TREE.root(MOST + 1),
        lambda: TREE.inclusion(5, 5),
        lambda: TREE.consistency(0, 5),
        lambda: Range(3, (EMPTY_ROOT,)),
    ):
        with pytest.raises(ValueError, match=r"outside|peak"):
            call()
