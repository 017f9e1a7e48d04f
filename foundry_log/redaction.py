"""Which names and which texts hold secrets, and plain values without them.

Two kinds of evidence. A *name* (`password`, `HF_TOKEN`, `x-api-key`) says that what stands under it
is secret, whatever it looks like; a *format* (a JWT, a PEM block, `://user:password@`) says so
under any name. In text a name counts where it is assigned to: `password=…`, `"password": "…"`,
`--password …`.

People who train language models log tokens that are words. So `token` is a secret's name only where
what is around it says so: `hf_token` always, `pad_token` never, `my_token` when its value looks
like a credential; and in text a bare `token: the` stays, `token=8fK2…` does not. A `pass` is
a password too, unless its value is a number or its name that of a phase: `forward_pass`.

A bare value ends where its surroundings say so, and in doubt later, so that no tail of a secret
stays: at white space; at a quote that was opened before the name in its line; at `;` before white
space or another `name=`; and at `,` or `&` before another `name=`, where the name stands in such a
list itself. At its end commas, and brackets that were opened before, count as surroundings, three
characters at most.

What stays open: secrets that contain such an end themselves, or white space without quotes; bare
ones that begin with a quote, `=`, `:` or `//`; raw quotes and `<>` in URLs; a `pass` of digits
only; those that look like code or a word that says there is none (`password=get(x)`,
`password=missing`), like a port (`://host:80/…@`) or a directory (`PWD=/a/b`); several values under
one name in text (`passwords=['a', 'b']`); XML attributes, elements with elements in them; `-u
user:password` of programs other than curl, or as a list; a secret with no name and no known format.

Every expression is bounded or cannot fail once it has begun, so time grows with the length of the
text and no faster. All of this is safe from any thread.
"""

from __future__ import annotations

import base64
import binascii
import enum
import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

REPLACEMENT = "[redacted]"
MAX_REMEMBERED = 4096
"""Names whose verdict a `Redactor` keeps; one more, and it begins afresh."""


class Kind(enum.Enum):
    """What a name says about the value under it."""

    HARMLESS = enum.auto()
    ANY = enum.auto()  # secret, numbers too: a password
    PWD = enum.auto()  # a password, or the working directory
    PASS = enum.auto()  # a password, or the pass of a loop, with its number or phase
    TEXT = enum.auto()  # secret unless a number: `passwords` may be a count
    AUTH = enum.auto()  # the same; in text only what looks like a credential
    BARE = enum.auto()  # secret unless it is evidently words: `token`, `signature`
    SHAPED = enum.auto()  # secret where it looks like a credential: `my_token`


# --- names ----------------------------------------------------------------------------------------


def _listing(words: str) -> frozenset[str]:
    return frozenset(words.split())


