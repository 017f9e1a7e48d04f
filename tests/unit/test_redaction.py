"""Redactor: what is a secret, what is not, and that telling them apart takes linear time."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import re
import signal
import string
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry_log.redaction import MAX_REMEMBERED, Redactor

pytestmark = pytest.mark.unit

REDACTOR = Redactor()
GONE = "[redacted]"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
AWS = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
PEM_BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
PEM = f"-----BEGIN PRIVATE KEY-----\n{PEM_BODY}\n-----END PRIVATE KEY-----"
BASIC = base64.b64encode(b"alice:hunter2").decode()

SECRET_KEYS = """
    password Password PASSWORD passwd pwd passphrase db_password dbPassword user.password password2
    secret client_secret clientSecret SECRETS aws_secret_access_key password_hash api_key apikey
    apiKey API-KEY api.key x-api-key OPENAI_API_KEY WANDB_API_KEY openai_key access_key account_key
    AccountKey private_key secret_key shared_access_key SharedAccessKey signing_key encryption_key
    subscription-key Ocp-Apim-Subscription-Key authorization Authorization Proxy-Authorization auth
    basic_auth credential credentials cookie cookies Set-Cookie connection_string connectionString
    ConnectionStrings.default_connection_string conn_str sas sig signature x-amz-signature jwt
    bearer token access_token accessToken hf_token HF_TOKEN hfToken HFToken auth_token authtoken
    id_token refresh_token session_token x-token github_token SharedAccessSignature access_tokens
    db_pass SMTP_PASS smtpPass pass
"""

HARMLESS_KEYS = """
    tokens tokens_per_sec num_tokens max_tokens prompt_tokens completion_tokens total_tokens
    tokenizer tokenizer_name token_ids token_id token_count token_type token_embedding pad_token
    eos_token bos_token unk_token mask_token sep_token cls_token next_token predicted_token
    special_tokens additional_special_tokens max_new_tokens n_tokens tokenize Tokenizer key keys
    primary_key cache_key public_key query_key_value author authors monkey signal passed
    bypass compass sigma design assignment secretary password_length has_password num_secrets
    credentials_file cookie_count auth_method authority authenticated api_key_name access_key_id
    keyboard hockey passage sasl disaster significant sight credit step loss lr path name url
    function_signature signature_def x y forward_pass backwardPass first_pass low_pass pass_rate
    num_pass
