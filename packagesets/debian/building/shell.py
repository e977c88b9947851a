"""Read the shell scripts of maintainers: which commands does one call when the package is installed for the first time?

The script is interpreted, never run: no command of it is called, and nothing outside the package is looked at, so that the
answer is the same on every machine. Variables, loops, functions and conditions on variables are followed. If a condition
asks for something that is not known (the machine's files, another command's status), both branches are followed.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

# Of one script. The longest of Debian's calls some hundred commands.
_MOST_COMMANDS = 20_000
_MOST_STEPS = 200_000
_DEEPEST = 40

_OPERATORS = (
    "<<-", ";;&", "&&", "||", ";;", ";&", "<<", ">>", "<&", ">&", "<>", ">|", "&>", "|&",
    ";", "&", "|", "(", ")", "<", ">", "\n",
)  # fmt: skip
_REDIRECTIONS = frozenset({"<", ">", ">>", "<&", ">&", "<>", ">|", "&>", "<<", "<<-"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\+?=")
_PARAMETER = re.compile(r"([A-Za-z_][A-Za-z0-9_]*|[0-9@*#?!$-])(?:(:?[-=+?]|%%?|##?)(.*))?", re.DOTALL)

TEMPORARY = "/tmp/temporary."  # noqa: S108  # a name that stands for a file, which is never made
"""The names of files that `mktemp` would make, without a number."""

Command = tuple["str | None", ...]
"""The words of a command; None stands for a word that is not known."""


def commands(script: str, arguments: Sequence[str] = ("configure", "")) -> list[Command]:
    """The commands that `script` calls with `arguments`, in order; as far as the script can be read.

    A postinst's arguments are `configure` and the version that was configured before, none.
    """
    interpreter = _Interpreter(list(arguments))
    with suppress(_Unreadable, _Exit, _Return, RecursionError):
        interpreter.run(_Parser(_tokens(script)).script())
    return interpreter.called


class _Unreadable(Exception):
    """The script has a syntax that this does not know, or calls too many commands."""


class _Exit(Exception):
    """The script ends here."""


class _Return(Exception):
    """The function ends here."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a word: `text` as it is, the parameter `text`, or the output of the script `text`."""

    kind: str
    text: str
    quoted: bool


@dataclass(slots=True)
class _Token:
    operator: str = ""
    parts: list[_Part] = field(default_factory=list)

    @property
    def plain(self) -> str:
        """The text of a word without quotes and expansions; empty for every other token."""
        if len(self.parts) == 1 and self.parts[0].kind == "text" and not self.parts[0].quoted:
            return self.parts[0].text
        return ""


def _tokens(script: str) -> list[_Token]:
    return list(_Lexer(script).tokens())