_SECRETS = _listing("password passwd passphrase secret credential cookie authorization cred")
_KEY_OWNERS = _listing(
    """
    access account admin anthropic api app application auth aws azure client decryption deploy
    encryption function gcp google hf hmac huggingface license master openai private rsa secret
    service session shared signing ssh subscription symmetric wandb webhook
    """
)
_TOKEN_OWNERS = _listing(
    """
    access admin anthropic api app auth aws azure bearer bot client csrf deploy device gh git
    github gitlab hf hub huggingface id identity jwt login npm oauth openai personal private
    pypi refresh registry reset sas secret security service session slack sts telegram upload
    vault wandb webhook xsrf
    """
)
_TOKEN_GROUPS = _listing("access api auth bearer refresh session")
_MODEL_WORDS = _listing(
    """
    additional audio begin bos cls current decoder draft end eos extra first generated image
    last mask new next pad padding per predicted prefix prev previous prompt sampled sep special
    start stop suffix target unk video
    """
)
_PHASES = _listing(
    """
    backward band bwd data decode each ema eval evaluation final first forward full fwd high
    inference last low main next one only per post pre prefill preprocessing previous second single
    test third train training two val valid validation warmup
    """
)
_SIGNATURE_OWNERS = _listing("access amz goog hmac hub jwt request sas webhook x")
_FACTS = _listing(
    """
    age at check count created dir enabled env error errors exists expiration expired expires
    expiry field file files format hint id ids in kind len length manager max method min mode
    name names num path paths policy prefix prompt provider required rotation scheme set size
    source status store strength ttl type updated uri url valid var vault version
    """
)
_COUNTS = _listing("count has is len max min n no num number total use")

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_GLUED = re.compile(
    r"(?P<any>.+)(?P<noun>passwords?|passwd|passphrase|pwd|secrets?|credentials?|cookies?"
    r"|authorization)|(?P<owner>.+)(?P<owned>keys?|tokens?|signature|string)"
)


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case: `HFToken`, `hf.token` and `hftoken` are two."""
    words: list[str] = []
    for word in map(str.lower, _WORD.findall(name)):
        glued = _GLUED.fullmatch(word)
        if glued is None:
            words.append(word)
        elif glued["noun"]:
            words += [glued["any"], glued["noun"]]
        elif glued["owner"] in _KEY_OWNERS | _TOKEN_OWNERS | {"connection"}:
            words += [glued["owner"], glued["owned"]]
        else:
            words.append(word)
    return words


def kind_of(name: str) -> Kind:
    """Return what a name says about its value, by the rules that are built in."""
    words = [word for word in words_of(name) if not word.isdigit()]
    if not words or words[-1] in _FACTS or words[0] in _COUNTS:
        return Kind.HARMLESS
    for before, word in zip(["", *words], words):  # noqa: B905 - the last has nothing behind it
        if word in _SECRETS or (word == "key" and before in _KEY_OWNERS):
            return Kind.ANY
        if word[:-1] in _SECRETS or (word == "keys" and before in _KEY_OWNERS):
            return Kind.TEXT
        if word in ("string", "str") and before in ("connection", "conn"):
            return Kind.ANY
    return _kind_of_last(words[-1], words[-2] if len(words) > 1 else "")


def _kind_of_last(word: str, before: str) -> Kind:
    """Return what the last word of a name says; these mean something else further in front."""
    if word == "token":
        return _kind_of_token(before)
    if word == "pwd":
        return Kind.PWD
    if word == "pass":
        return Kind.HARMLESS if before in _PHASES else Kind.PASS
    if word in ("auth", "oauth", "jwt"):
        return Kind.AUTH
    if word == "tokens" and before in _TOKEN_GROUPS:
        return Kind.TEXT
    if word in ("bearer", "sas", "sig"):
        return Kind.BARE
    if word == "signature":
        return Kind.BARE if not before or before in _SIGNATURE_OWNERS else Kind.SHAPED
    return Kind.HARMLESS


def _kind_of_token(before: str) -> Kind:
    if before in ("", "x"):
        return Kind.BARE
    if before in _TOKEN_OWNERS:
        return Kind.TEXT
    return Kind.HARMLESS if before in _MODEL_WORDS else Kind.SHAPED


# --- values ---------------------------------------------------------------------------------------

_CREDENTIAL = re.compile(r"[\w\-.~+/=%:|!*$^]+", re.ASCII)
_QUANTITY = re.compile(r"[+-]?[\d.,:_]+(?:[eE][+-]?\d+)?[A-Za-z%/]{0,9}")
_DIRECTORY = re.compile(r"(?:/[\w.@+-]+){2,}/?|/")
_PLACEHOLDER = re.compile(
    r"\*+|x{3,}|%s|%\(\w+\)s|\$[A-Z][A-Z0-9_]*|\$\{\w*\}|\{(?:[^\d{}]*|\d)\}|<[^\d<>]*>|[)\]},>]{1,3}"
)
_PROSE = _listing(
    """
    a an and any argument auth authentication basic bearer bytes cannot digest disabled does done
    empty enabled expired failed false field flag for found from has if in incorrect int invalid
    is it loaded missing must negotiate no none not null of ok on option optional or passed read
    required reset secretstr set stored str string the to token too true unknown unset using
    valid was will with wrong yes
    """
)
_CALL = re.compile(r"(?:[A-Za-z_][A-Za-z_.]*)?[(\[{]\D*")
_OBJECTS = ("self.", "cls.", "os.", "args.", "config.", "cfg.", "settings.", "env.", "environ.")
_NUMBERS = frozenset({int, float, bool, type(None)})
_STRINGS = frozenset({str})
_MAX_CODE = 100
_STRONG = (Kind.ANY, Kind.PWD, Kind.TEXT, Kind.PASS)


def looks_like_credential(text: str, least: int) -> bool:
    """Whether text of at least `least` characters has letters and digits, and no other sense."""
    return (
        len(text) >= least
        and _CREDENTIAL.fullmatch(text) is not None
        and any(map(str.isdigit, text))
        and any(map(str.isalpha, text))
        and _QUANTITY.fullmatch(text) is None
    )


def _is_secret_text(kind: Kind, text: str) -> bool:
    """Whether text that is all of a value under a name of this kind is secret."""
    if kind is Kind.SHAPED:
        return looks_like_credential(text, 16)
    if kind is Kind.BARE:  # words of a vocabulary: " the", "Ġthe", "<s>", "[MASK]"; "(x: int)"
        return text.isascii() and text[0] not in "<[(" and not any(map(str.isspace, text))
    if kind is Kind.PWD:
        return _DIRECTORY.fullmatch(text) is None
    if kind is Kind.PASS:
        is_number = _QUANTITY.fullmatch(text) or not any(map(str.isalpha, text))
        return not is_number and text.lower() not in _PROSE | _PHASES
    return kind is not Kind.HARMLESS


def _is_code(value: str, name: str) -> bool:
    """Whether it is an expression of a traceback's source line: `self.token`, `get_key()`."""
    return (
        value.startswith(_OBJECTS)
        or value.rpartition(".")[2].lower() == name.lower()
        or _CALL.fullmatch(value) is not None
    )


