"""Damage what was whole, with its structure in mind: JSON, safetensors, GGUF, zip archives, tars, and plain bytes."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

MAX_BYTES = 2**20
"""What mutating may make larger is cut there, so that a case stays a matter of milliseconds."""

_TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\ud800", b"\\u0000", b"1e999", b"NaN", b"-", b"\0", b"\xff",
    b"\xef\xbb\xbf", b"9" * 5000, b"../", b"//", b"true", b"null",
)  # fmt: skip
_NUMBERS = (
    0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0,
    1e-300, 1e300, 1e-12,
)  # fmt: skip
_TEXTS = (
    "", " ", "../../etc/passwd", "/etc/passwd", "C:\\x", "a\0b", "\n", "\x1b[2J", "\u202eabc", "e\u0301",
    "\ufb01", "\U0001f600", "%s%n", "=1+1", "a" * 600, "None", "true", "os.system", "gelu", "float16", "nan",
    "-1", "sha256:" + "0" * 64,
)  # fmt: skip
_RAW = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 4301, '"\\ud800"', "01", "1.", "'x'", "[" * 80 +
    "]" * 80, "[" * 20000, '{"a":' * 3000,
)  # fmt: skip


class Raw(str):
    """A text that stands in a JSON document as it is, whether that is JSON or not."""


class Pairs(list[list[Any]]):
    """A JSON object as it stands in a file: keys in order, and each as often as it is there."""


def damage_bytes(content: bytes, rng: random.Random, within: int | None = None) -> bytes:
    """Flip, overwrite, insert, delete, move, double or cut off some bytes, among the first `within`."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        end = min(len(damaged), within or len(damaged))
        at, other = rng.randrange(end + 1), rng.randrange(end + 1)
        n = rng.choice((1, 1, 2, 4, 8, 16, 64, 512))
        how = rng.randrange(9)
        if how <= 1 and at < len(damaged):
            damaged[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            damaged[at : at + 8] = rng.choice(_NUMBERS[:14]).__int__().__and__(2**64 - 1).to_bytes(8, "little")
        elif how == 3:
            damaged[at : at + 4] = (int(rng.choice(_NUMBERS[:10])) & 0xFFFFFFFF).to_bytes(4, "little")
        elif how == 4:
            del damaged[at : at + n]
        elif how == 5:
            damaged[at:at] = rng.choice(_TOKENS)
        elif how == 6:
            damaged[at:at] = damaged[other : other + n]
        elif how == 7:
            damaged[at : at + n] = damaged[other : other + n]
        elif rng.random() < 0.4:
            del damaged[rng.randrange(len(damaged) + 1) :]
        else:
            damaged += rng.choice((b"\0" * n, rng.randbytes(n), damaged[:n]))
    return bytes(damaged[: max(MAX_BYTES, len(content))])


def damage_json(content: bytes, rng: random.Random, donors: tuple[Any, ...] = ()) -> bytes:
    """Change keys and values of a JSON document, or bytes; `donors` are values that mean something in such files."""
    if rng.random() < 0.1:
        return damage_bytes(content, rng)
    document = json.loads(content, object_pairs_hook=lambda pairs: Pairs(map(list, pairs)))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = damage_value(document, rng, donors)
    text = write(document).encode(errors="surrogatepass")[: max(MAX_BYTES, len(content))]
    return damage_bytes(text, rng) if rng.random() < 0.05 else text


def damage_value(document: Any, rng: random.Random, donors: tuple[Any, ...] = ()) -> Any:
    """Change one value, or one key, somewhere in the document, and return the document."""
    places = list(_find_places(document))
    if not places:
        return _choose_value(rng, donors, document)
    holder, index = rng.choice(places)
    how = rng.random()
    if how < 0.55 or not isinstance(holder, Pairs):
        _put(holder, index, _choose_value(rng, donors, _get(holder, index)))
    elif how < 0.65:
        del holder[index]
    elif how < 0.75:  # a key twice, with the same or with another value
        holder.insert(rng.randrange(len(holder) + 1), [holder[index][0], _choose_value(rng, donors, holder[index][1])])
    elif how < 0.85:
        holder[index][0] = _choose_key(rng, holder[index][0])
    elif how < 0.93:
        holder.insert(
            rng.randrange(len(holder) + 1), [_choose_key(rng, holder[index][0]), _choose_value(rng, donors, 1)]
        )
    else:
        other, place = rng.choice(places)
        mine, theirs = _get(holder, index), _get(other, place)
        if not _holds(mine, other) and not _holds(theirs, holder):
            _put(holder, index, theirs)
            _put(other, place, mine)
    return document


def write(value: Any) -> str:
    """Write a document as JSON, with keys twice and raw text where they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{write(one)}" for key, one in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write, value)) + "]"
    if isinstance(value, dict):
        return write(Pairs([key, one] for key, one in value.items()))
    return json.dumps(value)


def damage_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change the header's JSON, its length, or the bytes behind it."""
    length = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + length], content[8 + length :]
    how = rng.random()
    if how < 0.15:
        return damage_bytes(content, rng, within=8 + length)
    if how < 0.25:
        return content[:8] + header + damage_bytes(body, rng)
    if how < 0.35:  # two tensors change places, or one is called otherwise: what is left is well formed
        entries = json.loads(header)
        one, other = rng.sample([name for name in entries if name != "__metadata__"], 2)
        if rng.random() < 0.5:
            entries[one], entries[other] = entries[other], entries[one]
        else:
            entries[one]["dtype"] = rng.choice(("I32", "F32", "U32", "F16", "BF16"))
        header = json.dumps(entries).encode()
    else:
        header = damage_json(header, rng, ("F32", "F16", "BF16", "I8", "U8", "F64", [4], [64, 64], [0, 256]))
    length = len(header) if rng.random() < 0.9 else int(rng.choice(_NUMBERS[:12]))
    return (length & (2**64 - 1)).to_bytes(8, "little") + header + body


