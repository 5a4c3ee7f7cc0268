"""Requests whose image is sound, mostly, and whose JSON, base64, forms, options and headers are
not.
"""

import base64
import json
from random import Random

from tests.unit.images import encoded, noise
from tests.unit.torchserve import Part, Request, form, raw

from .family import Family

IMAGE = encoded(noise(9, 11))
BASE64 = base64.b64encode(IMAGE).decode()
JSON = "application/json"
OPTIONS = ("mask", "classes", "threshold", "confidence", "mode", "tta")

BASE64_VARIANTS = (
    lambda text: text.rstrip("="),
    lambda text: text + "=" * 5,
    lambda text: "=" + text,
    lambda text: text.replace("+", "-").replace("/", "_"),
    lambda text: " ".join(text),
    lambda text: "\u00a0".join(text),
    lambda text: text.translate({ord("A"): "\u0410"}),  # Cyrillic
    lambda text: text.replace("A", "\0"),
    lambda text: f"data:image/png;base64,{text}",
    lambda text: f"data:{text}",
    lambda text: f"data:,,{text}",
    lambda text: f"DATA:image/png;base64,{text}",
    lambda text: "data:" + "a" * 100_000 + "," + text,
    lambda text: base64.b64encode(text.encode()).decode(),
    lambda text: base64.b32encode(IMAGE).decode(),
    lambda text: IMAGE.hex(),
    lambda text: text[:-1],
    lambda text: text[1:],
    lambda text: text + "A" * 5,
    lambda text: "\ud800" + text,
    lambda text: "=" * 100_000,
    lambda text: " " * 100_000,
    lambda text: "a " * 2_000_000,
    lambda text: "A" * 40_000_000,
)


def as_base64(random: Random, number: int) -> Request:
    text = BASE64_VARIANTS[number % len(BASE64_VARIANTS)](BASE64)
    if number >= len(BASE64_VARIANTS):
        place = random.randrange(len(text) + 1)
        text = (
            text[:place]
            + random.choice(("\0", "%", "=", "\n\n", "\u2028", "<", "\\"))
            + text[place:]
        )
    return raw(json.dumps({"data": text, "mask": "none"}).encode(), JSON)


def _nested(opening: str, closing: str, depth: int) -> str:
    return opening * depth + closing * depth


def _json_texts(random: Random) -> tuple[str, ...]:
    depth = random.choice((10, 500, 900, 990, 1000, 1020, 1024, 1025, 5000, 200_000))
    member = random.choice((*OPTIONS, "data", "x"))
    number = random.choice(
        (
            "1e999",
            "-1e999",
            "9" * 4000,
            "9" * 5000,
            "0.0000000001",
            "-0",
            "NaN",
            "Infinity",
            "1" + "0" * 400,
        )
    )
    return (
        f'{{"data": "{BASE64}", "{member}": {_nested("[", "]", depth)}}}',
        f'{{"data": "{BASE64}", "{member}": {_nested(chr(123) + chr(34) + "a" + chr(34) + ":", "1", 0)}1}}',  # noqa: E501
        f'{{"data": "{BASE64}", "{member}": ' + '{"a":' * depth + "1" + "}" * depth + "}",
        '{"data": ' * depth + "1" + "}" * depth,
        '{"data": ' * depth,
        "[" * depth,
        f'{{"data": "{BASE64}", "{member}": {number}}}',
        f'{{"data": {number}}}',
        "{" + f'"data": "{BASE64}", ' * 100 + f'"mask": "none"{chr(125)}',
        f'{{"data": "{BASE64}", "\\ud800": 1}}',
        f'{{"data": "{BASE64}", "__proto__": {{"mask": "png"}}, "constructor": 1}}',
        f'{{"data": "\\u0000{BASE64}"}}',
        f'\ufeff{{"data": "{BASE64}"}}',
        f'{{"data": "{BASE64}"}} trailing',
        f'{{"instances": [{{"data": "{BASE64}"}}]}}',
        '{"data": [' + "{}," * random.choice((10, 20_000)) + "{}]}",
        '{"data": [' + "[]," * random.choice((10, 20_000)) + "[]]}",
        "{" + ",".join(f'"k{key}": 1' for key in range(random.choice((9, 20_000)))) + "}",
    )


def as_json(random: Random, number: int) -> Request:
    texts = _json_texts(random)
    content = texts[number % len(texts)].encode("utf-8", "surrogatepass")
    encoding = random.choice(("", "", "; charset=utf-16", "; charset=x"))
    return raw(
        content, random.choice((JSON + encoding, "", "application/octet-stream", "text/plain"))
    )