# --- formats --------------------------------------------------------------------------------------

_FORMATS = re.compile(
    r"""(?<![A-Za-z0-9])(?:
      (?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])    # Amazon
    | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_\w{20,} | glpat-[\w-]{20,}
    | hf_[A-Za-z0-9]{20,}                         # Hugging Face
    | (?<![\w-])sk-(?=[A-Za-z_-]{0,60}[0-9])[\w-]{20,}   # OpenAI, Anthropic and others
    | [rs]k_(?:live|test)_\w{10,} | whsec_\w{20,} # Stripe
    | xox[a-z]-[\w-]{10,} | xapp-[\w-]{20,}       # Slack
    | AIza[\w-]{30,} | ya29\.[\w.-]{20,} | GOCSPX-[\w-]{20,}   # Google
    | npm_[A-Za-z0-9]{30,} | pypi-[\w-]{40,}
    | (?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*   # JWT
    | (?<![\w.~-])[\w.~-]{3}[78]Q~[\w.~-]{31,34}  # a client secret of Azure
    )""",
    re.ASCII | re.VERBOSE,
)
_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"(?=(?:\s|\\[nr]){0,8}(?:[A-Za-z0-9+/=]{16}|Proc-Type|Version|Comment))"
    r"(?P<secret>(?:[^-]|-(?!----))*)"
)
# Passwords may hold all that a URL should quote, up to the last `@`; a port is none.
_URL = re.compile(
    r"(?<!file)://[^\s/:@\"'<>?#\[]{0,256}:"
    r"(?!(?:\d{1,5}|\$?\{[\w.]*\}|%[sd])(?:[/?#\s\"'<>,;)\]}\\]|$))"
    r"(?P<secret>[^\s\"'<>]{0,512}(?:[\"'<>](?=\w)[^\s\"'<>]{0,256}){0,4})@"
)
_CURL = re.compile(
    r"curl[ \t](?:[^\n;|]{0,400}?[ \t])??(?:-u|-U|--user|--proxy-user)[ \t=]{0,3}"
    r"(?P<quote>[\"'])?[^\s:\"']{0,64}:(?P<secret>(?(quote)(?:(?!(?P=quote))[^\n])+|\S+))",
)
_PAIR = re.compile(
    r"auth(?:(?<=basicauth)|(?<=digestauth)|[\"']?[ \t]{0,3}[:=][ \t]{0,3}\w{0,40})[(\[]"
    r"[ \t]{0,3}(?:\"[^\"\n]{0,256}\"|'[^'\n]{0,256}'),[ \t]{0,3}"
    r"(?:\"(?P<secret>(?:[^\"\\\n]|\\.)+)|'(?P<rest>(?:[^'\\\n]|\\.)+))",
    re.IGNORECASE,
)
_SLACK_HOOK = re.compile(r"hooks\.slack\.com/services/(?P<secret>[\w/]{16,})", re.ASCII)
_HEADER = re.compile(
    r"authorization\\{0,3}[\"']?[ \t]{0,3}[:=,][ \t]{0,3}(?P<quote>\\{0,3}[\"'])?"
    r"(?:(?(quote)|(?!))(?:bearer|basic|token|apikey|negotiate)[ \t]{1,3}"
    r"(?P<secret>[^\s\"',;\\]{2,})"
    r"|(?:digest|aws4-hmac-sha256|sharedaccesssignature)[ \t]{1,3}(?P<rest>[^\n]+))",
    re.IGNORECASE,
)
_COOKIE = re.compile(
    r"cookie\\{0,3}[\"']?[ \t]{0,3}:[ \t]{0,3}\\{0,3}[\"']?"
    r"(?P<secret>[\w.-]{1,64}=(?:[^\n\"'\\]|(?<==)\"[^\"\n]{0,4096}\")+)",
    re.IGNORECASE | re.ASCII,
)
_SCHEME = re.compile(
    r"\b(?P<scheme>bearer|basic)[ \t]{1,3}(?P<secret>[\w\-.~+/]{4,}={0,2})",
    re.IGNORECASE | re.ASCII,
)