class _Lexer:
    def __init__(self, text: str) -> None:
        self._text = text.replace("\\\n", "")
        self._at = 0
        self._here_documents: list[tuple[str, bool]] = []

    def tokens(self) -> Iterator[_Token]:
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in " \t\r":
                self._at += 1
            elif character == "#":
                end = self._text.find("\n", self._at)
                self._at = end if end >= 0 else len(self._text)
            elif operator := next((o for o in _OPERATORS if self._text.startswith(o, self._at)), None):
                self._at += len(operator)
                yield _Token(operator)
                if operator in ("<<", "<<-"):
                    self._blanks()
                    word = self._word()
                    self._here_documents.append(
                        ("".join(part.text for part in word.parts), operator == "<<-")
                    )
                    yield word
                elif operator == "\n":
                    self._skip_here_documents()
            else:
                yield self._word()
        yield _Token("\n")

    def _blanks(self) -> None:
        while self._text[self._at : self._at + 1] in (" ", "\t"):
            self._at += 1

    def _skip_here_documents(self) -> None:
        for end, indented in self._here_documents:
            while self._at < len(self._text):
                line, _, _ = self._text[self._at :].partition("\n")
                self._at += len(line) + 1
                if (line.lstrip("\t") if indented else line) == end:
                    break
        self._here_documents.clear()

    def _word(self) -> _Token:
        parts: list[_Part] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            if character in " \t\r\n;&|<>()":
                break
            if character == "'":
                end = self._text.find("'", self._at + 1)
                if end < 0:
                    raise _Unreadable
                parts.append(_Part("text", self._text[self._at + 1 : end], quoted=True))
                self._at = end + 1
            elif character == '"':
                self._at += 1
                parts.append(_Part("text", "", quoted=True))
                while self._text[self._at : self._at + 1] != '"':
                    parts.append(self._piece(quoted=True))
                self._at += 1
            else:
                parts.append(self._piece(quoted=False))
        return _Token(parts=parts)

    def _piece(self, *, quoted: bool) -> _Part:
        if self._at >= len(self._text):
            raise _Unreadable
        character = self._text[self._at]
        if character == "\\":
            self._at += 2
            escaped = self._text[self._at - 1 : self._at]
            return _Part("text", escaped if not quoted or escaped in '$`"\\' else "\\" + escaped, quoted=True)
        if character == "`":
            end = self._text.find("`", self._at + 1)
            if end < 0:
                raise _Unreadable
            text = self._text[self._at + 1 : end]
            self._at = end + 1
            return _Part("output", text, quoted)
        if character == "$":
            return self._expansion(quoted=quoted)
        start = self._at
        stops = '"\\`$' if quoted else " \t\r\n;&|<>()'\"\\`$"
        while self._at < len(self._text) and self._text[self._at] not in stops:
            self._at += 1
        return _Part("text", self._text[start : self._at], quoted)

    def _expansion(self, *, quoted: bool) -> _Part:
        rest = self._text[self._at + 1 : self._at + 2]
        if rest == "{":
            return _Part("parameter", self._enclosed("{", "}"), quoted)
        if rest == "(":
            return _Part("output", self._enclosed("(", ")"), quoted)
        if match := _NAME.match(self._text, self._at + 1):
            self._at = match.end()
            return _Part("parameter", match[0], quoted)
        if rest and rest in "0123456789@*#?!$-":
            self._at += 2
            return _Part("parameter", rest, quoted)
        self._at += 1
        return _Part("text", "$", quoted)

    def _enclosed(self, opening: str, closing: str) -> str:
        """The text between the brackets after `$`; brackets in quotes do not count."""
        self._at += 2
        start, depth, quote = self._at, 1, ""
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "\\":
                self._at += 1
            elif quote:
                quote = "" if character == quote else quote
            elif character in "'\"":
                quote = character
            elif character == opening:
                depth += 1
            elif character == closing:
                depth -= 1
                if not depth:
                    self._at += 1
                    return self._text[start : self._at - 1]
            self._at += 1
        raise _Unreadable


@dataclass(slots=True)
class _Simple:
    """A command, and the file that its output is redirected to."""

    words: list[_Token]
    output: _Token | None = None


@dataclass(slots=True)
class _AndOr:
    """Commands, each with the operator before it: `&&`, `||`, or `;` for the first one; `negated` as by `!`."""

    commands: list[tuple[str, bool, _Node]]


@dataclass(slots=True)
class _If:
    branches: list[tuple[_Body, _Body]]
    otherwise: _Body


@dataclass(slots=True)
class _For:
    variable: str
    words: list[_Token] | None
    body: _Body


@dataclass(slots=True)
class _While:
    condition: _Body
    body: _Body


@dataclass(slots=True)
class _Case:
    subject: _Token
    branches: list[tuple[list[_Token], _Body]]


@dataclass(slots=True)
class _Function:
    name: str
    body: _Body


@dataclass(slots=True)
class _Group:
    body: _Body


_Node = _Simple | _AndOr | _If | _For | _While | _Case | _Function | _Group
_Body = list[_Node]

_CLOSING = frozenset({"then", "elif", "else", "fi", "do", "done", "esac", "}"})


