"""Files that are two things at once, that say they are something else, or that are no image at
all.
"""

import io
import zipfile
from random import Random

from tests.unit.images import encoded, noise
from tests.unit.torchserve import Request, raw

from .family import Family
from .whole import whole_files

MEDIA_TYPES = (
    "image/png",
    "image/jpeg",
    "image/svg+xml",
    "image/vnd.adobe.photoshop",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "application/xml",
    "application/x-npy",
    "text/plain",
    "text/html; charset=utf-16",
    "multipart/mixed; boundary=a",
    "video/mp4",
    "a" * 2000,
    ";",
    "",
)


def zipped(content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            zipfile.ZipInfo("image.png"), content or encoded(noise(4, 4))
        )  # without the time of day
    return buffer.getvalue()


FOREIGN = (
    b"%PDF-1.7\n1 0 obj\n<</Type/Catalog>>\nendobj\n",
    b"<!doctype html><script>alert(1)</script>",
    b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><svg xmlns='http://www.w3.org/2000/svg'>&e;</svg>",
    b"push graphic-context\nviewbox 0 0 640 480\nfill 'url(https://127.0.0.1/x.jpg\"|ls \"-la)'\npop graphic-context",  # noqa: E501
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file",
    b"\x7fELF\2\1\1" + bytes(100),
    b"MZ" + bytes(100),
    b"#!/bin/sh\nid\n",
    b"<?php system($_GET['c']); ?>",
    b"\x80\x04\x95cos\nsystem\n(S'id'\ntR.",  # a pickle
    b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n",
    b"PK\3\4" + bytes(30),
    b"\0\0\0\x20ftypavif" + bytes(100),
    b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
    b"8BPS\0\1" + bytes(100),
    b"P6 10 10 255\n" + bytes(300),
    b"SIMPLE  =                    T" + bytes(3000),
    b"GRIB" + bytes(100),
    b"\x1f\x8b\x08" + bytes(100),
    b"\xef\xbb\xbf\xff\xd8\xff\xe0",
)


def two_in_one(random: Random, number: int) -> bytes:
    files = list(whole_files().values())
    picture, other = random.choice(files), random.choice((*FOREIGN, zipped(), *files))
    place = random.choice((0, 2, 4, 8, 12, len(picture) // 2))
    makers = (
        lambda: picture + other,
        lambda: other + picture,
        lambda: picture[:place] + other + picture[place:],
        lambda: other[:place] + picture[place:],
        lambda: picture + zipped(other),
        lambda: random.choice(FOREIGN) + random.randbytes(random.randrange(200)),
        lambda: zipped(picture),
        lambda: bytes(random.randrange(600)) + picture,
    )
    return makers[number % len(makers)]()


def mistyped(random: Random, number: int) -> Request:
    content = random.choice((*whole_files().values(), *FOREIGN))
    return raw(content, MEDIA_TYPES[number % len(MEDIA_TYPES)], X_Segment_Mask="none")


def noise_alone(random: Random, number: int) -> bytes:
    head = random.choice(
        (
            b"",
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\0\1\0\0WEBPVP8 ",
            b"BM",
            b"II*\0",
            b"MM\0*",
            b"GIF89a",
        )
    )
    return head + random.randbytes(random.choice((0, 1, 10, 100, 1000, 100_000)))


FAMILIES = {
    "polyglots": Family(two_in_one, 160),
    "mistyped": Family(mistyped, 60),
    "noise": Family(noise_alone, 120),
}