def _is_scheme_secret(found: re.Match[str]) -> bool:
    """Whether a word behind `Bearer` or `Basic` is a credential: "Bearer of bad news" has none."""
    word = found["secret"]
    if found["scheme"].lower() == "bearer":
        return looks_like_credential(word, 8) or len(word) >= 40
    try:
        return b":" in base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        return False


def _is_pair_secret(found: re.Match[str]) -> bool:
    """Whether the second of two texts is a password: `auth: ["basic", "digest"]` has none."""
    return (found["secret"] or found["rest"]).lower() not in _PROSE


def _always(found: re.Match[str]) -> bool:
    return True


Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], bool]]
_RULES: tuple[Rule, ...] = (
    (_PEM, _always),
    (_URL, _always),
    (_SLACK_HOOK, _always),
    (_CURL, _always),
    (_PAIR, _is_pair_secret),
    (_HEADER, _always),
    (_COOKIE, _always),
)
_RULES_BEHIND: tuple[Rule, ...] = (  # they know less of where a secret ends than its name does
    (_SCHEME, _is_scheme_secret),
    (_FORMATS, _always),
)

# --- names in text --------------------------------------------------------------------------------

_STEMS = "pass pwd secret token key auth cred cookie sig sas jwt bearer conn"
_NAME_END = r"[\w.-]{0,40}"
_ASSIGNED = r"\\{0,3}[\"']?\]?[ \t]{0,3}[:=](?![=:]|//)"
_OPTION = re.compile(
    r"(?<![\w-])--(?P<name>[A-Za-z][\w-]{0,63})(?:[\"'],?[ \t]{1,3}|[ \t]{1,3})(?!-)", re.ASCII
)
_VALUE = re.compile(
    r"[ \t]{0,3}(?:"
    r"[bru]{0,2}\"(?P<double>(?:[^\"\\\n]|\\.)+)"
    r"|[bru]{0,2}'(?P<single>(?:[^'\\\n]|\\.)+)"
    r"|\\{1,3}[\"'](?P<escaped>[^\"'\\\n]+)"
    r"|(?P<bare>[^\s\"'\\,;&<>(){}\[\]`]+))"
)
_ELEMENT = re.compile(
    r"<(?P<name>[A-Za-z][\w:.-]{0,63})(?:[ \t][^<>\n]{0,200})?>(?=[^<]{1,4096}</)", re.ASCII
)
_CONTENT = re.compile(r"\s*(?P<content>[^\s<][^<]*)")
_WHOLE = re.compile(
    r"[ \t]{0,3}(?:(?:bearer|basic|token|apikey|negotiate)[ \t]{1,3})?(?P<bare>(?![\"'])\S)",
    re.IGNORECASE,
)
_NEXT_NAME = r"(?=[\w.%-]{1,40}=)"
_ENDS = re.compile(
    rf"\s|;(?=\s|[\w .-]{{1,40}}=|\Z)|,{_NEXT_NAME}|&{_NEXT_NAME}"
    r"|\\+(?:[\"']|[nrt])|\\+|[\"'`]"
)
_OPENERS = {")": "(", "]": "[", "}": "{", ">": "<"}
_APOSTROPHE = re.compile(r"(?<=[A-Za-z]{2})'(?=[a-z])")
_MAX_BEFORE = 1024
"""How far before a name, in its line, is looked for what opens a quote or bracket."""
_MAX_CLOSING = 3
# What text in lower case has that may hold a secret. A literal is found much faster than a regular
# expression finds one of many beginnings; so the latter only looks where the literal is.
_TRACES = {
    "--": r"--[a-z]",
    "://": r"://[^\s/:@]{0,256}:\S{1,1600}@",
    "</": r"<[a-z][\w:.-]{0,63}[ \t>]",
    "curl": r"curl[ \t]",
    "basicauth": r"basicauth[(\[]",
    "digestauth": r"digestauth[(\[]",
    "authorization": r"authorization",
    "basic": r"basic[ \t]",
    "bearer": r"bearer[ \t]",
}
_FORMAT_TRACES = re.compile(
    r"eyj|akia|asia|gh[pousr]_|github_pat_|glpat-|hf_|[sr]k[-_]|whsec_|xox|xapp-|hooks\.slack"
    r"|aiza|ya29|gocspx|npm_|pypi-|[78]q~|-----begin"
)
_SHORTEST_FORMAT = 15
_MAX_NAME = 64
_MAX_SHAPED = 128