"""

SECRETS = [  # text, and what of it must be gone
    ("Authorization: Bearer abc.def-123", "abc.def-123"),
    ("authorization: Bearer abcdefgh", "abcdefgh"),
    (f"Authorization: Basic {BASIC}", BASIC),
    (f"sent header Basic {BASIC} to host", BASIC),
    ("headers={'Authorization': 'token 0a1b2c3d'}", "0a1b2c3d"),
    ("('Authorization', 'Bearer abcdefgh')", "abcdefgh"),
    ("got Bearer 8fK2s9Lq0a", "8fK2s9Lq0a"),
    (f"claims of {JWT}.", JWT),
    ("postgresql://alice:hunter2@db.host:5432/runs", "hunter2"),
    ("redis://:p%40ss@cache:6379/0", "p%40ss"),
    ("https://alice:hun@ter2@host/path", "ter2"),
    ("https://x.blob.core.windows.net/c/b?sv=2022&sig=aB3%2FdE6gH9%3D&se=2030", "aB3%2FdE6gH9"),
    ("SharedAccessSignature=sv=2022-11-02", "sv=2022-11-02"),
    ("DefaultEndpointsProtocol=https;AccountName=x;AccountKey=aGVsbG8+d29/bGQ==;E=1", "aGVsbG8"),
    ("Endpoint=sb://x/;SharedAccessKeyName=root;SharedAccessKey=aGVsbG8=;Entity=q", "aGVsbG8"),
    ("Server=tcp:db;User ID=sa;Password=hunter2;Encrypt=True", "hunter2"),
    ("Server=db;Uid=sa;Pwd=hunter2", "hunter2"),
    ("key id AKIAIOSFODNN7EXAMPLE used", "AKIAIOSFODNN7EXAMPLE"),
    ("session ASIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE"),
    (f"aws_secret_access_key = {AWS}", AWS),
    ("cloning with ghp_" + "aB3dE6gH9j" * 4, "aB3dE6gH9j"),
    ("github_pat_" + "11ABCDEFG0_" * 4, "11ABCDEFG0_"),
    ("login hf_" + "abcdefghij" * 3 + "WXYZ", "abcdefghij"),
    ("sk-proj-" + "aB3dE6gH9j" * 4, "aB3dE6gH9j"),
    ("sk-ant-api03-" + "aB3dE6gH9j" * 4, "aB3dE6gH9j"),
    ("xoxb-123456789012-abcdefghijkl", "123456789012-abcdefghijkl"),
    ("https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXX", "B00000000"),
    ("AIza" + "SyD3xampl3-" * 4, "SyD3xampl3"),
    ("npm_" + "aB3dE6gH9j" * 4, "aB3dE6gH9j"),
    ("pypi-AgEIcHlwaS5vcmc" + "aB3dE6gH9j" * 4, "AgEIcHlwaS5vcmc"),
    ("sk_live_" + "aB3dE6gH9j" * 2, "aB3dE6gH9j"),
    ("abc8Q~" + "aB3dE6gH9j-_.~" * 2 + "abcd", "aB3dE6gH9j"),
    (PEM, "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"),
    (PEM.replace("\n", "\\n"), "BKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"),
    (PEM[:90], PEM[40:80]),
    ("password=hunter2", "hunter2"),
    ("password = hunter2, user = bob", "hunter2"),
    ("db.password: letmein", "letmein"),
    ('{"user": "bob", "password": "hun ter\\"2"}', 'ter\\"2'),
    ("{'user': 'bob', 'password': 'hun ter2'}", "hun ter2"),
    ("{'password': 12345678}", "12345678"),
    ('{"body": "{\\"password\\": \\"hunter2\\"}"}', "hunter2"),
    ("Config(user='bob', api_key='abc', n=1)", "abc"),
    ("config['password'] = 'hunter2'", "hunter2"),
    ("train.py --password hunter2 --lr 0.1", "hunter2"),
    ("train.py --api-key=abcdef --lr 0.1", "abcdef"),
    ("train.py --token abcdef --lr 0.1", "abcdef"),
    ("['train.py', '--api-key', 'abcdef', '--lr', '0.1']", "abcdef"),
    ("export API_KEY=abcdef", "abcdef"),
    (
        "HF_TOKEN=abcdef WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567 python",
        "0123456789ab",
    ),
    ("https://host/path?token=8fK2s9Lq&page=2", "8fK2s9Lq"),
    ("Cookie: session=abc; theme=dark", "session=abc"),
    ("Set-Cookie: id=a3fWa; Secure", "a3fWa"),
    ("API key: abc-def", "abc-def"),
    ("'token': 'hunter2'", "hunter2"),
    ("x" * 200 + "_password=hunter2", "hunter2"),
    ("tokens=5 password=hunter2", "hunter2"),
    ("token=" + "a1" * 500 + "TheEnd", "TheEnd"),
    ("password=" + "a1" * 5000 + "TheEnd", "TheEnd"),
    ('key="password=hunter2"', "hunter2"),
    ("Server=db;Password=Ab,cdEf9&d;Encrypt=True", "cdEf9"),
    ("Password=Ab;cdEf9 x", "cdEf9"),
    ("PGPASSWORD=x(y)zQ9 psql", "zQ9"),
    ("password=Tr0ub(4dor&3", "4dor"),
    ("password=a,b9f2kk", "b9f2kk"),
    ("password: (k9<f>b2}", "b2"),
    ("password=it's9\"b2 x", "b2"),
    ("--password Ab,c9)d", "c9)d"),
    ("access_token=x(y)zQ9", "zQ9"),
    ("DB_PASS=hunter2", "hunter2"),
    ('"pass": "' + "a b" * 99 + 'TheEnd"', "TheEnd"),
    ("pass=" + "a1" * 99 + "TheEnd", "TheEnd"),
    ("SMTP_PASS: hunter2", "hunter2"),
    ("SMTP_PASS: a,bc)de9", "de9"),
    ("user=bob pass=hunter2", "hunter2"),
    ('{"db_pass": "letmein"}', "letmein"),
    ('{"smtp": {"pass": "letmein"}}', "letmein"),
    ("postgresql://u:Pa#ss9@h/db", "ss9"),
    ("amqp://u:p?w9@h", "w9"),
    ("redis://:hunter2@h:6379/0", "hunter2"),
    ("mongodb+srv://u:p%40w9@h", "p%40w9"),
    ("postgresql://u:a/b@c:d9@h/db", "d9"),
    ("don't say password=it's9\"b2", "b2"),
    ("password=[redacted]b9 x", "b9"),
    ("password=Ab,cd=f9 x", "f9"),
    ("password=Ab&cd=f9 x", "f9"),
    ("password=k9a)))) x", ")))"),
    ("Authorization: Bearer 8fK2s9Lq0a,tail", "tail"),
    ("it is '\npassword=a'b9", "b9"),
    ('{"password": "[redacted]b9"}', "b9"),
    ("pg://u:[redacted]b9@h", "b9"),
    ('dsn = "postgresql://u:a"b9@h/db"', "b9"),
    ("curl -u bob:hunter2 https://host", "hunter2"),
    ("curl -s -X POST --user 'bob:hun ter2' https://host", "ter2"),
    ("curl -ubob:hunter2 https://host", "hunter2"),
    ('Authorization: Digest username="bob", response="6629fae49393a0"', "6629fae49393a0"),
    ("Authorization: Bearer ab9,cd", "cd"),
    ("X-Api-Key: Ab,cd&9", "cd&9"),
    ('Cookie: a="q b"; c=d9', "d9"),
    ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG+bPx", "K7MDENG"),
    ("<password>hunter2</password>", "hunter2"),
    ('<c:Password type="text">hun ter2&amp;b</c:Password>', "ter2"),
    ("password = hunter2", "hunter2"),
    ("requests.get(url, auth=('u', 'p4ss'))", "p4ss"),
    ('session.auth = HTTPBasicAuth("u", "p4ss")', "p4ss"),
    ("<HTTPBasicAuth('u', 'p4ss')>", "p4ss"),
]

ORDINARY = [
    "Step 100 | loss 2.3456 | lr 3.00e-04 | 12,345 tokens/s | grad norm 1.02",
    "tokens_per_sec=12345.6 num_tokens=4096 max_tokens: 2048 prompt_tokens=7",
    "time per token: 12.3ms, loss/token: 3.51e-04, tokens: 1.2e+09",
    "next token: the",
    "predicted token = ' the' (p=0.31), token: 'Ġnewton', token: 151643",
    "pad_token='<|endoftext|>' eos_token=</s> mask_token='[MASK]' bos_token: '<s>'",
    "tokenizer=gpt2 tokenizer_config={'model_max_length': 1024}",
    "Tokenizer loaded: 50257 tokens; special token: <|im_start|>",
    "git 2ef7bde608ce5404e97d5f042f95f89f1c232871 on main",
    "commit=2ef7bde608ce5404e97d5f042f95f89f1c232871 sha256:" + "0a1b2c3d" * 8,
    "run 123e4567-e89b-12d3-a456-426614174000 started",
    "saved to /data/runs/2026-11-21/checkpoint-1000/model.safetensors",
    "GET https://huggingface.co/gpt2/resolve/main/config.json?download=true 200",
    "http://localhost:8080/metrics?user=a@b.example, mailto:bob@example.com",
    "git clone git@github.com:owner/project.git; ssh://git@github.com:22/owner/project.git",
    "s3://bucket/prefix/key=value/part-0.parquet",
    "Basic block 12 has 3 successors; basic attention; Basic Authentication is off",
    "Bearer of bad news; bearer authentication; a bearer token is required",
    "KeyError: 'password'",
    "TypeError: login() got an unexpected keyword argument 'password'",
    "def login(user: str, password: str, api_key: Optional[str] = None) -> None:",
    "    client = connect(user, password=password, token=self.token, api_key=get_key())",
    "    secret = os.environ['SECRET']; auth = HTTPBasicAuth(user, secret)",
    'if password == "": raise ValueError("no password")',
    "password=None secret=null api_key=**** token=${TOKEN} auth_token=$AUTH_TOKEN",
    "url = f'https://{user}:{host}/{path}' in <module>",
    "pass: 3, passed=12, bypass=1, compass: 270, sigma=0.1, signal: 9, assignment: done",
    "author: Bob; authors=['Ann']; authority: x; key=value; keys: ['a', 'b']; monkey=1",
    "primary_key=id cache_key: ab12cd34ef56 public_key=ssh",
    "Missing key: model.layers.0.self_attn.q_proj.weight",
    "KeyboardInterrupt; keyboard: us; secretary: Ann; credit: 3; significant: yes; sasl: off",
    "auth: ok; auth failed: timeout; cookies: disabled; signature: (x: int) -> int",
    "use --max-tokens 5 --tokenizer gpt2 --token-file path --key value --seed 3",
    "expected '-----BEGIN PRIVATE KEY-----' at the start",
    "-----BEGIN CERTIFICATE-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END CERTIFICATE-----",
    "scikit: sk-learn, task-0123456789-abcdefghijklmnop, disk_live_0123456789",
    "transformers.models.hf_argparser hf_transfer asia-northeast1 AKIA",
    "tests/test_auth.py::test_token PASSED [ 50%]",
    "PWD=/home/bob/project OLDPWD=/home/bob",
    "password reset sent; the token expired; invalid api key",
    "PASSWORD: required, secret: not set, password: invalid.",
    "epoch: 3 | val/perplexity: 17.3 | tokens seen: 1,000,000",
    "forward_pass: 0.3, backward_pass=1.2s, pass: True, test_pass=12, pass=3/10, pass: 2 of 3",
    "first pass: warmup; second pass: done; pass: computing statistics; the test passed",
    "forward_pass: compiled2 backward_pass='fused_v2' db_pass=3 pass=ok",
    "http://host:8080/metrics?user=a@b.example http://[::1]:8080/a@b http://h:80/@scope/package",
    "file://C:/runs/a@b, https://{host}:{port}/a@b, tcp://10.0.0.1:29500,a@b",
    '{"url":"http://h:8080","mail":"a@b.example"}',
    "curl -s https://host:80/x; docker run -u 1000:1000 image; python -u train.py:main",
    "token=get_token2(x) <password>  </password>",
    "<token>the</token> <step>12</step> <password></password> <key>loss</key>",
    "password=, secret=) api_key=; {'password': {}, 'secret': []} password='' passwd=\"\"",
    "auth=('u', password) check_auth('model', 'gpt2') auth: ['basic', 'digest'] auth=(user, None)",
    "password=getpass.getpass(prompt) secret: (none) password=read_secret('db')",
]


def fixed(text: str) -> str:
    return REDACTOR.text(text)


# --- names ---


@pytest.mark.parametrize("key", SECRET_KEYS.split())
def test_a_secrets_name_hides_its_text(key: str) -> None:
    """In any case and style."""
    assert REDACTOR.value({"outer": [{key: "plain"}]}) == {"outer": [{key: GONE}]}


@pytest.mark.parametrize("key", HARMLESS_KEYS.split())
def test_a_harmless_name_hides_nothing(key: str) -> None:
    """Above all not the vocabulary of those who train language models."""
    for value in ("plain", "<|pad|>", 5, 0.5, [1, 2], {"a": "b"}):
        plain = {key: value}
        assert REDACTOR.value(plain) is plain


@pytest.mark.parametrize("key", ["password", "token", "credentials", "auth", "pwd", "api_key"])
@pytest.mark.parametrize("value", [None, True, False, "", [], {}, GONE])
def test_nothing_is_no_secret(key: str, value: Any) -> None:
    """None, booleans and what is empty tell something and give nothing away."""
    assert not REDACTOR.is_secret(key, value)


def test_a_number_is_a_password_and_no_token() -> None:
    """Nor are the passwords and cookies that somebody counted."""
    assert REDACTOR.is_secret("password", 12345678)
    assert REDACTOR.is_secret("api_key", 12345678)
    for name in ("token", "hf_token", "access_tokens", "passwords", "cookies", "auth", "sig"):
        assert not REDACTOR.is_secret(name, 5), name


@pytest.mark.parametrize("word", [" the", "Ġthe", "▁the", "<s>", "[MASK]", "(", "日本"])
def test_a_word_of_the_vocabulary_is_no_token(word: str) -> None:
    """`token` alone is ambiguous; a value that no credential has decides it."""
    assert not REDACTOR.is_secret("token", word)
    assert REDACTOR.is_secret("access_token", word)


def test_the_token_of_an_unknown_owner_is_judged_by_its_look() -> None:
    """`my_token` may be either."""
    assert REDACTOR.is_secret("my_token", "8fK2s9Lq0aB3dE6gH9")
    assert not REDACTOR.is_secret("my_token", "the")
    assert not REDACTOR.is_secret("pad_token", "8fK2s9Lq0aB3dE6gH9")


@pytest.mark.parametrize("value", [3, 0.3, "12", "3/10", "1.2s", "ok", "backward", "passed"])
def test_a_pass_may_be_that_of_a_loop(value: Any) -> None:
    """Its number, time, outcome or phase."""
    assert not REDACTOR.is_secret("pass", value)
    assert not REDACTOR.is_secret("db_pass", value)


def test_pwd_may_be_the_working_directory() -> None:
    """As in any dump of an environment."""
    assert not REDACTOR.is_secret("PWD", "/home/bob/project")
    assert REDACTOR.is_secret("pwd", "hunter2")


@pytest.mark.parametrize("value", [["bob", "hunter2"], {"user": "bob"}, ("bob", "hunter2")])
def test_all_that_is_under_a_secrets_name_goes(value: Any) -> None:
    """Lists and objects too."""
    assert REDACTOR.value({"credentials": value}) == {"credentials": GONE}
    assert REDACTOR.value({"auth": value}) == {"auth": GONE}


def test_names_of_ones_own() -> None:
    """In any style, in data and in text, also as the end of a longer name, whatever the value."""
    own = Redactor(["patient id", "Kürzel"])
    assert own.value({"patientId": 7, "first_patient_id": 8}) == {
        "patientId": GONE,
        "first_patient_id": GONE,
    }
    assert own.value({"kürzel": "ab", "patient": 1}) == {"kürzel": GONE, "patient": 1}
    assert own.text("patient-id=12, PATIENT_ID: 13, Kürzel=ab") == (
        f"patient-id={GONE}, PATIENT_ID: {GONE}, Kürzel={GONE}"
    )
    assert own.is_secret("password", "x")


def test_the_memory_of_names_is_bounded() -> None:
    """Names from data may be without end."""
    own = Redactor()
    for number in range(MAX_REMEMBERED + 10):
        own.is_secret(f"name{number}", "x")
    own.is_secret("n" * 10_000, "x")

    assert 0 < len(own._kinds) <= MAX_REMEMBERED
    assert max(map(len, own._kinds)) <= 256
    assert own._harmless <= set(own._kinds)


# --- text ---


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_a_secret_in_text_is_replaced(text: str, secret: str) -> None:
    """And a second look finds nothing more."""
    clean = fixed(text)
    assert secret not in clean
    assert GONE in clean
    assert fixed(clean) is clean


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_lines_are_the_same_object(text: str) -> None:
    """A false alarm is as bad as a miss."""
    assert fixed(text) is text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("pg://alice:hunter2@db:5432/x", f"pg://alice:{GONE}@db:5432/x"),
        ("Authorization: Bearer abc1234 sent", f"Authorization: Bearer {GONE} sent"),
        ("{'a': 1, 'password': 'x y', 'b': 2}", f"{{'a': 1, 'password': '{GONE}', 'b': 2}}"),
        ('{"password":"x","b":2}', f'{{"password":"{GONE}","b":2}}'),
        ("--password hunter2 --lr 0.1", f"--password {GONE} --lr 0.1"),
        ('password="api_key=abc" n=1', f'password="{GONE}" n=1'),
        ("secrets: loaded 3 from vault", "secrets: loaded 3 from vault"),
        ("Server=db;Pwd=x1;Encrypt=no", f"Server=db;Pwd={GONE};Encrypt=no"),
        ("?a=1&sig=aB3dE6gH9&b=2", f"?a=1&sig={GONE}&b=2"),
        ("?password=x9&y=1#top", f"?password={GONE}&y=1#top"),
        ("connect(password=hunter2, host='h')", f"connect(password={GONE}, host='h')"),
        ("connect(user=u,password=hunter2,host=h)", f"connect(user=u,password={GONE},host=h)"),
        ("f(connect(password=hunter2)) ok", f"f(connect(password={GONE})) ok"),
        ("{'password': 12345678}", f"{{'password': {GONE}}}"),
        ("Password=Ab,c9&d;User ID=sa", f"Password={GONE};User ID=sa"),
        ("run 'x --password=a9b' now", f"run 'x --password={GONE}' now"),
        ("pg://u:a#9@h/db then a@b", f"pg://u:{GONE}@h/db then a@b"),
        ("auth=('u', 'p4ss') x", f"auth=('u', '{GONE}') x"),
        ("curl -u bob:hunter2 https://h", f"curl -u bob:{GONE} https://h"),
        ("<a><password>x</password></a>", f"<a><password>{GONE}</password></a>"),
        ("a\n" + PEM + "\nb", f"a\n-----BEGIN PRIVATE KEY-----{GONE}-----END PRIVATE KEY-----\nb"),
    ],
)
def test_what_surrounds_a_secret_stays(text: str, clean: str) -> None:
    """Name, user, host and neighbours are still to be read."""
    assert fixed(text) == clean


NAMES = st.sampled_from(
    ["password", "db_password", "PGPASSWORD", "api_key", "client-secret", "DB_PASS", "secretKey"]
)
PRINTABLE = st.text(string.digits + string.ascii_letters + string.punctuation, min_size=3)
ANYTHING = st.tuples(PRINTABLE, PRINTABLE).map("k7".join)
ALPHANUMERIC = st.text(string.digits + string.ascii_letters, min_size=4).map("k7".__add__)
IS_PLACEHOLDER = re.compile(r"\$[A-Z]|self\.|cls\.|os\.|args\.|config\.|cfg\.|settings\.|env")
OPENS_QUOTE = re.compile(r"[=:]|//|\\*[bruBRU]{0,2}\\*[\"'`]")
OPENS_FIELD = re.compile(r";[\w .-]*=|[,&][\w.%-]+=")
BARE = ANYTHING.filter(
    lambda secret: (
        not (
            OPENS_QUOTE.match(secret) or OPENS_FIELD.search(secret) or IS_PLACEHOLDER.match(secret)
        )
    )
)
IN_URL = ANYTHING.filter(lambda secret: not re.search(r"[\"'<>]|^\d{1,5}[/?#,;)\]}\\]", secret))
FORMS = {
    "key=value": (BARE, "run {name}={secret} in 3 s"),
    "key: value": (BARE, "{name}: {secret}"),
    "option": (BARE.filter(lambda secret: secret[0] != "-"), "train.py --{name} {secret} --lr 1"),
    "JSON": (ANYTHING, '{{"run": 3, "{name}": {json}, "lr": 1}}'),
    "JSON in JSON": (
        ALPHANUMERIC,
        '{{"body": "{{\\"{name}\\": \\"{secret}\\"}}"}}',
    ),
    "repr": (ANYTHING, "{{'run': 3, '{name}': {secret!r}, 'lr': 1}}"),
    "connection": (BARE, "Server=tcp:db;{name}={secret};Encrypt=True"),
    "URL": (IN_URL, "open postgresql://{name}:{secret}@db.host:5432/runs"),
    "query": (BARE.filter(lambda secret: "&" not in secret), "/x?a=1&{name}={secret}&b=2"),
    "header": (BARE, "X-{name}: {secret}"),
    "bearer": (BARE, "Authorization: Bearer {secret}"),
    "XML": (ANYTHING.filter(lambda secret: "<" not in secret), "<{name}>{secret}</{name}>"),
}


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data(), name=NAMES)
@settings(max_examples=60, deadline=None)
def test_no_piece_of_a_secret_stays(form: str, data: st.DataObject, name: str) -> None:
    """Whatever it is made of, where the form itself does not say that it ends."""
    secrets, template = FORMS[form]
    secret = data.draw(secrets)
    text, without = (
        template.format(name=name, secret=value, json=json.dumps(value)) for value in (secret, "")
    )
    clean = fixed(text)
    pieces = {secret[first : first + 4] for first in range(len(secret) - 3)}
    assert not [piece for piece in pieces if piece in clean and piece not in without + GONE]
    assert fixed(clean) is clean


def test_patterns_of_ones_own() -> None:
    """The whole match goes, or the group `secret`; with a replacement of one's own."""
    own = Redactor(patterns=[r"\bP-\d+\b", r"case (?P<secret>\w+)"], replacement="***")
    assert own.text("P-123 in case abc") == "*** in case ***"
    assert own.text("nothing here") == "nothing here"


