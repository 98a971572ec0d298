import pytest

from harness.exceptions import ConfigError
from harness.prices import read_prices

TOML = """
["Qwen/Qwen3-8B"]
train = 0.40
prefill = 0.13
sample = 0.40

[small]
train = 0.0
prefill = 1
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prices.toml", TOML),
        ("prices", TOML),
        ("prices.JSON", '{"Qwen/Qwen3-8B": {"train": 0.40, "prefill": 0.13, "sample": 0.40}}'),
    ],
)
def test_a_million_tokens_of_each_kind(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    prices = read_prices(str(file), "Qwen/Qwen3-8B")
    assert prices.of(trained=2_000_000, prefilled=0) == pytest.approx(0.80)
    assert prices.of(trained=0, prefilled=500_000) == pytest.approx(0.065)
    assert prices.of(trained=1_000_000, prefilled=1_000_000) == pytest.approx(0.53)


def test_a_model_may_be_free_and_sampling_unpriced(tmp_path):
    (tmp_path / "prices.toml").write_text(TOML)
    prices = read_prices(str(tmp_path / "prices.toml"), "small")
    assert prices.of(trained=3_000_000, prefilled=2_000_000) == 2.0
    assert prices.sample is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (TOML, "prices.toml: no prices of Qwen/Qwen3-4B; did you mean Qwen/Qwen3-8B?: add them; there is Qwen/Qwen3"),
        ("", "prices.toml: no prices of Qwen/Qwen3-4B: add them; there is nothing"),
        ("train =", "prices.toml: not TOML (Invalid value"),
        ('"Qwen/Qwen3-4B" = 0.4', "prices.toml: Qwen/Qwen3-4B: 0.4 is no table: give train and prefill, the prices of"),
        (
            '["Qwen/Qwen3-4B"]\ntrain = 1\nforward = 1',
            "prices.toml: Qwen/Qwen3-4B: 'forward' is none of its prices: give train, prefill, sample",
        ),
        (
            '["Qwen/Qwen3-4B"]\ntrain = 1',
            "prices.toml: Qwen/Qwen3-4B: no prefill; found ['train']: give the price of a million tokens",
        ),
        (
            '["Qwen/Qwen3-4B"]\ntrain = "1"\nprefill = 1',
            "prices.toml: Qwen/Qwen3-4B: train='1': give a number, 0 or more",
        ),
        ('["Qwen/Qwen3-4B"]\ntrain = -1\nprefill = 1', "prices.toml: Qwen/Qwen3-4B: train=-1: give a number"),
        ('["Qwen/Qwen3-4B"]\ntrain = nan\nprefill = 1', "prices.toml: Qwen/Qwen3-4B: train=nan: give a number"),
        ('["Qwen/Qwen3-4B"]\ntrain = true\nprefill = 1', "prices.toml: Qwen/Qwen3-4B: train=True: give a number"),
    ],
)
def test_a_table_that_cannot_be_used_is_told_with_the_fix(tmp_path, monkeypatch, text, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_prices("prices.toml", "Qwen/Qwen3-4B")
    assert str(raised.value).startswith(error)
    assert "\n" not in str(raised.value)


def test_a_table_that_is_not_there_or_no_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"price_table=no.toml: cannot be read \(No such file or directory\): give a"):
        read_prices("no.toml", "m")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"a\.json: not a table: give the prices of each model under its name"):
        read_prices("a.json", "m")
    (tmp_path / "b.json").write_text("train = 1")
    with pytest.raises(ConfigError, match=r"b.json: not JSON \(Expecting value"):
        read_prices("b.json", "m")