def _is_harmless(value: str, is_bare: bool, name: str) -> bool:
    """Whether a value in text says that it is none: a placeholder, code, a word."""
    if len(value) > _MAX_CODE:
        return False
    if _PLACEHOLDER.fullmatch(value):
        return True
    return is_bare and (_is_code(value, name) or value.rstrip(".:!?,)]}>").lower() in _PROSE)


def _name_begin(text: str, start: int, end: int) -> int:
    """Return where the whole name around `text[start:end]` begins; `api key` is one too."""
    start = _name_start(text, start)
    is_half = text[start:end].lower() in ("key", "keys", "token", "tokens", "string")
    if is_half and start > 1 and text[start - 1] == " ":
        start = _name_start(text, start - 1)
    return start


def _name_start(text: str, start: int) -> int:
    first = max(0, start - _MAX_NAME)
    while start > first and (text[start - 1].isalnum() or text[start - 1] in "_.-"):
        start -= 1
    return start


def _value_at(
    text: str, found: re.Match[str], name_start: int, limit: int, *, to_the_end: bool
) -> tuple[tuple[int, int] | None, bool]:
    """Return where the value behind a name stands, if there is one, and whether it is bare."""
    is_element = found.re is _ELEMENT
    value = (_CONTENT if is_element else _VALUE).match(text, found.end(), limit)
    group = value.lastgroup if value else None
    is_bare = group in (None, "bare") and not is_element
    if is_bare and to_the_end:
        return _whole_span(text, name_start, found.end()), True
    return (value.span(group) if value and group else None), is_bare


