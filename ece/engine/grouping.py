"""Rows grouped by like length, so that little of a forward pass is padding."""

ENOUGH = 512  # tokens that keep a device busy: beyond them, less padding is worth more


def by_length(lengths: list[int] | list[tuple[int, ...]], max_tokens: int) -> list[list[int]]:
    """Group indices of rows by like length, each group within `max_tokens` padded (or one row).

    A group of `ENOUGH` tokens ends where lengths grow, so that little of it is padding. A row of
    several parts, each padded by itself, gives their lengths, the most important one first.
    """
    parts = [(length,) if isinstance(length, int) else length for length in lengths]
    chunks, wide = [], ()
    for i in sorted(range(len(parts)), key=lambda i: (parts[i], i)):
        padded = tuple(map(max, wide, parts[i])) if chunks else parts[i]
        full = not chunks or (len(chunks[-1]) + 1) * sum(padded) > max_tokens
        grows = not full and parts[i] != parts[chunks[-1][-1]]
        if full or (grows and len(chunks[-1]) * sum(wide) >= ENOUGH):
            chunks.append([])
            padded = parts[i]
        chunks[-1].append(i)
        wide = padded
    return chunks