class _Parser:
    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def script(self) -> _Body:
        body = self._body()
        if self._at < len(self._tokens):
            raise _Unreadable
        return body

    def _peek(self) -> _Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else _Token(";;")

    def _next(self) -> _Token:
        token = self._peek()
        self._at += 1
        return token

    def _expect(self, word: str) -> None:
        token = self._next()
        if word not in (token.plain, token.operator):
            raise _Unreadable

    def _newlines(self) -> None:
        while self._peek().operator in ("\n", ";", "&"):
            self._at += 1

    def _body(self) -> _Body:
        body: _Body = []
        while True:
            self._newlines()
            token = self._peek()
            if token.operator in (";;", ";&", ";;&", ")") or token.plain in _CLOSING:
                return body
            body.append(self._and_or())

    def _and_or(self) -> _Node:
        commands: list[tuple[str, bool, _Node]] = []
        operator = ";"
        while True:
            negated = False
            while self._peek().plain == "!":
                self._at += 1
                negated = not negated
            commands.append((operator, negated, self._command()))
            operator = self._peek().operator
            if operator not in ("&&", "||", "|", "|&"):
                break
            self._at += 1
            while self._peek().operator == "\n":
                self._at += 1
        return _AndOr(commands)

    def _command(self) -> _Node:
        token = self._peek()
        node: _Node
        match token.plain or token.operator:
            case "if":
                node = self._if()
            case "for":
                node = self._for()
            case "while" | "until":
                self._at += 1
                condition = self._body()
                self._expect("do")
                node = _While(condition, self._until("done"))
            case "case":
                node = self._case()
            case "{":
                self._at += 1
                node = _Group(self._until("}"))
            case "(":
                self._at += 1
                node = _Group(self._until(")"))
            case _:
                return self._simple()
        self._redirections()
        return node

    def _until(self, end: str) -> _Body:
        body = self._body()
        self._expect(end)
        return body

    def _if(self) -> _Node:
        branches, otherwise = [], []
        self._at += 1
        while True:
            condition = self._body()
            self._expect("then")
            branches.append((condition, self._body()))
            word = self._next().plain
            if word == "else":
                otherwise = self._until("fi")
            elif word == "elif":
                continue
            elif word != "fi":
                raise _Unreadable
            return _If(branches, otherwise)

    def _for(self) -> _Node:
        self._at += 1
        variable = self._next().plain
        words: list[_Token] | None = None
        self._newlines()
        if self._peek().plain == "in":
            self._at += 1
            words = []
            while self._peek().parts:
                words.append(self._next())
        self._newlines()
        self._expect("do")
        return _For(variable, words, self._until("done"))

    def _case(self) -> _Node:
        self._at += 1
        subject = self._next()
        self._newlines()
        self._expect("in")
        branches = []
        self._newlines()
        while self._peek().plain != "esac":
            if self._peek().operator == "(":
                self._at += 1
            patterns = [self._next()]
            while self._peek().operator == "|":
                self._at += 1
                patterns.append(self._next())
            self._expect(")")
            branches.append((patterns, self._body()))
            if self._peek().operator in (";;", ";&", ";;&"):
                self._at += 1
                if self._at >= len(self._tokens):
                    raise _Unreadable
            self._newlines()
        self._at += 1
        return _Case(subject, branches)

    def _simple(self) -> _Node:
        words: list[_Token] = []
        output: _Token | None = None
        if self._peek().plain == "function":
            self._at += 1
        while True:
            token = self._peek()
            if self._is_redirection():
                if token.operator == ">" and self._at + 1 < len(self._tokens):
                    output = self._tokens[self._at + 1]
                self._redirections()
            elif token.operator == "(" and len(words) == 1:
                self._at += 1
                self._expect(")")
                self._newlines()
                return _Function(words[0].plain, [self._command()])
            elif token.parts:
                words.append(self._next())
            else:
                break
        if not words and token.operator not in ("\n", ";", "&", "|"):
            raise _Unreadable
        return _Simple(words, output)

    def _is_redirection(self) -> bool:
        """Whether a redirection is next, which may begin with the number of a file descriptor."""
        following = self._tokens[self._at + 1 : self._at + 2]
        return self._peek().operator in _REDIRECTIONS or (
            self._peek().plain.isdigit() and bool(following) and following[0].operator in _REDIRECTIONS
        )

    def _redirections(self) -> None:
        while self._is_redirection():
            self._at += 3 if self._peek().plain else 2


