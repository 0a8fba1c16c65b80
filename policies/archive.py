"""The container of a revision: a tar (POSIX ustar) in gzip that can be written in exactly one way.

Reading accepts only what `pack` would have written, byte for byte, so that nothing hides between members, behind the
end, or under a name that two readers understand differently.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Mapping

from foundation.faults import Fault
from foundation.reasons import Reason

MAX_ARCHIVE_BYTES = 16 << 20
MAX_CONTENT_BYTES = 64 << 20
MAX_MEMBERS = 512
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_GZIP = 31  # zlib's wbits for a gzip member


def pack(members: Mapping[str, bytes]) -> bytes:
    """The archive of `members`, in their order. Raises `Fault(REVISION_MALFORMED)` when it would be too large."""
    blocks = [_header(name, len(content)) + content + _padding(len(content)) for name, content in members.items()]
    packed = gzip.compress(b"".join(blocks) + _END, mtime=0)
    if len(members) > MAX_MEMBERS or len(packed) > MAX_ARCHIVE_BYTES:
        raise Fault(Reason.REVISION_MALFORMED, f"larger than {MAX_ARCHIVE_BYTES} bytes or {MAX_MEMBERS} members")
    return packed


def unpack(archive: bytes) -> dict[str, bytes]:
    """The members of `archive`, in their order. Raises `Fault(REVISION_MALFORMED)`."""
    raw = _inflate(archive)
    members: dict[str, bytes] = {}
    at = 0
    while raw[at : at + _BLOCK] != _END[:_BLOCK]:
        name, size = _read_header(raw[at : at + _BLOCK])
        content = raw[at + _BLOCK : at + _BLOCK + size]
        if len(content) != size or name in members or len(members) == MAX_MEMBERS:
            raise Fault(Reason.REVISION_MALFORMED, "a member is cut off, stands twice, or is one too many")
        members[name] = content
        at += _BLOCK + size + len(_padding(size))
        if raw[at - len(_padding(size)) : at] != _padding(size):
            raise Fault(Reason.REVISION_MALFORMED, "bytes stand between two members")
    if raw[at:] != _END:
        raise Fault(Reason.REVISION_MALFORMED, "bytes stand behind the last member")
    return members


def _inflate(archive: bytes) -> bytes:
    if len(archive) > MAX_ARCHIVE_BYTES:
        raise Fault(Reason.REVISION_MALFORMED, f"larger than {MAX_ARCHIVE_BYTES} bytes")
    inflater = zlib.decompressobj(_GZIP)
    try:
        raw = inflater.decompress(archive, MAX_CONTENT_BYTES)
    except zlib.error:
        raise Fault(Reason.REVISION_MALFORMED, "not a gzip archive") from None
    if not inflater.eof or inflater.unused_data:
        raise Fault(Reason.REVISION_MALFORMED, f"cut off, followed by more, or over {MAX_CONTENT_BYTES} bytes unpacked")
    return raw


def _read_header(header: bytes) -> tuple[str, int]:
    try:
        name = b"/".join(part.rstrip(b"\0") for part in (header[345:500], header[:100]) if part.rstrip(b"\0"))
        text, size = name.decode("ascii"), int(header[124:135], 8)
    except (UnicodeDecodeError, ValueError):
        raise Fault(Reason.REVISION_MALFORMED, "a member's header does not parse") from None
    if header != _header(text, size):
        raise Fault(Reason.REVISION_MALFORMED, "a member's header is not in canonical form")
    return text, size


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    try:
        return member.tobuf(tarfile.USTAR_FORMAT, "ascii")
    except (ValueError, UnicodeEncodeError):
        raise Fault(Reason.REVISION_MALFORMED, "a member's name or size does not fit", field=name[:128]) from None


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)