# --- data ---


def test_data_is_copied_where_it_changes_and_nowhere_else() -> None:
    """The argument stays as it is."""
    plain = {"a": {"password": "x"}, "b": {"c": [1]}, "d": ["ok", f"see {JWT}"]}
    before = copy.deepcopy(plain)
    clean = REDACTOR.value(plain)

    assert clean == {"a": {"password": GONE}, "b": {"c": [1]}, "d": ["ok", f"see {GONE}"]}
    assert plain == before
    assert clean["b"] is plain["b"]


def test_data_without_secrets_is_the_same_object() -> None:
    """Which is how callers know."""
    plain = {"a": ["x", {"loss": 1.5}], "tokens": [1, 2], "n": None}
    assert REDACTOR.value(plain) is plain


def test_a_command_line_as_a_list() -> None:
    """The word behind an option is its value."""
    command = ["train.py", "--password", "hunter2", "--lr", "1", "--api-key=abc", "--token", "--x"]
    assert REDACTOR.value(command) == [
        *["train.py", "--password", GONE, "--lr", "1", f"--api-key={GONE}", "--token", "--x"]
    ]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(plain=PLAIN)
@settings(max_examples=50, deadline=None)
def test_redaction_settles(plain: Any) -> None:
    """Redacted data has nothing left to redact."""
    clean = REDACTOR.value(plain)
    assert REDACTOR.value(clean) is clean