class _Interpreter:
    def __init__(self, arguments: list[str]) -> None:
        self.called: list[Command] = []
        self._variables: dict[str, str | None] = {"IFS": " "}
        self._arguments: list[str | None] = [*arguments]
        self._functions: dict[str, _Body] = {}
        self._depth = 0
        self._temporary_files = 0
        self._steps = 0
        # Branches above that may not be taken.
        self._uncertain = 0

    def run(self, body: _Body) -> bool | None:
        """Run commands; returns whether the last one succeeds, None if that is not known."""
        status: bool | None = True
        for node in body:
            status = self._node(node)
        return status

    def _node(self, node: _Node) -> bool | None:  # noqa: C901  # one case for each kind of command
        self._steps += 1
        if self._steps > _MOST_STEPS or len(self.called) >= _MOST_COMMANDS:
            raise _Unreadable
        match node:
            case _Simple(words, output):
                return self._simple(words, output)
            case _AndOr(commands):
                return self._and_or(commands)
            case _If(branches, otherwise):
                return self._if(branches, otherwise)
            case _For(variable, words, body):
                values = self._fields(words) if words is not None else self._arguments
                for value in values:
                    self._variables[variable] = value
                    self.run(body)
            case _While(condition, body):
                self.run(condition)
                self._maybe(body)
            case _Case(subject, branches):
                self._case(subject, branches)
            case _Function(name, body):
                self._functions[name] = body
                return True
            case _Group(body):
                return self.run(body)
        return None

    def _and_or(self, commands: list[tuple[str, bool, _Node]]) -> bool | None:
        status: bool | None = True
        for operator, negated, node in commands:
            if (operator == "&&" and status is False) or (operator == "||" and status is True):
                continue
            if operator in ("&&", "||") and status is None:
                self._maybe([node])
                continue
            status = self._node(node)
            if negated and status is not None:
                status = not status
        return status

    def _if(self, branches: list[tuple[_Body, _Body]], otherwise: _Body) -> bool | None:
        possible: list[_Body] = []
        for condition, body in branches:
            status = self.run(condition)
            if status is True and not possible:
                return self.run(body)
            if status is not False:
                possible.append(body)
            if status is True:
                break
        else:
            if not possible:
                return self.run(otherwise)
            possible.append(otherwise)
        self._maybe(*possible)
        return None

    def _maybe(self, *bodies: _Body) -> None:
        """Run bodies of which one at most will be; a variable gets the value of the first body that sets it."""
        before = dict(self._variables)
        changed: dict[str, str | None] = {}
        self._uncertain += 1
        for body in bodies:
            self._variables = dict(before)
            self.run(body)
            for name, value in self._variables.items():
                if name not in before or before[name] != value:
                    changed.setdefault(name, value)
        self._uncertain -= 1
        self._variables = {**before, **changed}

    def _case(self, subject: _Token, branches: list[tuple[list[_Token], _Body]]) -> None:
        value = self._text(subject)
        if value is None:
            self._maybe(*(body for _, body in branches))
            return
        for patterns, body in branches:
            if any(fnmatch.fnmatchcase(value, self._text(pattern) or "") for pattern in patterns):
                self.run(body)
                return

    def _simple(self, words: list[_Token], output: _Token | None) -> bool | None:
        fields = self._fields(self._assigned(words))
        if output is not None and fields[:1] in (["cat"], ["sed"]):
            # For a reader of these commands, a file that is made of another one.
            fields += [">", self._text(output)]
        return self._call(fields[0], fields[1:]) if fields else True

    def _assigned(self, words: list[_Token]) -> list[_Token]:
        """Do the assignments that a command begins with; returns its other words."""
        while words and (match := _ASSIGNMENT.match(_start(words[0]))):
            value = _Token(parts=_without_start(words[0].parts, match.end()))
            self._variables[match[1]] = self._text(value)
            words = words[1:]
        return words

    def _call(self, name: str | None, arguments: list[str | None]) -> bool | None:
        if name in self._functions:
            return self._function(self._functions[name], arguments)
        match name:
            case "local" | "export" | "readonly" | "typeset":
                for argument in arguments:
                    if argument and (match := _ASSIGNMENT.match(argument)):
                        self._variables[match[1]] = argument[match.end() :]
            case "unset":
                for argument in arguments:
                    self._variables.pop(argument or "", None)
            case "set" | "shift":
                self._positional(name, arguments)
            case "exit" | "return" | "exec":
                self._leave(name, arguments)
            case _:
                self.called.append((name, *arguments))
                return _status(name, arguments)
        return True

    def _leave(self, name: str, arguments: list[str | None]) -> None:
        if name == "exec" and arguments:
            self.called.append((*arguments,))
        if not self._uncertain:
            raise _Return if name == "return" else _Exit

    def _positional(self, name: str, arguments: list[str | None]) -> None:
        if name == "shift":
            del self._arguments[:1]
        elif arguments and arguments[0] == "--":
            self._arguments = arguments[1:]
        elif arguments and not (arguments[0] or "").startswith(("-", "+")):
            self._arguments = arguments

    def _function(self, body: _Body, arguments: list[str | None]) -> bool | None:
        if self._depth >= _DEEPEST:
            raise _Unreadable
        outer, self._arguments = self._arguments, arguments
        self._depth += 1
        try:
            return self.run(body)
        except _Return:
            return None
        finally:
            self._depth -= 1
            self._arguments = outer

    def _fields(self, words: Sequence[_Token]) -> list[str | None]:
        fields: list[str | None] = []
        for word in words:
            fields += self._word_fields(word)
        return fields

    def _word_fields(self, word: _Token) -> list[str | None]:
        if len(word.parts) <= 2 and [part.text for part in word.parts if part.kind == "parameter"] == ["@"]:  # noqa: PLR2004
            return list(self._arguments)
        fields: list[str | None] = []
        text: str | None = None
        for part in word.parts:
            value = self._part(part)
            if value is None:
                # A word that is not known may be none, which `--slave` of an alternative often is.
                return [None]
            if part.quoted or part.kind == "text":
                text = (text or "") + value
                continue
            first, *others = re.split(r"[ \t\n]+", value)
            text = (text or "") + first if first or text else text
            for other in others:
                if text is not None:
                    fields.append(text)
                text = other or None
        return fields if text is None else [*fields, text]

    def _text(self, word: _Token) -> str | None:
        """The word without field splitting, as in an assignment."""
        values = [self._part(part) for part in word.parts]
        return None if None in values else "".join(value or "" for value in values)

    def _part(self, part: _Part) -> str | None:
        if part.kind == "text":
            return part.text
        if part.kind == "output":
            return self._output(part.text)
        match = _PARAMETER.fullmatch(part.text)
        return None if match is None else self._expanded(match[1], match[2] or "", match[3] or "")

    def _expanded(self, name: str, operator: str, operand: str) -> str | None:
        """The value of a parameter, after the operation of `${name:-operand}` and its relatives."""
        value = self._parameter(name)
        other = self._text(_quoted(operand)) if operator else None
        if operator.startswith(("%", "#")):
            return _trimmed(value, operator, other)
        if operator.endswith(("-", "=")):
            return value or other
        if operator.endswith("+") and not value:
            return "" if name.isdigit() or name in self._variables else None
        return other if operator.endswith("+") else value

    def _parameter(self, name: str) -> str | None:
        if name.isdigit():
            index = int(name)
            if index == 0:
                return None
            return self._arguments[index - 1] if index <= len(self._arguments) else ""
        if name == "#":
            return str(len(self._arguments))
        if name in ("@", "*"):
            return None if None in self._arguments else " ".join(filter(None, self._arguments))
        return self._variables.get(name)

    def _output(self, script: str) -> str | None:
        """The output of the simplest commands, which a script composes names with."""
        try:
            body = _Parser(_tokens(script)).script()
        except _Unreadable:
            return None
        match body:
            case [_AndOr([(";", False, _Simple(words, None))])]:
                fields = self._fields(words)
                if fields[:1] == ["mktemp"]:
                    self._temporary_files += 1
                    return f"{TEMPORARY}{self._temporary_files}"
                return None if None in fields else _output([field or "" for field in fields])
        return None


