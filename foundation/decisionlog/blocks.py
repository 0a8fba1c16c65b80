"""A closed segment's form on disk: blocks of whole lines, each compressed for itself, and an index of them beside it.

`<id>.jsonl.gz` is one gzip member (RFC 1952 §2.2) after another, so that every gzip reads it as one file, and one block
is read without the others. `<id>.idx` says for each block which IDs are in it, from the least to the greatest, and
where it stands; and which streams were cut in this segment. An index that is missing, damaged or of another file is
made anew from the segment: it is a short cut, never a record.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from foundation.files import SECRET_MODE, write_atomic

INDEX_SUFFIX = ".idx"
MIN_BLOCK_BYTES = 64 << 10
MAX_BLOCKS = 1024  # in one segment, about: a larger one has larger blocks
MAX_INDEX_BYTES = 16 << 20
_MAGIC = b"SPIDX\0\0\1"
_HEADER = struct.Struct(">8sQII")  # magic, the segment's size, blocks, cuts
_BLOCK = struct.Struct(">14s14sQI")
_CUT = struct.Struct(">14s14s")
_DIGEST_BYTES = 32
_FAST = 1  # gzip's level: decisions compress well, and the time is the gateway's
_CHUNK = 1 << 20
_GZIP = 31  # zlib's window bits for one gzip member
_ID = re.compile(rb'^\{"id":"d-([0-9a-f]{28})"', re.MULTILINE)
_CUT_LINE = re.compile(rb'^\{"id":"d-([0-9a-f]{28})"[^\n]*,"cut":"d-([0-9a-f]{28})"\}$', re.MULTILINE)

Rest = Callable[[], None]
"""Called after each block of long work, by the thread that does it."""


def go_on() -> None:
    """No rest."""


class Block(NamedTuple):
    """Where a block stands in the compressed file, and the least and greatest ID in it, in 14 octets each."""

    least: bytes
    greatest: bytes
    offset: int
    length: int


class Cut(NamedTuple):
    """The decision by which a stream ran, and the one that ended it."""

    permit: bytes
    decision: bytes


@dataclass(frozen=True, slots=True)
class Index:
    """What is known of a closed segment. `size` is the compressed file's, in bytes."""

    size: int
    blocks: tuple[Block, ...]
    cuts: tuple[Cut, ...]

    def holding(self, decision_id: str) -> Iterator[Block]:
        """The blocks in which this ID may be."""
        wanted = raw_id(decision_id)
        return (block for block in self.blocks if block.least <= wanted <= block.greatest)


def raw_id(decision_id: str) -> bytes:
    """The 14 octets of an ID."""
    return bytes.fromhex(decision_id.removeprefix("d-"))


def text_id(raw: bytes) -> str:
    return f"d-{raw.hex()}"


def index_path(segment: Path) -> Path:
    """Where the index of a segment stands, open or closed."""
    return segment.with_name(segment.name.partition(".")[0] + INDEX_SUFFIX)


