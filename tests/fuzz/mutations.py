"""Changes of files that keep most of their structure, so that they get past the first check of a parser.

Every mutation is a function of the content and a generator of random numbers: the same generator makes the same file.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import yaml
from google.protobuf.message import Message

Mutation = Callable[[bytes, random.Random], bytes]

#: Longer files only make fuzzing slow.
MAXIMUM_BYTES = 1 << 19

#: Values that break assumptions: of type, sign, size, finiteness, encoding.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 2**31, -(2**31), 2**53 + 1, 2**63, 2**64, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *("", "a", "0", "NaN", "../..", "/", "\0", "\ud800", "é" * 70, "x" * 5000, "9" * 5000, "1e999", "2020-01-01"),
    *([], {}, [[]], [{}], {"": None}, [1, "a", None], [0] * 100),
)

#: Bytes that mean something in one format or another.
_TOKENS = (
    *(
        b"\0",
        b"\xff",
        b"\n",
        b"\r\n",
        b'"',
        b"'",
        b",",
        b":",
        b"{",
        b"}",
        b"[",
        b"]",
        b"- ",
        b"? ",
        b"!!",
        b"&a ",
        b"*a",
    ),
    *(
        b"!!python/object:os.system ",
        b"<<: ",
        b"---\n",
        b"0x",
        b"1_000",
        b"1:30",
        b"9" * 4400,
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
    ),
    *(b"nan", b"-1", b"1e999", b"PK\x03\x04", b"\x80\x04", b"." * 3, b"[" * 2000, b"{" * 200, b"\x00" * 64),
)


def structured(mutation: Mutation) -> Mutation:
    """Let a mutation that cannot read an input change its bytes instead, whatever it trips over."""

    def mutate(content: bytes, source: random.Random) -> bytes:
        try:
            return mutation(content, source)[:MAXIMUM_BYTES]
        except Exception:
            return mutate_bytes(content, source)

    return mutate


def mutate_bytes(content: bytes, source: random.Random) -> bytes:
    """Change, remove, repeat or insert some bytes anywhere."""
    data = bytearray(content)
    for _ in range(1 << source.randrange(4)):
        place = source.randrange(len(data) + 1)
        length = min(1 << source.randrange(8), len(data) - place)
        match source.randrange(7):
            case 0 if place < len(data):
                data[place] ^= 1 << source.randrange(8)
            case 1:
                del data[place : place + length]
            case 2:
                other = source.randrange(len(data) + 1)
                data[place:place] = data[other : other + length]
            case 3:
                data[place:place] = source.choice(_TOKENS)
            case 4:
                data[place : place + length] = source.randbytes(length)
            case 5:
                number = source.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40))
                size = source.choice((1, 2, 4, 8))
                order: Any = source.choice(("little", "big"))
                data[place : place + size] = (number % (1 << 8 * size)).to_bytes(size, order)
            case _ if source.randrange(4) == 0:
                del data[place:]
            case _:
                data[place : place + 1] = source.choice(_TOKENS)
    return bytes(data[:MAXIMUM_BYTES])


def mutate_value(value: Any, source: random.Random) -> Any:
    """Change one place in plain data: replace, remove, repeat or add a value, or rename a key."""
    parts = list(_places(value))
    if not parts or source.randrange(60) == 0:
        return source.choice(_VALUES)
    holder, key = source.choice(parts)
    match source.randrange(8):
        case 0 | 1 | 2:
            holder[key] = source.choice(_VALUES)
        case 3:
            del holder[key]
        case 4 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case 4 | 5 if isinstance(holder, dict):
            holder[source.choice((key + "x", key.upper(), "", "schema", "\ud800", key * 200))] = holder.pop(key)
        case 6:
            holder[key] = source.choice(([holder[key]], {"a": holder[key]}))
        case _:
            other, name = source.choice(parts)
            holder[key] = _copied(other.get(name) if isinstance(other, dict) else (*other[name : name + 1], None)[0])
            if type(holder[key]) is int:
                holder[key] += source.choice((-1, 1, 1000))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in plain data, however deeply nested, with every key or index that it has."""
    pending = [value]
    while pending:
        holder = pending.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, part in items:
            yield holder, key
            pending.append(part)


def _copied(value: Any) -> Any:
    """A deep copy; nothing occurs in two places."""
    return json.loads(json.dumps(value))


def _json(value: Any, source: random.Random) -> bytes:
    """Write JSON, now and then with a key twice or nested without end."""
    text = json.dumps(value, ensure_ascii=source.randrange(2) == 0)
    if source.randrange(30) == 0:
        text = text.replace("{", '{"schema": 1, "schema": 2, ', 1)
    if source.randrange(60) == 0:
        text = "[" * 100_000 + text
    return text.encode("utf-8", "surrogatepass")


@structured
def mutate_json(content: bytes, source: random.Random) -> bytes:
    """Change some values of a JSON document, or its bytes."""
    if source.randrange(4) == 0:
        return mutate_bytes(content, source)
    value = json.loads(content)
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        value = mutate_value(value, source)
    return _json(value, source)