def damage_gguf(content: bytes, rng: random.Random) -> bytes:
    """Change a value behind a key of the metadata, a key, or any byte of the header."""
    end = min(len(content), 12_000)
    keys = list(re.finditer(rb"[a-z0-9_]+\.[a-z0-9_.]+", content[:end]))
    if not keys or rng.random() < 0.4:
        return damage_bytes(content, rng, within=end if rng.random() < 0.8 else None)
    damaged, key = bytearray(content), rng.choice(keys)
    how = rng.random()
    if how < 0.5:  # the value: 4 bytes that say its type, then itself
        at, size = key.end() + 4, rng.choice((1, 4, 4, 8))
        damaged[at : at + size] = (int(rng.choice(_NUMBERS[:14])) & (2 ** (8 * size) - 1)).to_bytes(size, "little")
    elif how < 0.6:
        struct.pack_into("<I", damaged, key.end(), rng.randrange(16))
    elif how < 0.8:
        other = rng.choice(keys)
        damaged[key.start() : key.start() + min(len(key[0]), len(other[0]))] = other[0][: len(key[0])]
    else:
        damaged[rng.randrange(key.start(), key.end())] = rng.choice(b"./\\\0\xffaz0")
    return bytes(damaged)


def damage_zip(content: bytes, rng: random.Random) -> bytes:
    """Change an entry of a zip archive as torch writes it, or the list of entries, or any byte."""
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [[info.filename, archive.read(info)] for info in archive.infolist()]
    how, at = rng.random(), rng.randrange(len(entries))
    pickled = next(index for index, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    if how < 0.6:
        entries[pickled][1] = _damage_pickle(entries[pickled][1], rng)
    elif how < 0.75:
        entries[at][1] = damage_bytes(entries[at][1], rng)
    elif how < 0.85:
        entries.append([entries[at][0], damage_bytes(entries[at][1], rng)])
    elif how < 0.95:
        entries[at][0] = rng.choice(
            (entries[at][0] + "x", "../x", "/x", "data.pkl", "archive/data/9", "archive/.data/x")
        )
    else:
        del entries[at]
    packed = io.BytesIO()
    kind = zipfile.ZIP_STORED if rng.random() < 0.95 else zipfile.ZIP_DEFLATED
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w", kind) as archive:
        warnings.simplefilter("ignore")  # a name that is there twice
        for name, one in entries:
            archive.writestr(name, one)
    return packed.getvalue()


def _damage_pickle(content: bytes, rng: random.Random) -> bytes:
    """Change a small number, a word, or an opcode."""
    places = [found.start() for found in re.finditer(rb"[KM]", content)]
    words = list(re.finditer(rb"[A-Za-z_.]{4,}", content))
    damaged = bytearray(content)
    how = rng.random()
    if how < 0.4 and places:
        at = rng.choice(places) + 1
        damaged[at : at + 1] = bytes([rng.randrange(256)])
    elif how < 0.7 and words:
        one, other = rng.choice(words), rng.choice(words)
        damaged[one.start() : one.start() + min(len(one[0]), len(other[0]))] = other[0][: len(one[0])]
    else:
        return damage_bytes(content, rng)
    return bytes(damaged)


def damage_tar(content: bytes, rng: random.Random, change: Callable[[str, bytes], bytes]) -> bytes:
    """Change a member of a tar, by `change` what it holds, or its header, its place, or any byte."""
    if rng.random() < 0.4:
        return damage_bytes(content, rng)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = [(one, tar.extractfile(one).read()) for one in tar.getmembers()]  # type: ignore[union-attr]
    at, how = rng.randrange(len(members)), rng.random()
    member, inside = members[at]
    if how < 0.4:
        members[at] = (member, change(member.name, inside))
    elif how < 0.6:
        member.name = rng.choice(("../x", "/etc/x", member.name + "x", members[0][0].name, "blobs", "a" * 300, "./x"))
    elif how < 0.75:
        member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE))
        member.linkname = rng.choice(("/etc/passwd", "../x", members[0][0].name))
    elif how < 0.85:
        members.insert(rng.randrange(len(members) + 1), members[at])
    elif how < 0.95:
        members.insert(rng.randrange(len(members)), members.pop(at))
    else:
        del members[at]
    packed = io.BytesIO()
    form = rng.choice((tarfile.GNU_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT))
    try:
        with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
            for member, inside in members:
                member.size = len(inside) if member.isreg() else 0
                tar.addfile(member, io.BytesIO(inside))
    except ValueError:  # a name that is too long for this kind of tar
        return damage_bytes(content, rng)
    return packed.getvalue()


