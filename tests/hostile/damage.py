"""Whole files with flipped bits, cut short, and with parts that are missing, doubled, swapped or of
others.
"""

from random import Random

from .family import Family
from .whole import boundaries, whole_files

FLIPS, CUTS, SPLICES = 900, 500, 300  # spread evenly over the files


def flipped(random: Random, number: int) -> bytes:
    """One to eight bits, most of them where a part begins."""
    content = bytearray(_file(number))
    places = boundaries(bytes(content))
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        place = random.choice(places) if random.random() < 0.8 else random.randrange(len(content))
        content[place] ^= 1 << random.randrange(8)
    return bytes(content)


def cut(random: Random, number: int) -> bytes:
    """At a boundary, a byte beside one, or anywhere; now and then filled up again with noughts or
    ones.
    """
    content = _file(number)
    place = random.choice(boundaries(content)) + random.choice((-1, 0, 0, 1))
    if random.random() < 0.3:
        place = random.randrange(len(content))
    head = content[: max(0, place)]
    return head + random.choice((b"", b"", b"\0", b"\xff")) * (len(content) - len(head))


def spliced(random: Random, number: int) -> bytes:
    content = _file(number)
    places = boundaries(content)
    start, end = sorted((random.choice(places), random.choice(places)))
    part = content[start:end]
    other = _file(random.randrange(1000))
    kind = random.randrange(6)
    if kind == 0:  # gone
        return content[:start] + content[end:]
    if kind == 1:  # often
        return content[:end] + part * random.choice((1, 2, 100)) + content[end:]
    if kind == 2:  # elsewhere
        place = random.choice(places)
        return content[:place] + part + content[place:]
    if kind == 3:  # from another file
        return content[:start] + other[random.choice(boundaries(other)) :]
    if kind == 4:  # of extreme numbers
        return (
            content[:start]
            + random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * random.choice((1, 2, 4, 8))
            + content[end:]
        )
    return content[:start] + random.randbytes(end - start) + content[end:]


def _file(number: int) -> bytes:
    files = list(whole_files().values())
    return files[number % len(files)]


FAMILIES = {
    "flips": Family(flipped, FLIPS),
    "cuts": Family(cut, CUTS),
    "splices": Family(spliced, SPLICES),
}