def _whole_span(text: str, name_start: int, start: int) -> tuple[int, int] | None:
    """Return where the bare value behind a name stands that hides even what is odd in it."""
    found = _WHOLE.match(text, start)
    if found is None:
        return None
    first = found.start("bare")
    line = text[max(0, name_start - _MAX_BEFORE) : name_start].rpartition("\n")[2]
    end = _end_of(text, first, _APOSTROPHE.sub("", line))
    return (first, end) if first < end else None


def _end_of(text: str, start: int, before: str) -> int:
    """Return where a bare value ends, by what stands before its name and so may go on behind."""
    ends = (found for found in _ENDS.finditer(text, start) if _is_end(found[0], before))
    found = next(ends, None)
    end = found.start() if found else len(text)
    for _ in range(_MAX_CLOSING):
        last = text[end - 1] if end > start else ""
        opener = _OPENERS.get(last)
        if last != "," and (opener is None or before.count(opener) <= before.count(last)):
            break
        end -= 1
    return end


def _is_end(mark: str, before: str) -> bool:
    """Whether a bare value ends at a mark, by what stands before its name in the line."""
    if mark[0] == "\\":
        if len(mark.rstrip("nrt\"'")) % 2 == 0 or mark[-1] == "\\":
            return False  # a backslash that is escaped itself, or none
        return '"' in before or "'" in before
    if mark in "\"'`":
        return before.count(mark) % 2 == 1
    if mark == "&":
        return before.endswith(("?", "&"))
    if mark == ",":
        return before.rstrip().endswith((",", "(", "{", "["))
    return True