def _quoted(text: str) -> _Token:
    return next(_Lexer('"' + text.replace('"', "") + '"').tokens())


def _start(word: _Token) -> str:
    first = word.parts[0] if word.parts else None
    return first.text if first and first.kind == "text" and not first.quoted else ""


def _without_start(parts: list[_Part], length: int) -> list[_Part]:
    first, *others = parts
    return [_Part("text", first.text[length:], first.quoted), *others]


def _trimmed(value: str | None, operator: str, pattern: str | None) -> str | None:
    """`${value%pattern}` and its relatives."""
    if value is None or pattern is None:
        return None
    lengths = range(len(value) + 1)
    from_end = operator.startswith("%")
    for length in lengths if len(operator) == 1 else reversed(lengths):
        piece = value[len(value) - length :] if from_end else value[:length]
        if fnmatch.fnmatchcase(piece, pattern):
            return value[: len(value) - length] if from_end else value[length:]
    return value


def _output(words: list[str]) -> str | None:
    match words:
        case ["basename", path]:
            return path.rstrip("/").rpartition("/")[2]
        case ["basename", path, suffix]:
            return path.rstrip("/").rpartition("/")[2].removesuffix(suffix)
        case ["dirname", path]:
            return path.rstrip("/").rpartition("/")[0] or "/"
        case ["echo", *arguments]:
            return " ".join(argument for argument in arguments if argument not in ("-n", "-e"))
    return None