def pack(lines: BinaryIO, size: int, packed: BinaryIO, rest: Rest = go_on) -> Index:
    """Write the `size` bytes of whole lines in `lines` as blocks to `packed`."""
    most = max(MIN_BLOCK_BYTES, size // MAX_BLOCKS)
    return _indexed(_pack_blocks(lines, most, packed), rest)


def read_index(segment: Path) -> Index:
    """The index of the closed segment, made anew where there is none of this file. Raises `OSError` and `EOFError`."""
    size = segment.stat().st_size
    try:
        found = _parse(index_path(segment).read_bytes()[:MAX_INDEX_BYTES])
    except FileNotFoundError:
        found = None
    if found is not None and found.size == size:
        return found
    made = rebuild_index(segment)
    with suppress(OSError):  # a disk that takes no more: the next look-up makes it again
        write_index(segment, made)
    return made


def may_have_cuts(segment: Path) -> bool:
    """Whether streams were cut in the closed segment, by a glance at the head of its index: most have none. Raises
    `OSError`."""
    try:
        with index_path(segment).open("rb") as file:
            magic, size, _, cuts = _HEADER.unpack(file.read(_HEADER.size))
    except (FileNotFoundError, struct.error):
        return True
    return bool(cuts > 0 or magic != _MAGIC or size != segment.stat().st_size)


def rebuild_index(segment: Path) -> Index:
    """The index of a closed segment, from its content."""
    with segment.open("rb") as packed:
        return _indexed(_members(packed))


def write_index(segment: Path, index: Index) -> None:
    """Raises `OSError`."""
    head = _HEADER.pack(_MAGIC, index.size, len(index.blocks), len(index.cuts))
    body = b"".join([head, *(_BLOCK.pack(*block) for block in index.blocks), *(_CUT.pack(*cut) for cut in index.cuts)])
    write_atomic(index_path(segment), body + hashlib.sha256(body).digest(), mode=SECRET_MODE)


def read_block(segment: Path, block: Block) -> bytes:
    """The lines of a block. Raises `OSError` and `EOFError`."""
    with segment.open("rb") as packed:
        packed.seek(block.offset)
        try:
            return gzip.decompress(packed.read(block.length))
        except zlib.error as error:
            raise EOFError(f"a damaged block: {error}") from error


def pieces(read: Callable[[int], bytes], most: int) -> Iterator[bytes]:
    """The whole lines that `read` gives, `most` bytes at a time; what follows the last one is left out."""
    torn = b""
    while chunk := read(most):
        content, torn = _whole_lines(torn + chunk)
        if content:
            yield content


def _pack_blocks(lines: BinaryIO, most: int, packed: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    for content in pieces(lines.read, most):
        member = gzip.compress(content, _FAST, mtime=0)
        packed.write(member)
        yield offset, len(member), content
        offset += len(member)


def _whole_lines(data: bytes) -> tuple[bytes, bytes]:
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _members(packed: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Offset, length and content of each gzip member."""
    offset, pending = 0, packed.read(_CHUNK)
    while pending:
        unpack, parts, length = zlib.decompressobj(_GZIP), [], 0
        while not unpack.eof:
            if not pending:
                raise EOFError("the segment is cut short")
            try:
                parts.append(unpack.decompress(pending))
            except zlib.error as error:
                raise EOFError(f"a damaged block: {error}") from error
            length += len(pending)
            pending = unpack.unused_data if unpack.eof else packed.read(_CHUNK)
        length -= len(pending)
        yield offset, length, b"".join(parts)
        offset += length
        pending = pending or packed.read(_CHUNK)


def _indexed(blocks: Iterable[tuple[int, int, bytes]], rest: Rest = go_on) -> Index:
    found, cuts, size = [], list[Cut](), 0
    for offset, length, content in blocks:
        ids = _ID.findall(content)
        if ids:
            found.append(Block(bytes.fromhex(min(ids).decode()), bytes.fromhex(max(ids).decode()), offset, length))
        cuts += [Cut(bytes.fromhex(permit.decode()), bytes.fromhex(by.decode())) for by, permit in _cut_lines(content)]
        size = offset + length
        rest()
    return Index(size, tuple(found), tuple(cuts))


def _cut_lines(content: bytes) -> list[tuple[bytes, bytes]]:
    return _CUT_LINE.findall(content) if b',"cut":"' in content else []


def _parse(raw: bytes) -> Index | None:
    """The index in `raw`; None when it is not a whole one."""
    body = raw[:-_DIGEST_BYTES]
    if len(body) < _HEADER.size or hashlib.sha256(body).digest() != raw[-_DIGEST_BYTES:]:
        return None
    magic, size, blocks, cuts = _HEADER.unpack_from(body)
    middle = _HEADER.size + blocks * _BLOCK.size
    if magic != _MAGIC or len(body) != middle + cuts * _CUT.size:
        return None
    return Index(
        size,
        tuple(Block(*row) for row in _BLOCK.iter_unpack(body[_HEADER.size : middle])),
        tuple(Cut(*row) for row in _CUT.iter_unpack(body[middle:])),
    )
