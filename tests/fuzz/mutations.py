"""Mutations of JSON values, JSON texts and bytes, drawn from a seeded random.Random."""

import copy
import json
import math
import os

LARGE = (2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 10**9, 10**30, 10**400)
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    0.0,
    -0.0,
    0.5,
    1.5,
    1e-60,
    1e30,
    1e308,
    -1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
)
TEXTS = (
    *("", " ", "none", "auto", "a", "../x", "/", ".", "~", "a/b", "x:y", "\0", "\n", "\ud800", "\udc80", "é", "\u2028"),
    *("((", "*", "(?i)a", "a{99999999999}", "[", ".*", "{}", "%s", "true", "null", "1", "1e3", "NaN", "x" * 300),
    *("best:rates", "float32", "/dev/null", "/dev/zero", "-", "--help", "=", ",", "0:1", "5:2"),
)
OTHERS = (None, True, False, [], {}, [[]], {"": 0}, [None], {"a": {"b": []}})
RAW = (  # texts of values that json.dumps does not write
    *("9" * 5000, "-" + "9" * 5000, "1e999", "NaN", "-Infinity", "[" * 100_000, '{"a":' * 5000, "01", "tru", "'a'"),
    *('"\\ud800"', '{"a": 1, "a": 2}', "", "\ufeff{}", '"\\u0000"', "1" + "0" * 4299),
)
MARK = "<raw text here>"


def value(rng):
    """A value of any kind."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(LARGE) * rng.choice((1, 1, -1))
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return copy.deepcopy(rng.choice(OTHERS))
    return rng.choice((rng.randrange(-3, 70), rng.random(), str(rng.randrange(99)), [rng.randrange(9)] * 3))


def places(node):
    """(holder, key) of every value inside a JSON value."""
    found = []

    def visit(holder):
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                visit(holder[key])

    if isinstance(node, dict | list):
        visit(node)
    return found


def mutate(rng, node):
    """A copy of a JSON value with one to three changes: replaced, deleted, added, swapped, nested, repeated."""
    node = copy.deepcopy(node)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = places(node)
        if not found or rng.random() < 0.02:
            node = value(rng)
            continue
        holder, key = rng.choice(found)
        action = rng.randrange(9)
        if action <= 3:
            holder[key] = near(rng, holder[key])
        elif action == 4:
            del holder[key]
        elif action == 5 and isinstance(holder, dict):
            holder[rng.choice((*TEXTS[:20], *(str(k) for k in holder)))] = value(rng)
        elif action == 6:
            other, place = rng.choice(found)
            if (isinstance(other, dict) and place in other) or (isinstance(other, list) and place < len(other)):
                holder[key] = copy.deepcopy(other[place])
        elif action == 7:
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}))
        elif isinstance(holder, list):
            holder.extend(copy.deepcopy(holder[:50]))
        else:
            holder[key] = value(rng)
    return node


def near(rng, old):
    """A value that often has the old one's type, to get past the checks of types."""
    if rng.random() < 0.25:
        return value(rng)
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        near_by = (old + 1, old - 1, old * 2, -old) if abs(old) >= 2**53 else (old + 1, old * 2, old + 0.5, float(old))
        return rng.choice((0, 1, -1, 2**31 - 1, 10**9, *near_by))
    if isinstance(old, float):
        whole = int(old) if math.isfinite(old) else 0
        return rng.choice((0.0, -old, old * 1e10, old / 1e10, whole, 1e38, 1.7e308, 1.0, float("inf"), 1e-45))
    if isinstance(old, str):
        return rng.choice((old[:-1], old + "x", old.upper(), old * 3, rng.choice(TEXTS), rng.choice(TEXTS), ""))
    return value(rng)


def text_of(rng, node):
    """The JSON text of a value, sometimes with a part that is not JSON, or cut short."""
    if rng.random() < 0.1:
        node = copy.deepcopy(node)
        if found := places(node):
            holder, key = rng.choice(found)
            holder[key] = MARK
        return json.dumps(node).replace(json.dumps(MARK), rng.choice(RAW), 1)
    text = json.dumps(node, ensure_ascii=rng.random() < 0.9)
    if rng.random() < 0.03:
        return text[: rng.randrange(len(text) + 1)]
    return text


def flip(rng, content):
    """Bytes with some changed, cut out, put in, repeated or cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.randrange(len(content) + 1)
        action = rng.randrange(6)
        if action == 0 and content:
            content[place % len(content)] ^= 1 << rng.randrange(8)
        elif action == 1 and content:
            content[place % len(content)] = rng.randrange(256)
        elif action == 2:
            del content[place : place + rng.choice((1, 2, 8, 100))]
        elif action == 3:
            content[place:place] = rng.choice((b"\0", b"\xff\xfe", b"\n", b"\r\n", b'"', b"{", b"]", os.fsencode("é")))
        elif action == 4:
            content[place:place] = content[place : place + rng.choice((1, 8, 64))]
        else:
            del content[place:]
    return bytes(content)


def write(path, text):
    """Writes a text that may hold half of a surrogate pair, which JSON can and UTF-8 cannot."""
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
