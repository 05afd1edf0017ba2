"""Whether a Zstandard file is whole: its reader takes the end of a file that was cut off for the end of the data."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import zstandard

_FRAME = zstandard.MAGIC_NUMBER.to_bytes(4, "little")
_SKIPPABLE = {(0x184D2A50 + number).to_bytes(4, "little") for number in range(16)}
_LONGEST_HEADER_BYTES = 18
_REPEATED_BYTE = 1  # the type of a block that stores one byte, whatever its size says
_CHECKSUM_BYTES = 4


def check_whole(path: Path) -> None:
    """Raises EOFError, as gzip does, where the last frame is cut off. Reads the headers of its blocks alone."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(0)
        while file.tell() < end:
            if not _pass_frame(file):
                return  # no frame: the reader tells what is wrong
        if file.tell() > end:
            raise EOFError("Compressed file ended before the end of its last frame")


def _pass_frame(file: BinaryIO) -> bool:
    """Goes to where the frame ends; behind the file's end if it is cut off. False where no frame begins."""
    start = file.tell()
    header = file.read(_LONGEST_HEADER_BYTES)
    if len(header) < len(_FRAME):
        raise EOFError("Compressed file ended within the header of a frame")
    if header[:4] in _SKIPPABLE:
        file.seek(start + 8 + int.from_bytes(header[4:8], "little"))
        return True
    if header[:4] != _FRAME:
        return False
    try:
        facts = zstandard.get_frame_parameters(header)
        file.seek(start + zstandard.frame_header_size(header))
    except zstandard.ZstdError:
        if len(header) == _LONGEST_HEADER_BYTES:
            return False
        raise EOFError("Compressed file ended within the header of a frame") from None
    _pass_blocks(file)
    if facts.has_checksum:
        file.seek(_CHECKSUM_BYTES, 1)
    return True


def _pass_blocks(file: BinaryIO) -> None:
    is_last = False
    while not is_last:
        header = file.read(3)
        if len(header) < 3:
            raise EOFError("Compressed file ended before the end of its last frame")
        bits = int.from_bytes(header, "little")
        is_last, kind, size_bytes = bool(bits & 1), bits >> 1 & 3, bits >> 3
        file.seek(1 if kind == _REPEATED_BYTE else size_bytes, 1)
