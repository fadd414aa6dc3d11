"""Instructions of pickles: numbers, names, and how long those with contents are.

From Python's ``pickletools`` (protocols up to 5). Which of them are carried out is for
``bake.checkpoint.pickled`` to say; the others are here to be refused by name.
"""

import re
from collections.abc import Callable, Mapping
from struct import Struct

WORD, QUAD = Struct("<I"), Struct("<Q")

PROTO, FRAME, STOP, MARK = 0x80, 0x95, ord("."), ord("(")
BINPUT, LONG_BINPUT, MEMOIZE = ord("q"), ord("r"), 0x94
BINGET, LONG_BINGET = ord("h"), ord("j")
BININT, BININT1, BININT2, BINFLOAT = ord("J"), ord("K"), ord("M"), ord("G")
NONE, NEWTRUE, NEWFALSE = ord("N"), 0x88, 0x89
EMPTY_TUPLE, TUPLE, TUPLE1, TUPLE2, TUPLE3 = ord(")"), ord("t"), 0x85, 0x86, 0x87
EMPTY_DICT, SETITEM, SETITEMS = ord("}"), ord("s"), ord("u")
EMPTY_LIST, APPEND, APPENDS = ord("]"), ord("a"), ord("e")
GLOBAL, STACK_GLOBAL, REDUCE, BUILD, BINPERSID = ord("c"), 0x93, ord("R"), ord("b"), ord("Q")
BINUNICODE, SHORT_BINUNICODE, BINUNICODE8 = ord("X"), 0x8C, 0x8D
BINSTRING, SHORT_BINSTRING = ord("T"), ord("U")
BINBYTES, SHORT_BINBYTES, BINBYTES8 = ord("B"), ord("C"), 0x8E
LONG1, LONG4 = 0x8A, 0x8B

TEXTS = frozenset({BINUNICODE, SHORT_BINUNICODE, BINUNICODE8})
STRINGS = frozenset({BINSTRING, SHORT_BINSTRING})
LONGS = frozenset({LONG1, LONG4})
# Those with a count of bytes before the bytes: how many bytes the count has, and its reader.
BYTE = Struct("<B").unpack_from
SIZED: Mapping[int, tuple[int, Callable[[bytes, int], tuple[int, ...]]]] = {
    **dict.fromkeys((SHORT_BINUNICODE, SHORT_BINSTRING, SHORT_BINBYTES, LONG1), (1, BYTE)),
    **dict.fromkeys((BINUNICODE, BINSTRING, BINBYTES, LONG4), (4, WORD.unpack_from)),
    **dict.fromkeys((BINUNICODE8, BINBYTES8), (8, QUAD.unpack_from)),
}

# All of Python 3.11's, to be told by name: pickletools.opcodes.
OPCODES: Mapping[int, str] = {
    ord(code): name
    for code, name in re.findall(
        r"(.)=(\w+)",
        "I=INT J=BININT K=BININT1 M=BININT2 L=LONG \x8a=LONG1 \x8b=LONG4 S=STRING T=BINSTRING "
        "U=SHORT_BINSTRING B=BINBYTES C=SHORT_BINBYTES \x8e=BINBYTES8 \x96=BYTEARRAY8 "
        "\x97=NEXT_BUFFER \x98=READONLY_BUFFER N=NONE \x88=NEWTRUE \x89=NEWFALSE V=UNICODE "
        "\x8c=SHORT_BINUNICODE X=BINUNICODE \x8d=BINUNICODE8 F=FLOAT G=BINFLOAT ]=EMPTY_LIST "
        "a=APPEND e=APPENDS l=LIST )=EMPTY_TUPLE t=TUPLE \x85=TUPLE1 \x86=TUPLE2 \x87=TUPLE3 "
        "}=EMPTY_DICT d=DICT s=SETITEM u=SETITEMS \x8f=EMPTY_SET \x90=ADDITEMS \x91=FROZENSET "
        "0=POP 2=DUP (=MARK 1=POP_MARK g=GET h=BINGET j=LONG_BINGET p=PUT q=BINPUT "
        "r=LONG_BINPUT \x94=MEMOIZE \x82=EXT1 \x83=EXT2 \x84=EXT4 c=GLOBAL \x93=STACK_GLOBAL "
        "R=REDUCE b=BUILD i=INST o=OBJ \x81=NEWOBJ \x92=NEWOBJ_EX \x80=PROTO .=STOP "
        "\x95=FRAME P=PERSID Q=BINPERSID",
    )
}
