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
    assert prices.of(trained=0, prefilled=0, sampled=3_000_000) == pytest.approx(1.20)


def test_a_model_may_be_free_and_sampling_unpriced(tmp_path):
    (tmp_path / "prices.toml").write_text(TOML)
    prices = read_prices(str(tmp_path / "prices.toml"), "small")
    assert prices.of(trained=3_000_000, prefilled=2_000_000) == 2.0
    assert prices.sample is None
    assert prices.of(trained=0, prefilled=0, sampled=1) is None


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
            "prices.toml: Qwen/Qwen3-4B: train='1': give a number from 0 to 1e+300",
        ),
        ('["Qwen/Qwen3-4B"]\ntrain = -1\nprefill = 1', "prices.toml: Qwen/Qwen3-4B: train=-1: give a number"),
        ('["Qwen/Qwen3-4B"]\ntrain = nan\nprefill = 1', "prices.toml: Qwen/Qwen3-4B: train=nan: give a number"),
        ("[ Qwen/Qwen3-4B ]\ntrain = 1", 'prices.toml: [Qwen/Qwen3-4B]: put the name in quotes: ["Qwen/Qwen3-4B"]'),
        (
            f'["Qwen/Qwen3-4B"]\ntrain = 1{400 * "0"}\nprefill = 1',
            f"prices.toml: Qwen/Qwen3-4B: train=1{39 * '0'}: give a number from 0 to 1e+300",
        ),
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


def test_a_name_with_a_dot_needs_quotes(tmp_path, monkeypatch):
    """Without them TOML takes it for a table in a table."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text("[SmolLM2-135M.Q4_1]\ntrain = 1\nprefill = 1\n")
    with pytest.raises(ConfigError) as raised:
        read_prices("a.toml", "SmolLM2-135M.Q4_1")
    assert str(raised.value) == 'a.toml: [SmolLM2-135M.Q4_1]: put the name in quotes: ["SmolLM2-135M.Q4_1"]'
    (tmp_path / "b.toml").write_text('# [SmolLM2-135M.Q4_1]\n["SmolLM2-135M.Q4_1"]\ntrain = 1\nprefill = 2\n')
    assert read_prices("b.toml", "SmolLM2-135M.Q4_1").prefill == 2


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"m": {"train": 1, "prefill": 1}, "m": {"train": 2, "prefill": 1}}', "m"),
        ('{"m": {"train": 1, "train": 9, "prefill": 1}}', "train"),
    ],
)
def test_json_that_says_a_thing_twice_is_refused(tmp_path, monkeypatch, text, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"a.json: not JSON \('{name}' stands in it twice\): mend it"):
        read_prices("a.json", "m")


@pytest.mark.parametrize("name", ["a.json", "a.toml"])
def test_a_byte_order_mark_is_no_part_of_a_table(tmp_path, name):
    text = '{"m": {"train": 1, "prefill": 2}}' if name == "a.json" else "[m]\ntrain = 1\nprefill = 2\n"
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_prices(str(tmp_path / name), "m").prefill == 2