def _status(name: str | None, arguments: list[str | None]) -> bool | None:
    """Whether a command succeeds, if that follows from its arguments."""
    match [name, *arguments]:
        case ["true" | ":"]:
            return True
        case ["false"]:
            return False
        case ["dpkg", "--compare-versions", "", operator, _]:
            # No version is before every other one, and after it for the operators that end in -nl.
            return _OF_NO_VERSION.get(operator or "")
        case ["[" | "[[", *terms, "]" | "]]"]:
            return _test(terms)
        case ["test", *terms]:
            return _test(terms)
    return None


_OF_NO_VERSION = {
    "lt": True, "le": True, "ne": True, "gt": False, "ge": False, "eq": False,
    "lt-nl": False, "le-nl": False, "gt-nl": True, "ge-nl": True,
}  # fmt: skip


def _test(terms: list[str | None]) -> bool | None:
    for operator, decides in (("-o", True), ("||", True), ("-a", False), ("&&", False)):
        if operator in terms:
            at = terms.index(operator)
            answers = (_test(terms[:at]), _test(terms[at + 1 :]))
            if decides in answers:
                return decides
            return None if None in answers else not decides
    match terms:
        case ["!", *others]:
            answer = _test(others)
            return None if answer is None else not answer
        case ["-z" | "-n" as operator, str() as value]:
            return bool(value) == (operator == "-n")
        case [str() as one, "=" | "==" | "!=" as operator, str() as other]:
            return (one == other) != (operator == "!=")
    return None