_VALUES = (
    lambda random: "x" * random.choice((1, 100, 10_000, 10_000_000)),
    lambda random: "cat," * random.choice((1, 100, 3_000_000)),
    lambda random: "," * random.choice((1, 10_000_000)),
    lambda random: "[" * random.choice((1, 900, 1020, 15_000, 10_000_000)),
    lambda random: "[" + '"cat",' * random.choice((10, 1_000_000)) + '"cat"]',
    lambda random: "9" * random.choice((3, 400, 5000, 15_000)),
    lambda random: random.choice(
        ("nan", "inf", "-inf", "1e999", "1e-999", "0x1", "1_0", "\u0661", "+0", "-0", ".5", "5.")
    ),
    lambda random: random.choice(
        ("png\r\nX-Evil: 1", "png\0", "\x1b[2J", "%0d%0a", "${jndi:ldap://127.0.0.1/a}", "{{7*7}}")
    ),
    lambda random: random.choice(
        ("../../etc/passwd", "'; DROP TABLE x; --", "<script>", "%s%n%s%n", "$(id)", "`id`")
    ),
    lambda random: "".join(
        chr(random.choice((random.randrange(1, 0xD800), random.randrange(0x1F300, 0x1F600))))
        for _ in range(40)
    ),
    lambda random: random.choice(("", " ", "\t", "\u202e", "PNG", "TRUE", "none none")),
    lambda random: None,
    lambda random: random.choice((True, False, -1, 2**70, 1e308, -1e308, 0.5)),
    lambda random: ["cat"] * random.choice((1, 100, 5000)),
    lambda random: [["cat"]],
    lambda random: {"a": ["cat"]},
    lambda random: [None, True, 1.5, "cat"],
)


def with_options(random: Random, number: int) -> Request:
    value = _VALUES[number % len(_VALUES)](random)
    name = random.choice(
        (
            *OPTIONS,
            *OPTIONS,
            "",
            "data",
            "x" * random.choice((1, 100_000)),
            "Mask",
            "__class__",
            "\u202emask",
        )
    )
    way = random.choice(("member", "field", "header"))
    if way == "member" or not isinstance(value, str):
        document = {"data": BASE64, name: value} if name != "data" else {name: value}
        return raw(json.dumps(document).encode(), JSON)
    if way == "field":
        return form(Part(IMAGE, "data"), Part(value.encode("utf-8", "surrogatepass"), name))
    return Request((Part(IMAGE),), {f"X-Segment-{name}"[:200]: value[:8000]})


_ACCEPTS = (
    "*/*;q=0",
    "image/*;q=nan",
    "application/json;q=1e999",
    ",".join(["image/png;q=0.1"] * 500),
    ";" * 8000,
    "," * 8000,
    "a/b/c/d",
    "image/png;" + "q=0.5;" * 1000,
    "\xff\xfe",
    "image/jpeg, */*;q=-1",
    "*/png",
    "",
)


def with_headers(random: Random, number: int) -> Request:
    headers = {
        "Accept": _ACCEPTS[number % len(_ACCEPTS)],
        "Content-Type": random.choice(
            ("image/png", "json", "JSON", "multipart/form-data", "x" * 8000)
        ),
        random.choice(
            ("describe", "explain", "Describe", "traceparent", "X-Segment-", "x-segment-mask", "")
        ): random.choice(
            (
                "True",
                "true",
                "00-" + "f" * 32 + "-" + "f" * 16 + "-01",
                "00-" + "0" * 200,
                "none",
                "\r\nX: y",
            )
        ),
    }
    return Request((Part(random.choice((IMAGE, b"", b"{}"))),), headers)


def as_form(random: Random, number: int) -> Request:
    inner = (
        b'--xyz\r\nContent-Disposition: form-data; name="data"\r\n\r\n' + IMAGE + b"\r\n--xyz--\r\n"
    )
    parts = (
        (Part(inner, "data"),),
        (Part(IMAGE, "data"), Part(IMAGE, "body")),
        (Part(IMAGE, "data"), Part(IMAGE, "data")),
        (Part(IMAGE, "file"),),
        (Part(b"", "data"),),
        (Part(b"", "data"), Part(IMAGE, "body")),
        (Part(IMAGE, "data"), Part(IMAGE, "mask")),
        tuple(Part(b"none", f"x{place}") for place in range(random.choice((3, 3000)))),
        (Part(IMAGE, "data"), *(Part(b"none", "mask") for _ in range(random.choice((2, 3000))))),
        (Part(BASE64.encode(), "data"),),
        (Part(json.dumps({"data": BASE64}).encode(), "data"), Part(b"png", "mask")),
        (Part(json.dumps({"data": BASE64}).encode(), "data", JSON),),
        (Part(b"[1,2]", "data", JSON),),
        (Part(IMAGE, "data", "text/plain"),),
        (Part("\u00e4".encode("utf-16"), "mask", "text/plain"), Part(IMAGE, "data")),
        (Part(IMAGE, "../../data"),),
        (Part(IMAGE, ""),),
        (),
    )
    return form(*parts[number % len(parts)], boundary=random.choice(("xyz", "", "a" * 5000)))


FAMILIES = {
    "base64": Family(as_base64, 72),
    "json": Family(as_json, 180),
    "options": Family(with_options, 240),
    "headers": Family(with_headers, 60),
    "forms": Family(as_form, 54),
}
