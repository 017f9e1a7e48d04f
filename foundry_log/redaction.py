"""Which names and which texts hold secrets, and plain values without them.

Two kinds of evidence. A *name* (`password`, `HF_TOKEN`, `x-api-key`) says that what stands under it
is secret, whatever it looks like; a *format* (a JWT, a PEM block, `://user:password@`) says so
under any name. In text a name counts where it is assigned to: `password=…`, `"password": "…"`,
`--password …`.

People who train language models log tokens that are words. So `token` is a secret's name only where
what is around it says so: `hf_token` always, `pad_token` never, `my_token` when its value looks
like a credential; and in text a bare `token: the` stays, `token=8fK2…` does not.

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
_PLACEHOLDER = re.compile(r"\*+|x{3,}|%s|%\(\w+\)s|\$[A-Z][A-Z0-9_]*|\$?\{.*\}|<.*>")
_PROSE = _listing(
    """
    a an and any argument auth authentication basic bearer bytes cannot digest disabled does
    empty enabled expired failed false field flag for found from has if in incorrect int invalid
    is it loaded missing must negotiate no none not null of ok on option optional or read
    required reset secretstr set stored str string the to token too true unknown unset using
    valid was will with wrong yes
    """
)
_OBJECTS = ("self.", "cls.", "os.", "args.", "config.", "cfg.", "settings.", "env.", "environ.")
_NUMBERS = frozenset({int, float, bool, type(None)})
_STRINGS = frozenset({str})
_MAX_CODE = 100


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
    return kind is not Kind.HARMLESS


def _is_code(value: str, name: str) -> bool:
    """Whether it is an expression of a traceback's source line: `self.token`, `password`."""
    return value.startswith(_OBJECTS) or value.rpartition(".")[2].lower() == name.lower()


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
_URL = re.compile(r"://[^\s/:@\"'<>?#]{0,256}:(?P<secret>[^\s/\"'<>?#]{1,512})@")
_SLACK_HOOK = re.compile(r"hooks\.slack\.com/services/(?P<secret>[\w/]{16,})", re.ASCII)
_HEADER = re.compile(
    r"authorization\\{0,3}[\"']?[ \t]{0,3}[:=,][ \t]{0,3}\\{0,3}[\"']?"
    r"(?:(?:bearer|basic|token|apikey|negotiate)[ \t]{1,3}(?P<secret>[^\s\"',;\\]{2,})"
    r"|(?:digest|aws4-hmac-sha256|sharedaccesssignature)[ \t]{1,3}(?P<rest>[^\n]+))",
    re.IGNORECASE,
)
_COOKIE = re.compile(
    r"cookie\\{0,3}[\"']?[ \t]{0,3}:[ \t]{0,3}\\{0,3}[\"']?"
    r"(?P<secret>[\w.-]{1,64}=[^\n\"'\\]+)",
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


def _always(found: re.Match[str]) -> bool:
    return True


_RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], bool]], ...] = (
    (_PEM, _always),
    (_URL, _always),
    (_SLACK_HOOK, _always),
    (_HEADER, _always),
    (_COOKIE, _always),
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
# What text in lower case has that may hold a secret. A literal is found much faster than a regular
# expression finds one of many beginnings; so the latter only looks where the literal is.
_TRACES = {
    "--": r"--[a-z]",
    "://": r"://[^\s/]{0,800}@",
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


def _name_at(text: str, start: int, end: int) -> str:
    """Return the whole name around `text[start:end]`; `api key` is one too."""
    start = _name_start(text, start)
    is_half = text[start:end].lower() in ("key", "keys", "token", "tokens", "string")
    if is_half and start > 1 and text[start - 1] == " ":
        start = _name_start(text, start - 1)
    return text[start:end]


def _name_start(text: str, start: int) -> int:
    first = max(0, start - _MAX_NAME)
    while start > first and (text[start - 1].isalnum() or text[start - 1] in "_.-"):
        start -= 1
    return start


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
            clean = self._without_assigned(self._assigned, clean)
            clean = self._without_assigned(_OPTION, clean)
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
            if start < end and is_secret(found) and not text.startswith(self.replacement, start):
                parts += [text[position:start], self.replacement]
                position = end
        return "".join([*parts, text[position:]]) if parts else text

    def _without_assigned(self, names: re.Pattern[str], text: str) -> str:
        """Return text without the values behind the secret names that the expression finds."""
        parts, position = [], 0
        for found in names.finditer(text):
            if found.start() < position:
                continue  # in a value that is gone already
            name = _name_at(text, found.start("name"), found.end("name"))
            kind = self._kind(name)
            if kind is Kind.HARMLESS:
                continue
            if names is _OPTION and kind is Kind.BARE:
                kind = Kind.TEXT  # nobody hands a word of the vocabulary to `--token`
            span = self._value_span(text, found.end(), kind, name)
            if span is not None:
                parts += [text[position : span[0]], self.replacement]
                position = span[1]
        return "".join([*parts, text[position:]]) if parts else text

    def _value_span(self, text: str, start: int, kind: Kind, name: str) -> tuple[int, int] | None:
        """Return where the secret stands that is assigned at `start`, None if it is none."""
        strong = kind in (Kind.ANY, Kind.PWD, Kind.TEXT)
        found = _VALUE.match(text, start, len(text) if strong else start + _MAX_SHAPED)
        if found is None or found.lastgroup is None:
            return None
        first, end = found.span(found.lastgroup)
        value = found[found.lastgroup]
        if text.startswith(self.replacement, first) or (
            len(value) <= _MAX_CODE and _PLACEHOLDER.fullmatch(value)
        ):
            return None
        if found.lastgroup == "bare" and len(value) <= _MAX_CODE:
            if text[end : end + 1] in ("(", "[") or _is_code(value, name):
                return None
            if value.rstrip(".:!?").lower() in _PROSE:
                return None
        if strong:
            return (first, end) if _is_secret_text(kind, value) else None
        spaced = found.lastgroup == "bare" and first > start
        if not looks_like_credential(value, 16 if spaced else 6):
            return None
        whole = _VALUE.match(text, start)
        return whole.span(found.lastgroup) if whole else None


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
