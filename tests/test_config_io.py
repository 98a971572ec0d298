import chz
import pytest

from harness.config_io import REDACTED, differences, flatten, from_json, redact, redact_argv, to_json
from harness.exceptions import ConfigError
from harness.renderers import TrainOnWhat


@chz.chz
class Inner:
    size: int
    what: TrainOnWhat = TrainOnWhat.LAST_ASSISTANT_MESSAGE


@chz.chz
class Outer:
    name: str
    inner: Inner
    many: list[Inner] = chz.field(default_factory=list)
    tags: dict[str, str] = chz.field(default_factory=dict)
    api_key: str = ""
    uri: str | None = None


def test_what_is_written_can_be_made_again():
    config = Outer(name="x", inner=Inner(size=1), many=[Inner(size=2)], tags={"a": "b"})
    assert from_json(to_json(config)) == config


def test_flatten_gives_leaves_types_and_enum_values():
    flat = flatten(to_json(Outer(name="x", inner=Inner(size=1))))
    assert flat["inner.size"] == 1
    assert flat["inner.what"] == "last_assistant_message"
    assert flat["inner"] == "tests.test_config_io:Inner"
    assert flat["tags"] == {}


def test_differences_show_both_values():
    before = flatten(to_json(Outer(name="x", inner=Inner(size=1))))
    after = flatten(to_json(Outer(name="y", inner=Inner(size=1), tags={"k": "v"})))
    assert differences(before, after) == {"name": ("x", "y"), "tags": ({}, None), "tags.k": (None, "v")}


def test_no_secret_is_written():
    config = Outer(name="tml-abcdefgh12345", inner=Inner(size=1), api_key="s3cret", uri="http://me:pw@host:5000/x")
    text = str(to_json(config))
    assert "s3cret" not in text and "pw" not in text and "abcdefgh" not in text
    assert "http://host:5000/x" in text
    with pytest.raises(ConfigError, match="redacted secret"):
        from_json(to_json(config))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["api_key=abc"], [f"api_key={REDACTED}"]),
        (["--api-key", "abc", "--name", "x"], ["--api-key", REDACTED, "--name", "x"]),
        (["tracking_uri=https://me:pw@host"], ["tracking_uri=https://host"]),
        (["tracking_uri=https://me:p@w@host/a@b"], ["tracking_uri=https://host/a@b"]),
        (["tracking_uri=postgresql://u:pa/ss@host/db"], ["tracking_uri=postgresql://host/db"]),
        (["tracking_uri=http://host:5000/a@b"], ["tracking_uri=http://host:5000/a@b"]),
        (["uri=postgresql://h/db?user=u&password=pw"], [f"uri=postgresql://h/db?user=u&password={REDACTED}"]),
        (
            ["tags.aws_secret_access_key=abc", "tags.auth=x"],
            [f"tags.aws_secret_access_key={REDACTED}", f"tags.auth={REDACTED}"],
        ),
        (["secret_key@=abc"], [f"secret_key@={REDACTED}"]),
        (["note=my hf_abcdefghijklmnopqrstuvwx"], [f"note=my {REDACTED}"]),
        (["max_length=3", "author=me", "task-specific=1"], ["max_length=3", "author=me", "task-specific=1"]),
    ],
)
def test_arguments_lose_their_secrets(argv, expected):
    assert redact_argv(argv) == expected


def test_field_names_that_only_contain_a_secret_word_are_no_secrets():
    assert redact("gpt2", "model_name_for_tokenizer") == "gpt2"
    assert redact("40", "max_tokens") == "40"


def test_a_plain_callable_is_recorded_and_not_made_again():
    document = to_json({"fn": test_flatten_gives_leaves_types_and_enum_values})
    assert document["fn"] == {"callable": f"{__name__}:test_flatten_gives_leaves_types_and_enum_values"}
    with pytest.raises(ConfigError, match="not re-makeable"):
        from_json(document)


def test_a_type_that_is_gone():
    with pytest.raises(ConfigError, match="cannot be imported"):
        from_json({"type": "harness.nowhere:Gone"})


def test_a_value_without_a_form_in_json():
    with pytest.raises(ConfigError, match="a set cannot be written"):
        to_json({"fine": {1}})