def mutate_json_lines(content: bytes, source: random.Random) -> bytes:
    """Change one line of a file with a JSON document on each."""
    lines = content.split(b"\n")
    place = source.randrange(len(lines))
    lines[place] = mutate_json(lines[place], source)
    return b"\n".join(lines)


@structured
def mutate_yaml(content: bytes, source: random.Random) -> bytes:
    """Change some values of a YAML document, or its text."""
    if source.randrange(2) == 0:
        return mutate_bytes(content, source)
    value = yaml.safe_load(content)
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        value = mutate_value(value, source)
    text: str = yaml.safe_dump(value, allow_unicode=True, default_flow_style=source.choice((True, False, None)))
    return text.encode("utf-8", "surrogatepass")


@structured
def mutate_safetensors(content: bytes, source: random.Random) -> bytes:
    """Change the header, the documents in its metadata, or the bytes; the header's length is made to fit."""
    if source.randrange(5) == 0 or len(content) < 8:
        return mutate_bytes(content, source)
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], content[8 + length :]
    try:
        value = json.loads(header)
        entries = value.get("__metadata__", {})
        if entries and source.randrange(3):
            key = source.choice(sorted(entries))
            entries[key] = mutate_json(entries[key].encode(), source).decode("utf-8", "surrogateescape")
            header = json.dumps(value).encode()
        else:
            header = _json(mutate_value(value, source), source)
    except (ValueError, AttributeError, TypeError, RecursionError):
        header = mutate_bytes(header, source)
    if source.randrange(3) == 0 and body:
        # A float of another kind: not finite, denormal, huge.
        place = source.randrange(0, len(body), 4) if len(body) >= 4 else 0
        special = struct.pack("<f", source.choice((float("nan"), float("inf"), -1.0, 1e-40, 3e38)))
        body = body[:place] + special + body[place + 4 :]
    return struct.pack("<Q", len(header)) + header + body


@structured
def mutate_npz(content: bytes, source: random.Random) -> bytes:
    """Change a member of a zip archive, most often the header of an array, or the archive's own bytes."""
    if source.randrange(4) == 0:
        return mutate_bytes(content, source)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = source.choice(sorted(members))
    data = members[name]
    match source.randrange(5):
        case 0:
            members[source.choice(("images.npy", "labels.npy", "classes.npy", "jpeg.npy", "offsets.npy"))] = data
        case 1:
            members[name] = data[: len(data) // 2]
        case 2:
            members[name] = data[:10] + mutate_bytes(data[10:], source)
        case _:
            members[name] = _other_header(data, source)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", source.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def _other_header(data: bytes, source: random.Random) -> bytes:
    """The content of a ``.npy`` file under a header that says something else."""
    types = (
        "|u1",
        "<f4",
        "<f8",
        "<i8",
        "|O",
        "|S3",
        "<U2",
        "<c8",
        "|b1",
        "<M8[s]",
        "|V0",
        "<f2",
        "[('a','<i4')]",
        "<U0",
    )
    shape = tuple(source.choice((0, 1, 2, 3, 8, -1, 2**31, 2**62, 10**30)) for _ in range(source.randrange(6)))
    header = f"{{'descr': {source.choice(types)!r}, 'fortran_order': {source.randrange(2) == 0}, 'shape': {shape}}}"
    if source.randrange(6) == 0:
        header = mutate_bytes(header.encode(), source).decode("latin-1")
    padded = header.encode("latin-1")[:60_000] + b"\n"
    start = data.find(b"\n") + 1
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + data[start:]


@structured
def mutate_onnx(content: bytes, source: random.Random) -> bytes:
    """Change some fields of an ONNX model anywhere in it, or its bytes."""
    if source.randrange(5) == 0:
        return mutate_bytes(content, source)
    model = onnx.ModelProto()
    model.ParseFromString(content)
    for _ in range(source.choice((1, 1, 2, 4))):
        _mutate_message(model, source)
    return bytes(model.SerializeToString())


def _mutate_message(message: Message, source: random.Random) -> None:
    """Walk down to some field and change it."""
    for _ in range(12):
        fields = [field for field, _ in message.ListFields()]
        if not fields:
            return
        field = source.choice(fields)
        value: Any = getattr(message, field.name)
        if field.is_repeated:
            place = source.randrange(len(value))
            match source.randrange(6):
                case 0:
                    del value[place]
                    return
                case 1:
                    value.append(value[place])
                    return
                case _ if field.message_type is None:
                    value[place] = _scalar_like(value[place], source)
                    return
                case _:
                    message = value[place]
        elif field.message_type is not None and source.randrange(8):
            message = value
        elif field.message_type is not None or source.randrange(6) == 0:
            message.ClearField(field.name)
            return
        else:
            setattr(message, field.name, _scalar_like(value, source))
            return


def _scalar_like(value: Any, source: random.Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, str):
        return source.choice(
            ("", "x", value + "x", "DequantizeLinear", "Constant", "Loop", "../x", "batch", value[::-1])
        )
    if isinstance(value, bytes):
        return mutate_bytes(value, source)
    if isinstance(value, float):
        return source.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    return source.choice((0, 1, -1, 2, 3, 7, 21, 2**31 - 1, value + 1))
