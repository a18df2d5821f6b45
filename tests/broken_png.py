"""PNG files whose header promises more pixels than they have."""

import struct
import zlib

GRAY, RGB = 0, 2  # color types


def png_without_pixels(width: int, height: int, color: int) -> bytes:
    """Return a PNG with right checksums, of whose pixels only the first few are there."""
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 9)), (b"IEND", b"")]
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in chunks:
        check = struct.pack(">I", zlib.crc32(name + data))
        parts.append(struct.pack(">I", len(data)) + name + data + check)
    return b"".join(parts)