class Redactor:
    """Takes secrets out of plain values.

    Names count in any case and style (`apiKey`, `API-KEY`, `api.key`) and at any depth; None,
    booleans and what is empty are no secrets. See the README for what is known.

    Args:
        keys: further names, secret in text and in data whatever their value; each stands for names
            that end in its words too (`patient id` for `first_patient_id`).
        patterns: further regular expressions, searched in every text. Their group `secret`, or
            without one the whole match, is replaced. They are taken as they are: a slow one makes
            logging slow.
        replacement: what stands in a secret's place.

    Attributes:
        rules: text that is equal for redactors of equal rules.

    Raises:
        TypeError: `keys` or `patterns` is no list of text.
        ValueError: a key is empty; a pattern is no regular expression or matches empty text.
    """

    def __init__(
        self,
        keys: Iterable[str] = (),
        patterns: Iterable[str] = (),
        *,
        replacement: str = REPLACEMENT,
    ) -> None:
        names = [_checked_key(key) for key in _listed("keys", keys)]
        self.replacement = replacement
        self._patterns = [_checked_pattern(text) for text in _listed("patterns", patterns)]
        self._keys = frozenset("".join(_own_words(name)) for name in names)
        self.rules = repr((sorted(self._keys), [p.pattern for p in self._patterns], replacement))
        self._kinds: dict[str, Kind] = {}
        self._harmless: set[str] = set()
        stems = [(stem, stem) for stem in _STEMS.split()]
        stems += [(_own_words(name)[0], _stem_of(name)) for name in names]
        any_stem = "|".join(stem for _, stem in stems)
        self._assigned = re.compile(
            rf"(?P<name>(?:{any_stem}){_NAME_END}){_ASSIGNED}", re.IGNORECASE
        )
        self._traces = [
            *((first, re.compile(stem + _NAME_END + _ASSIGNED)) for first, stem in stems),
            *((literal, re.compile(trace)) for literal, trace in _TRACES.items()),
        ]

    def is_secret(self, key: object, value: object) -> bool:
        """Whether a plain value is secret because of the name it stands under."""
        kind = self._kind(key)
        if kind is Kind.HARMLESS or value is None or value is True or value is False:
            return False
        if isinstance(value, str):
            return bool(value) and value != self.replacement and _is_secret_text(kind, value)
        if isinstance(value, (dict, list, tuple)):
            return bool(value) and kind in (Kind.ANY, Kind.PWD, Kind.TEXT, Kind.AUTH)
        return kind in (Kind.ANY, Kind.PWD)

    def value(self, plain: Any) -> Any:
        """Return a tree of dict, list, text, numbers and None without its secrets.

        The same object where there are none, a copy of what contains them otherwise; names stay.
        """
        kind = type(plain)
        if kind is str:
            return self.text(plain)
        if kind is dict:
            return self._mapping(plain)
        if kind is list or kind is tuple:
            return self._sequence(plain)
        return plain

    def text(self, text: str) -> str:
        """Return text with the replacement in each secret's place; the same object without any."""
        clean = text
        if self._may_hold(text):
            for pattern, is_secret in _RULES:
                clean = self._without(pattern, clean, is_secret)
            for names in (self._assigned, _OPTION, _ELEMENT):
                clean = self._without_assigned(names, clean)
            for pattern, is_secret in _RULES_BEHIND:
                clean = self._without(pattern, clean, is_secret)
        for pattern in self._patterns:
            clean = self._without(pattern, clean, _always)
        return text if clean == text else clean

    def is_clean(self, fields: dict[Any, Any], texts: Iterable[str]) -> bool:
        """Whether flat fields and texts are seen at a glance to hold no secret; False in doubt."""
        if self._patterns:
            return False
        if not self._harmless.issuperset(fields):
            for name in fields:
                if self._kind(name) is not Kind.HARMLESS:
                    return False
        values = [value for value in fields.values() if type(value) not in _NUMBERS]
        if not _STRINGS.issuperset(map(type, values)):
            return False
        return not self._may_hold("\n".join([*texts, *values]))

    def _may_hold(self, text: str) -> bool:
        """Whether text may hold a secret of the built-in rules; cheap, and seldom wrongly True."""
        text = text.lower()
        for literal, trace in self._traces:
            if literal in text and trace.search(text):
                return True
        longest = max(map(len, text.split()), default=0)
        return longest >= _SHORTEST_FORMAT and _FORMAT_TRACES.search(text) is not None

    # --- data ---

    def _kind(self, key: object) -> Kind:
        if type(key) is not str:
            return Kind.HARMLESS
        kind = self._kinds.get(key)
        if kind is None:
            kind = Kind.ANY if self._is_own(key) else kind_of(key[-256:])
            if len(self._kinds) >= MAX_REMEMBERED:
                self._kinds.clear()
                self._harmless.clear()
            if len(key) <= 256:
                self._kinds[key] = kind
                if kind is Kind.HARMLESS:
                    self._harmless.add(key)
        return kind

    def _is_own(self, key: str) -> bool:
        if not self._keys:
            return False
        words = words_of(key[-256:])
        return key.lower() in self._keys or any(
            "".join(words[first:]) in self._keys for first in range(len(words))
        )

    def _mapping(self, fields: dict[Any, Any]) -> dict[Any, Any]:
        clean = fields
        for key, item in fields.items():
            new = self.replacement if self.is_secret(key, item) else self.value(item)
            if new is not item:
                if clean is fields:
                    clean = fields.copy()
                clean[key] = new
        return clean

    def _sequence(self, items: Any) -> Any:
        if _NUMBERS.issuperset(map(type, items)):
            return items
        clean = [self._item(before, item) for before, item in zip([None, *items], items)]  # noqa: B905
        if all(map(operator.is_, clean, items)):
            return items
        return clean if type(items) is list else tuple(clean)

    def _item(self, before: Any, item: Any) -> Any:
        if type(item) is str and type(before) is str and before.startswith("--"):
            # A command line: ["--password", "hunter2"].
            is_value = "=" not in before and not item.startswith("--")
            if is_value and self.is_secret(before, item):
                return self.replacement
        return self.value(item)

    # --- text ---

    def _without(
        self, pattern: re.Pattern[str], text: str, is_secret: Callable[[re.Match[str]], bool]
    ) -> str:
        """Return text without what the pattern finds: its first group, or all of it."""
        parts, position = [], 0
        for found in pattern.finditer(text):
            groups = found.re.groupindex
            group = next((name for name in ("secret", "rest") if name in groups and found[name]), 0)
            start, end = found.span(group)
            if start < end and is_secret(found) and not self._is_gone(text, start, end):
                parts += [text[position:start], self.replacement]
                position = end
        return "".join([*parts, text[position:]]) if parts else text

    def _without_assigned(self, names: re.Pattern[str], text: str) -> str:
        """Return text without the values behind the secret names that the expression finds."""
        parts, position = [], 0
        for found in names.finditer(text):
            if found.start() < position:
                continue  # in a value that is gone already
            name_start = _name_begin(text, *found.span("name"))
            name = text[name_start : found.end("name")]
            kind = self._kind(name)
            if kind is Kind.HARMLESS:
                continue
            if names is _OPTION and kind is Kind.BARE:
                kind = Kind.TEXT  # nobody hands a word of the vocabulary to `--token`
            span = self._value_span(text, found, name_start, kind)
            if span is not None:
                parts += [text[position : span[0]], self.replacement]
                position = span[1]
        return "".join([*parts, text[position:]]) if parts else text

    def _value_span(
        self, text: str, found: re.Match[str], name_start: int, kind: Kind
    ) -> tuple[int, int] | None:
        """Return where the secret stands behind a name that was found, None if it is none."""
        name = text[name_start : found.end("name")]
        is_weak = kind not in _STRONG or name.lower() == "pass"
        limit = found.end() + _MAX_SHAPED if is_weak else len(text)
        span, is_bare = _value_at(text, found, name_start, limit, to_the_end=not is_weak)
        if span is None or self._is_gone(text, *span):
            return None
        value = text[span[0] : span[1]]
        if _is_harmless(value, is_bare, name):
            return None
        if not is_weak or (kind is Kind.PASS and not is_bare):
            is_secret = _is_secret_text(kind, value)
        else:
            is_call = is_bare and text[span[1] : span[1] + 1] in ("(", "[")
            is_spaced = is_bare and span[0] > found.end() and kind is not Kind.PASS
            is_secret = not is_call and looks_like_credential(value, 16 if is_spaced else 6)
        if not is_secret:
            return None
        return _value_at(text, found, name_start, len(text), to_the_end=kind in _STRONG)[0]

    def _is_gone(self, text: str, start: int, end: int) -> bool:
        """Whether the replacement stands there and nothing that goes on behind it."""
        return text.startswith(self.replacement, start) and end - start <= len(self.replacement)


def _listed(field: str, texts: Iterable[str]) -> list[str]:
    """Return the texts, and one text as a list of one: an easy slip that would be read by letter.

    Raises:
        TypeError: they are no texts.
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    for text in listed:
        if not isinstance(text, str):
            raise TypeError(f"{field} holds {text!r}, which is no text; give a list of text")
    return listed


def _checked_key(key: str) -> str:
    if not any(map(str.isalnum, key)):
        raise ValueError(
            f"keys holds {key!r}, which names nothing; give names such as 'patient_id'"
        )
    return key.strip()


def _own_words(key: str) -> list[str]:
    """Return the words of a name of the user's; one with other letters than ours is one word."""
    return words_of(key) if key.isascii() else [key.lower()]


def _stem_of(key: str) -> str:
    return r"[\W_]{0,2}".join(map(re.escape, _own_words(key)))


def _checked_pattern(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"patterns holds {pattern!r}, which is no regular expression ({error}); correct it, or "
            "quote plain text with re.escape"
        ) from error
    if compiled.match(""):
        raise ValueError(
            f"patterns holds {pattern!r}, which matches empty text; make it ask for one character "
            "at least, such as with + in place of *"
        )
    return compiled
