"""Where source code may be cut: between the files of a repository that was written into one text, and between top-level blocks.

A file begins at a line of one of these forms; the path has no spaces:

    # FILE: path                 after any comment sign, or none (then ``FILE:`` or ``File:``); also below a line of ====
    === path ===                 at least three of = - # * on either side; the path has a dot or a slash
    <file_sep>, <|file_sep|>     anywhere in a line
    <reponame>, <filename>path   at the start of a line, as does <file path="path">
    // path/to/x.cc              a comment of nothing but a path with a suffix, after a blank line or at the start; without a
                                 slash the suffix must be that of a source file

A top-level block begins at column 0 after a blank line. What closes something (``}``, ``end``, ``#endif``) or goes on with it
(``else``, ``private:``) begins none. Comments and decorators stay with what follows them, and nothing begins inside of
``/* ... */`` and triple quotes.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator

from megatron_longpo.generation.cutting import PARAGRAPH_END, hidden_spans, visible_matches

# fmt: off
SOURCE_SUFFIXES = frozenset(
    [
        ".ada", ".adb", ".asm", ".awk", ".bash", ".bat", ".c", ".cc", ".clj", ".cljs", ".cmake", ".cpp", ".cs", ".cu", ".cuh",
        ".cxx", ".d", ".dart", ".el", ".elm", ".erl", ".ex", ".exs", ".f", ".f90", ".fs", ".go", ".groovy", ".h", ".hh", ".hpp",
        ".hrl", ".hs", ".hxx", ".java", ".jl", ".js", ".jsx", ".kt", ".kts", ".lisp", ".lua", ".m", ".mjs", ".ml", ".mli",
        ".mm", ".nim", ".pas", ".php", ".pl", ".pm", ".proto", ".ps1", ".py", ".pyi", ".pyx", ".r", ".rb", ".rkt", ".rs", ".s",
        ".scala", ".scm", ".sh", ".sol", ".sql", ".sv", ".swift", ".tcl", ".ts", ".tsx", ".v", ".vb", ".vhd", ".vim", ".vue",
        ".zig", ".zsh",
    ]
)
# fmt: on

_SIGN = r"(?:\#+|//+|--(?!-)|;+|%+|/\*+|<!--)"
_CLOSE = r"(?:\*+/|-->)?[ \t\r]*$"
_PATH = r"/?[\w.@+~-]+(?:/[\w.@+~-]+)*"
_SOURCE_FILE = r"[\w.@+~-]+(?:" + "|".join(map(re.escape, sorted(SOURCE_SUFFIXES, reverse=True))) + ")"

FILE_HEADER = re.compile(
    rf"""
    (?P<named> ^(?:[=\-\#*/]{{8,}}[ \t\r]*\n)?
        (?:{_SIGN}[ \t]*(?i:file(?:name|path)?)|FILE|File)[ \t]*:[ \t]*{_PATH}[ \t]*{_CLOSE})
    | (?P<ruled> ^(?P<rule>[=\-\#*])(?P=rule){{2,}}[ \t]+
        (?:(?i:file)[ \t]*:[ \t]*)?(?=\S*[./]){_PATH}[ \t]+(?P=rule){{3,}}[ \t\r]*$)
    | (?P<token> <file_sep>|<\|file_sep\|>|^<reponame>|^<filename>(?={_PATH}[ \t]*(?:<|\r?$))
        |^<file[ ](?:path|name)=["'][^"'\n]+["'][^>\n]*>[ \t\r]*$)
    | (?:\A|^[ \t\r]*\n)
        (?P<alone> {_SIGN}[ \t]*(?:/?[\w.@+~-]*(?:/[\w.@+~-]+)+\.[A-Za-z]\w{{0,9}}|{_SOURCE_FILE})[ \t]*{_CLOSE})
    """,
    re.MULTILINE | re.VERBOSE,
)

HIDDEN = re.compile(r"^[ \t]*(?P<comment>/\*)|(?P<quotes>\"\"\"|''')", re.MULTILINE)
_ENDS = {"/*": re.compile(r"\*/"), '"""': re.compile(r'(?<!\\)"""'), "'''": re.compile(r"(?<!\\)'''")}

CODE_LINE = re.compile(
    r"""
    ^[ \t]*
    (?! //|/?\*|--|;|%|@                            # comments, decorators, annotations
      | \#(?![ \t]*(?:include|define|undef|if|ifdef|ifndef|elif|else|endif|pragma|error|warning|import|line)\b))
    \S
    """,
    re.MULTILINE | re.VERBOSE,
)
BLOCK_START = re.compile(
    r"""
    (?! [})\]]|\#[ \t]*(?:endif|else|elif)\b|\*/
      | (?:end|endif|endfunction|endmodule|fi|done|esac|else|elif|elsif|except|rescue|ensure|finally|catch)\b
      | (?:public|private|protected|signals|slots)\b[^\n(]*:[ \t\r]*$)
    \S
    """,
    re.MULTILINE | re.VERBOSE | re.IGNORECASE,
)


def cut_files(text: str, start: int, end: int) -> Iterator[int]:
    """Begin a piece at each header of a file."""
    for match in FILE_HEADER.finditer(text, start, end):
        yield next(match.start(kind) for kind in ("named", "ruled", "token", "alone") if match[kind] is not None)


def cut_blocks(text: str, start: int, end: int) -> Iterator[int]:
    """Begin a piece at each top-level block, provided that the piece before it holds more than comments."""
    hidden = list(hidden_spans(text, start, end, HIDDEN, lambda opening: _ENDS[opening[0].lstrip()]))
    code = [match.start() for match in visible_matches(CODE_LINE, text, start, end, hidden)]
    block = start
    for match in visible_matches(PARAGRAPH_END, text, start, end, hidden):
        position = match.end()
        has_code = bisect.bisect_left(code, block) < bisect.bisect_left(code, position)
        if has_code and BLOCK_START.match(text, position, end):
            yield position
            block = position