def test_a_redactor_travels() -> None:
    """Configurations are copied, and handed to new processes."""
    own = Redactor(["mine"], ["P-[0-9]+"], replacement="?")
    for other in (copy.deepcopy(own), pickle.loads(pickle.dumps(own))):
        assert other.value({"mine": 1, "x": "P-1"}) == {"mine": "?", "x": "?"}
        assert other.rules == own.rules != REDACTOR.rules


# --- rules that are none ---


@pytest.mark.parametrize("pattern", ["(", "a*", "", "x|"])
def test_a_bad_pattern_is_refused(pattern: str) -> None:
    """Naming it and the remedy."""
    with pytest.raises(ValueError, match=r"patterns holds .*(re\.escape|with \+)"):
        Redactor(patterns=[pattern])


@pytest.mark.parametrize("key", ["", "  ", "--"])
def test_an_empty_key_is_refused(key: str) -> None:
    """It would name everything, or nothing."""
    with pytest.raises(ValueError, match="give names such as"):
        Redactor(keys=[key])


def test_what_is_no_text_is_refused() -> None:
    """Before the first record."""
    with pytest.raises(TypeError, match="keys holds 5"):
        Redactor(keys=["a", 5])  # type: ignore[list-item]


def test_one_text_is_a_list_of_one() -> None:
    """Not a list of its letters."""
    assert Redactor("mine").is_secret("mine", 1)
    assert not Redactor("mine").is_secret("m", 1)


