"""Read the pickles of CIFAR-10 and CIFAR-100 without unpickling: nothing is ever imported or called.

A pickle is a program for a small stack machine. Of its instructions those that make plain data are carried out here:
numbers, text, bytes, lists, tuples, dictionaries. The instructions that import and call (GLOBAL, REDUCE, BUILD) have no
general meaning here: the few combinations by which NumPy and Python write an array of bytes are recognized as such,
and anything else is refused.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from eqdeploy.errors import DataError
from eqdeploy.files import read_bounded

#: Larger than any file of these data sets.
_MAXIMUM_BYTES = 512 << 20

_HINT = "pickles can run code, so only what torchvision downloads is read; download it again, or the binary version"

#: Names that a pickle of an array mentions, and what each means here.
_NAMES = {
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",  # how Python 3 writes bytes in a pickle that Python 2 can read
}

#: Instructions that put their own argument on the stack.
_CONSTANTS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)

#: Text of Python 2, which may just as well be bytes.
_OLD_STRINGS = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})

#: Instructions that put together what is on the stack.
_COLLECTING = frozenset(
    {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "LIST", "DICT", "APPEND", "APPENDS", "SETITEM", "SETITEMS"}
)

_FIXED: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}


@dataclass(frozen=True)
class _Name:
    """Something that the pickle would import."""

    meaning: str


class _Type:
    """NumPy's type of one unsigned byte; there are no others here."""


@dataclass
class _Array:
    """An array before and after its content is set."""

    content: NDArray[np.uint8] | None = None


class _Mark:
    """Where a list of arguments begins."""


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """Read a dictionary of plain data and arrays of bytes.

    Args:
        path: The file.

    Returns:
        The dictionary; keys as text, text of Python 2 as bytes, arrays as uint8.

    Raises:
        DataError: If the file cannot be read, is damaged, or holds an instruction that makes anything else.
    """
    where = str(path)
    content = read_bounded(path, _MAXIMUM_BYTES, DataError)
    machine = _Machine(where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in damaged text
            for instruction, argument, _ in pickletools.genops(content):
                machine.run(instruction.name, argument)
        result = machine.result()
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, UnicodeError, SyntaxError) as error:
        raise DataError(f"damaged: {error}", where=where, hint=_HINT) from error
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in result.items()}


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> dict[Any, Any]:
        """The dictionary that is left on the stack, with arrays in place."""
        if len(self.stack) != 1 or not isinstance(self.stack[0], dict):
            self._refuse("no dictionary")
        return {key: self._finished(value) for key, value in self.stack[0].items()}

    def run(self, name: str, argument: Any) -> None:
        """Carry out one instruction.

        Raises:
            DataError: If it could do anything but make plain data.
        """
        if name in _CONSTANTS:
            self.stack.append(argument)
        elif name in _OLD_STRINGS:
            self.stack.append(argument.encode("latin-1") if isinstance(argument, str) else argument)
        elif name in _FIXED:
            self.stack.append(_FIXED[name]())
        elif name in ("PROTO", "FRAME", "STOP"):
            return
        elif name == "MARK":
            self.stack.append(_Mark())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name in _COLLECTING:
            self._collect(name)
        else:
            self._recognize(name, argument)

    def _collect(self, name: str) -> None:
        """Instructions that put together what is on the stack."""
        match name:
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._pop(int(name[-1]))))
            case "TUPLE":
                self.stack.append(tuple(self._pop_to_mark()))
            case "LIST":
                self.stack.append(self._pop_to_mark())
            case "DICT":
                values = self._pop_to_mark()
                self.stack.append({})
                self._set(values)
            case "APPEND" | "APPENDS":
                self._extend(self._pop(1) if name == "APPEND" else self._pop_to_mark())
            case _:
                self._set(self._pop(2) if name == "SETITEM" else self._pop_to_mark())

    def _recognize(self, name: str, argument: Any) -> None:
        """Instructions that import and call: what they would make is recognized, or refused."""
        match name:
            case "GLOBAL":
                self._name(str(argument))
            case "STACK_GLOBAL":
                self._name(" ".join(str(part) for part in self._pop(2)))
            case "REDUCE":
                self._reduce(*self._pop(2))
            case "BUILD":
                self._build(*self._pop(1))
            case _:
                self._refuse(f"the instruction {name}")

    def _name(self, name: str) -> None:
        """Note a name that is known; nothing is imported."""
        if name not in _NAMES:
            self._refuse(f"the name {name!r}")
        self.stack.append(_Name(_NAMES[name]))

    def _reduce(self, function: Any, arguments: Any) -> None:
        """Recognize what NumPy and Python write for an array, a type and bytes; nothing is called."""
        match function, arguments:
            case _Name("reconstruct"), (_Name("ndarray"), (0,), b"b" | "b"):
                self.stack.append(_Array())
            case _Name("dtype"), (b"u1" | "u1", _, _):
                self.stack.append(_Type())
            case _Name("encode"), (str(text), "latin1" | b"latin1"):
                self.stack.append(text.encode("latin-1"))
            case _:
                self._refuse("a call that makes no array of bytes")

    def _build(self, state: Any) -> None:
        """Set the content of the array on the stack, or accept the state of a type without parts."""
        match self.stack[-1], state:
            case _Type(), (int(), b"|" | "|", None, None, None, -1, -1, 0):
                return
            case _Array() as array, (1, tuple(shape), _Type(), 0 | 1 as fortran, bytes(content)):
                array.content = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
            case _:
                self._refuse("a state that is not that of an array of bytes")

    def _extend(self, values: list[Any]) -> None:
        """Append to the list on the stack."""
        if not isinstance(self.stack[-1], list):
            self._refuse("an append to something else than a list")
        self.stack[-1].extend(values)

    def _set(self, values: list[Any]) -> None:
        """Add keys and values to the dictionary on the stack."""
        if not isinstance(self.stack[-1], dict) or len(values) % 2:
            self._refuse("items of something else than a dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | bytes):
                self._refuse("a key that is no text")
            self.stack[-1][key] = value

    def _pop(self, count: int) -> list[Any]:
        """Take values from the stack."""
        if len(self.stack) < count:
            self._refuse("an instruction without its arguments")
        values = self.stack[-count:]
        del self.stack[-count:]
        if any(isinstance(value, _Mark) for value in values):
            self._refuse("an instruction without its arguments")
        return values

    def _pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        marks = (position for position in reversed(range(len(self.stack))) if isinstance(self.stack[position], _Mark))
        position = next(marks, None)
        if position is None:
            self._refuse("a list without a beginning")
        values = self.stack[position + 1 :]
        del self.stack[position:]
        return values

    def _finished(self, value: Any) -> Any:
        """An array as NumPy's; plain data as they are."""
        if isinstance(value, _Array):
            if value.content is None:
                self._refuse("an array without content")
            return value.content
        if isinstance(value, _Name | _Type | _Mark):
            self._refuse("something that is no data")
        return value

    def _refuse(self, what: str) -> NoReturn:
        """Refuse the file."""
        raise DataError(f"a pickle with {what}, which is never loaded", where=self.where, hint=_HINT)