def _find_places(value: Any) -> Any:
    """Give every (holder, index) of a value within the document."""
    if isinstance(value, list):
        for index in range(len(value)):
            yield value, index
            yield from _find_places(_get(value, index))


def _get(holder: list[Any], index: int) -> Any:
    return holder[index][1] if isinstance(holder, Pairs) else holder[index]


def _put(holder: list[Any], index: int, value: Any) -> None:
    if isinstance(holder, Pairs):
        holder[index][1] = value
    else:
        holder[index] = value


def _holds(value: Any, holder: list[Any]) -> bool:
    return value is holder or (
        isinstance(value, list) and any(_holds(_get(value, n), holder) for n in range(len(value)))
    )


def _choose_value(rng: random.Random, donors: tuple[Any, ...], now: Any) -> Any:
    """Choose another value: one much like it, one that means something elsewhere, or an awkward one."""
    how = rng.random()
    if how < 0.35:
        if isinstance(now, bool):
            return not now
        if isinstance(now, int | float):
            return rng.choice((now + 1, now - 1, now * 2, -now, now / 2, float(now), str(now), now + 2**32))
        if isinstance(now, str):
            return rng.choice((now[:-1], now + "x", now.upper(), now.replace("_", "-"), "../" + now, now + "\0", [now]))
        if isinstance(now, list) and not isinstance(now, Pairs) and now:
            return rng.choice((now[1:], now + now[:1], now[::-1], now * 2 if len(now) < 5000 else now, [now], now[0]))
    if how < 0.6 and donors:
        return rng.choice(donors)
    awkward = (rng.choice(_NUMBERS), rng.choice(_TEXTS), Raw(rng.choice(_RAW)), Pairs([["a", 1]]))
    return rng.choice((*awkward, rng.choice(_NUMBERS), True, False, None, [], Pairs(), [None]))


def _choose_key(rng: random.Random, now: Any) -> Any:
    return rng.choice(
        (now + "x", now.upper(), "_" + now, now + "\0", now.replace("_", "-"), rng.choice(_TEXTS), now[:-1])
    )