# --- time ---


@pytest.fixture
def in_half_a_minute() -> Iterator[None]:
    """Interrupt what would take hours; linear work on a megabyte takes seconds at most."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("not linear")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


NAMED = [
    "'",
    '"',
    "=",
    ":",
    "/",
    "@",
    "://",
    "://a:",
    "://:@",
    "eyJ",
    "-----BEGIN ",
    PEM[:40],
]
HOSTILE = [
    "token=",
    *["-", "\\", " ", "a", "1", ".", "eyJaaaaaaaaa.", ".eyJ", PEM[:60], "password", "password="],
    *['password="', "password='", 'password=\\"', "token=(", "token=\\'", "key: ", "--a "],
    *["--password ", "bearer ", "basic a", "sk-", "xox", "authorization: digest ", "cookie: a="],
    *["pass_", "sig.", "~8Q~", "Cookie: ", "key=a\n", "password=str;a=", "password=a,", "pass=("],
    *[
        "password=\\",
        "<a>",
        "<password>",
        "<password>a</",
        "curl -u ",
        "curl ",
        "://a:?",
        "://a:'b",
    ],
    *["auth=('", "basicauth(", 'cookie: a="', "password=str;", "(password=none)"],
]


@pytest.mark.parametrize(
    ("part", "size"),
    [*((part, 1_000_000) for part in NAMED), *((part, 100_000) for part in HOSTILE)],
)
def test_hostile_text_takes_linear_time(part: str, size: int, in_half_a_minute: None) -> None:
    """Text of any beginning that never comes to its end."""
    REDACTOR.text(part * (size // len(part)))
