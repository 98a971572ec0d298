import asyncio
import datetime
import enum
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import chz
import pytest

from harness import cli
from harness.exceptions import ConfigError, DataError

REPOSITORY = Path(__file__).parents[1]
BASE = "Qwen/Qwen3-8B-Base"  # recommended: role_colon
CHAT = "HuggingFaceTB/SmolLM2-135M-Instruct"  # recommended: chat_template


class TrainOnWhat(enum.StrEnum):
    ALL = "all_assistant_messages"
    LAST = "last_assistant_message"


@chz.chz
class CommonConfig:
    model_name_for_tokenizer: str
    renderer_name: str | None
    max_length: int | None
    batch_size: int
    train_on_what: TrainOnWhat = chz.field(default=TrainOnWhat.ALL, doc="Which messages carry loss.")


@chz.chz
class Builder:
    common_config: CommonConfig


@chz.chz
class FileBuilder(Builder):
    file_path: str
    test_size: int = 0


@chz.chz
class HubBuilder(Builder):
    dataset: str = "no_robots"


@chz.chz
class Evaluator:
    name: str
    num_samples: int = 1


class KindFactory(chz.factories.subclass):
    """Names kinds by words, as backends are named."""

    def __init__(self) -> None:
        super().__init__(base_cls=Evaluator, default_cls=Grader)

    def from_string(self, factory: str) -> Any:
        if factory != "grader":
            raise chz.factories.MetaFromString("not one of grader")
        return Grader


@chz.chz
class Grader(Evaluator):
    name: str = "grader"


@chz.chz
class Ablation(Evaluator):
    num_samples: str = "all"  # type: ignore[assignment]


@chz.chz
class Config:
    """Everything about a run."""

    model_name: str
    log_path: str
    dataset_builder: Builder
    learning_rate: float = chz.field(default=2e-4, doc="Peak learning rate, reached after the warm-up. " * 4)
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_steps: int | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    keep: list[str] = chz.field(default_factory=list)
    evaluators: list[Evaluator] = chz.field(default_factory=list)
    evaluator: Evaluator | None = None
    grader: Evaluator = chz.field(default_factory=Grader, meta_factory=KindFactory())
    tags: dict[str, str] = chz.field(default_factory=dict)
    note: str = ""
    mirror: bool = True
    renderer_name: str | None = None
    tracking_uri: str | None = None
    save: Literal["best", "last"] | int = "last"

    @chz.validate
    def _positive(self):
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate}: must be positive")


@chz.chz
class Evaluators:
    evaluators: dict[str, Evaluator]
    limits: dict[str, int] = chz.field(default_factory=dict)
    notes: dict[str, str] = chz.field(default_factory=dict)


@chz.chz
class Named:
    by: dict[Any, Evaluator]
    at: dict[int, Evaluator]


@chz.chz
class Suite:
    suite: Evaluators


def suite() -> chz.Blueprint[Suite]:
    evaluators = {name: Evaluator(name=name) for name in "edcba"}
    limits = {name: 1 for name in "zyxw"}
    return chz.Blueprint(Suite).apply(
        {"suite": Evaluators(evaluators=evaluators, limits=limits, notes=dict.fromkeys("kji", ""))}
    )


def blueprint(renderer_name: str | None = "role_colon", tokenizer: str = BASE, **applied: Any) -> chz.Blueprint[Config]:
    common_config = CommonConfig(
        model_name_for_tokenizer=tokenizer, renderer_name=renderer_name, max_length=2048, batch_size=128
    )
    builder = FileBuilder(common_config=common_config, file_path="data.jsonl", test_size=7)
    values = {"model_name": BASE, "log_path": "runs/x", "dataset_builder": builder}
    return chz.Blueprint(Config).apply(values | applied)


def make(*argv: str, of: chz.Blueprint[Config] | None = None) -> Config:
    return cli.make_from_argv(of or blueprint(), list(argv))


def failure(capsys: pytest.CaptureFixture[str], *argv: str, of: Any = None) -> str:
    """What the user sees of a mistake: one line on stderr, exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        cli.entrypoint(of or blueprint(), argv=list(argv))
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    return err.removeprefix("error: ").rstrip("\n")


# ---- forms


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["learning_rate=1e-3"], "learning_rate", 1e-3),
        (["--learning_rate=1e-3"], "learning_rate", 1e-3),
        (["--learning_rate", "1e-3"], "learning_rate", 1e-3),
        (["--learning-rate", "1e-3"], "learning_rate", 1e-3),
        (["--learning-rate=1e-3"], "learning_rate", 1e-3),
        (["learning_rate=1", "--learning-rate", "2", "learning_rate=3"], "learning_rate", 3.0),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--note", "a=b"], "note", "a=b"),
        (["--note", "-h"], "note", "-h"),
        (["note=--x"], "note", "--x"),
        (["note=a-b=c"], "note", "a-b=c"),
        (["note="], "note", ""),
        (["max_steps=1e3"], "max_steps", 1000),
        (["--max-steps", "2e0"], "max_steps", 2),
        (["max_steps=1.5e1"], "max_steps", 15),
        (["note=1e3"], "note", "1e3"),
        (["learning_rate=1e3"], "learning_rate", 1000.0),
        (["max_steps=5", "max_steps=None"], "max_steps", None),
        (["keep=best,last"], "keep", ["best", "last"]),
        (["keep=['best','last']"], "keep", ["best", "last"]),
        (["keep=[best, last]"], "keep", ["best", "last"]),
        (["betas=0.8,0.9"], "betas", (0.8, 0.9)),
        (["betas=(0.8,0.9)"], "betas", (0.8, 0.9)),
        (["tags.a=1", "--tags.b", "2e1", "tags.my-tag=3"], "tags", {"a": "1", "b": "2e1", "my-tag": "3"}),
        (["--mirror", "false"], "mirror", False),
        (["note@=model_name"], "note", BASE),
        (["--note@=model_name"], "note", BASE),
    ],
)
def test_forms(argv: list[str], field: str, value: Any):
    made = getattr(make(*argv), field)
    assert (made, type(made)) == (value, type(value))


def test_1e3_is_read_by_each_fields_own_type():
    made = make("max_steps=1e3", "note=1e3", "learning_rate=1e3", "tags.a=1e3", "...batch_size=1e3")
    assert (made.max_steps, made.note, made.learning_rate, made.tags) == (1000, "1e3", 1000.0, {"a": "1e3"})
    assert made.dataset_builder.common_config.batch_size == 1000


def test_arguments_default_to_those_of_the_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--max-steps", "3"])
    assert cli.entrypoint(blueprint()).max_steps == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mirror"], "--mirror: no value given; write --mirror <value> (a switch: --mirror true)"),
        (
            ["--max-steps", "--note=x"],
            "--max-steps: no value given; write --max-steps <value> (a switch: --max-steps true)",
        ),
        (["12"], "12: not an override; write key=value, --key=value or --key value (--help lists all)"),
        (["-x=3"], "-x=3: not an override; write key=value, --key=value or --key value (--help lists all)"),
        (["=3"], "=3: no key before the value; write key=value (--help lists all)"),
        (["note@=...name"], "note@=...name: Cannot use wildcard as a reference target"),
    ],
)
def test_arguments_of_no_form(capsys: pytest.CaptureFixture[str], argv: list[str], message: str):
    assert failure(capsys, *argv) == message


# ---- into what the recipe applied


def test_dotted_keys_reach_into_an_instance_and_leave_the_rest():
    made = make("dataset_builder.common_config.batch_size=64", "--dataset-builder.file-path", "b.jsonl")
    assert made.dataset_builder == FileBuilder(
        common_config=CommonConfig(
            model_name_for_tokenizer=BASE, renderer_name="role_colon", max_length=2048, batch_size=64
        ),
        file_path="b.jsonl",
        test_size=7,
    )


def test_without_overrides_the_recipe_is_made_as_it_is():
    assert make() == blueprint().make()


@pytest.mark.parametrize("key", ["...batch_size", "dataset_builder...batch_size", "...common_config.batch_size"])
def test_wildcards_reach_into_an_instance(key: str):
    assert make(f"{key}=64").dataset_builder.common_config.batch_size == 64


def test_an_enum_in_an_instance_by_value_and_by_name():
    key = "dataset_builder.common_config.train_on_what"
    assert make(f"{key}=last_assistant_message").dataset_builder.common_config.train_on_what is TrainOnWhat.LAST
    assert make(f"{key}=LAST").dataset_builder.common_config.train_on_what is TrainOnWhat.LAST


def test_another_builder_keeps_what_it_has_a_field_for():
    before = blueprint().make().dataset_builder
    for argv in (["dataset_builder=HubBuilder"], ["dataset_builder=tests.test_cli:HubBuilder"]):
        assert make(*argv).dataset_builder == HubBuilder(common_config=before.common_config)
    made = make("dataset_builder.dataset=other", "dataset_builder=HubBuilder", "...batch_size=2").dataset_builder
    assert made == HubBuilder(common_config=chz.replace(before.common_config, batch_size=2), dataset="other")
    assert make("...dataset_builder=HubBuilder").dataset_builder == make("dataset_builder=HubBuilder").dataset_builder


def test_fields_are_read_by_the_type_that_the_same_command_line_chooses():
    made = make("evaluator.num_samples=1e3", "evaluator.name=a", "evaluator=Ablation").evaluator
    assert made == Ablation(name="a", num_samples="1e3")


def test_an_instance_of_a_later_layer_replaces_the_earlier_one():
    later = HubBuilder(common_config=blueprint().make().dataset_builder.common_config)
    made = make("dataset_builder.dataset=x", of=blueprint().apply({"dataset_builder": later}))
    assert made.dataset_builder == chz.replace(later, dataset="x")


def test_a_field_applied_beside_its_instance_counts():
    made = make("...batch_size=2", of=blueprint("role_colon", BASE, **{"dataset_builder.test_size": 9}))
    assert isinstance(made.dataset_builder, FileBuilder)
    assert (made.dataset_builder.test_size, made.dataset_builder.common_config.batch_size) == (9, 2)
    common_config = chz.replace(made.dataset_builder.common_config, batch_size=3, train_on_what=TrainOnWhat.LAST)
    recipe = blueprint().apply({"dataset_builder.common_config": common_config})
    for applied in (recipe, blueprint("role_colon", BASE, **{"dataset_builder.common_config": common_config})):
        assert make(of=applied).dataset_builder.common_config == common_config


def test_none_in_the_place_of_an_instance():
    recipe = blueprint(evaluator=Evaluator(name="a"))
    assert make("evaluator=None", of=recipe).evaluator is None
    assert make("evaluator.num_samples=4", of=recipe).evaluator == Evaluator(name="a", num_samples=4)


def test_lists_of_instances():
    recipe = blueprint(evaluators=[Evaluator(name="a"), Evaluator(name="b", num_samples=3)])
    assert make("evaluators.1.name=c", of=recipe).evaluators == [
        Evaluator(name="a"),
        Evaluator(name="c", num_samples=3),
    ]
    assert make("evaluators...num_samples=5", of=recipe).evaluators == [
        Evaluator(name="a", num_samples=5),
        Evaluator(name="b", num_samples=5),
    ]
    named = make("...name=z", of=recipe).evaluators
    assert named == [Evaluator(name="z"), Evaluator(name="z", num_samples=3)]
    assert make("evaluators=", of=recipe).evaluators == []


def test_a_mapping_is_added_to_or_replaced():
    recipe = blueprint(tags={"team": "a", "host": "x"})
    assert make("tags.team=b", "tags.new=1", of=recipe).tags == {"team": "b", "host": "x", "new": "1"}
    assert make("tags={}", of=recipe).tags == {}
    assert make("tags.new=1", of=blueprint(tags={})).tags == {"new": "1"}


def test_a_mapping_whose_keys_hold_dots_is_given_whole(capsys: pytest.CaptureFixture[str]):
    recipe = blueprint(tags={"mlflow.user": "me"})
    assert make("note=x", of=recipe).tags == {"mlflow.user": "me"}
    assert make("tags={'mlflow.user': 'you'}", of=recipe).tags == {"mlflow.user": "you"}
    assert failure(capsys, "tags.team=a", of=recipe) == (
        "tags: its key 'mlflow.user' holds a dot, at which keys are split: rename it, or give all of it: tags={...}"
    )
    dotted = chz.Blueprint(Suite).apply({"suite": Evaluators(evaluators={"v1.0": Evaluator(name="a")})})
    assert failure(capsys, of=dotted) == (
        "suite.evaluators: its key 'v1.0' holds a dot, at which keys are split: rename it, or give all of it: "
        "suite.evaluators={...}"
    )


SUITE = """
from harness import cli
from tests.test_cli import suite
made = cli.make_from_argv(suite(), ["suite.evaluators.f=Grader", "...num_samples=2", "suite.limits.g=7"])
print(*made.suite.evaluators, *made.suite.limits, *made.suite.notes)
print({evaluator.num_samples for evaluator in made.suite.evaluators.values()})
cli.entrypoint(suite(), argv=["suite.limits.g=7", "--help"])
"""


@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_mapping_keeps_the_recipes_order_in_every_process(seed: str):
    done = run("-c", SUITE, cwd=REPOSITORY, PYTHONHASHSEED=seed)
    assert done.stdout.splitlines()[:2] == ["e d c b a f z y x w g k j i", "{2}"], done.stderr
    keys = re.findall(r"^  suite\.(?:evaluators|limits)\.(\w)=", done.stdout, re.MULTILINE)
    assert "".join(keys) == "edcba" + "zyxwg"


def test_a_mapping_by_keys_that_are_no_words_is_left_as_it_is():
    by_kind: dict[Any, Evaluator] = {TrainOnWhat: Grader(), 3.5: Grader()}
    recipe = chz.Blueprint(Named).apply({"by": by_kind, "at": {1: Evaluator(name="a"), 10: Evaluator(name="b")}})
    made = cli.make_from_argv(recipe, ["...num_samples=2"])
    assert made == Named(by=by_kind, at={i: Evaluator(name=n, num_samples=2) for i, n in ((1, "a"), (10, "b"))})


def test_the_recipes_blueprint_is_left_as_it_is():
    recipe = blueprint()
    before = repr(recipe._arg_map._layers)
    make(f"model_name={CHAT}", "...batch_size=2", "dataset_builder=HubBuilder", of=recipe)
    assert repr(recipe._arg_map._layers) == before
    assert recipe.make() == blueprint().make()


def test_chz_alone_still_makes_what_the_recipe_describes():
    recipe = blueprint()
    recipe.make_from_argv(["learning_rate=1e-3", "model_name=other"])
    made = recipe.make()
    assert (made.learning_rate, made.model_name) == (1e-3, "other")
    assert made.dataset_builder == blueprint().make().dataset_builder


# ---- model_name carries on


@pytest.mark.parametrize(
    "argv", [[f"model_name={CHAT}"], ["--model_name", CHAT], ["--model-name", CHAT], [f"...model_name={CHAT}"]]
)
def test_model_name_carries_on(capsys: pytest.CaptureFixture[str], argv: list[str]):
    made = make(*argv)
    assert made.model_name == CHAT
    assert made.dataset_builder.common_config.model_name_for_tokenizer == CHAT
    assert made.dataset_builder.common_config.renderer_name == "chat_template"
    assert made.renderer_name is None
    assert capsys.readouterr().err == ""


def test_model_name_carries_on_to_every_renderer_name():
    made = make(f"model_name={CHAT}", of=blueprint(renderer_name=None).apply({"renderer_name": "role_colon"}))
    assert made.renderer_name == "chat_template"
    assert made.dataset_builder.common_config.renderer_name is None


def test_a_renderer_for_the_whole_config_overrules_the_builders(capsys: pytest.CaptureFixture[str]):
    assert make(f"model_name={CHAT}", "renderer_name=qwen3", of=blueprint("llama3")).renderer_name == "qwen3"
    assert capsys.readouterr().err == ""


def test_model_name_carries_on_into_another_builder():
    common_config = make(f"model_name={CHAT}", "dataset_builder=HubBuilder").dataset_builder.common_config
    assert (common_config.model_name_for_tokenizer, common_config.renderer_name) == (CHAT, "chat_template")


def test_what_the_recipe_chose_itself_stays_with_one_warning(capsys: pytest.CaptureFixture[str]):
    made = make(f"model_name={CHAT}", of=blueprint(renderer_name="llama3", tokenizer="my/tokenizer"))
    common_config = made.dataset_builder.common_config
    assert (common_config.renderer_name, common_config.model_name_for_tokenizer) == ("llama3", "my/tokenizer")
    path = "dataset_builder.common_config"
    assert capsys.readouterr().err == (
        f"warning: model_name is now {CHAT}, but {path}.model_name_for_tokenizer=my/tokenizer, "
        f"{path}.renderer_name=llama3 stays: the recipe chose it apart from its model; "
        f"to change it: {path}.model_name_for_tokenizer={CHAT} {path}.renderer_name=chat_template\n"
    )


@pytest.mark.parametrize("key", ["dataset_builder.common_config.renderer_name", "...renderer_name"])
def test_a_renderer_on_the_command_line_wins(capsys: pytest.CaptureFixture[str], key: str):
    for recipe in (blueprint(), blueprint(renderer_name="llama3")):
        made = make(f"{key}=qwen3", f"model_name={CHAT}", of=recipe)
        assert made.dataset_builder.common_config.renderer_name == "qwen3"
    assert capsys.readouterr().err == ""


def test_a_tokenizer_on_the_command_line_wins():
    made = make("...model_name_for_tokenizer=my/own", f"model_name={CHAT}")
    assert made.dataset_builder.common_config.model_name_for_tokenizer == "my/own"


@pytest.mark.parametrize(
    ("recipe", "argv"),
    [
        (blueprint(renderer_name="llama3"), ["learning_rate=1"]),  # the model is not changed
        (blueprint(renderer_name="llama3"), [f"model_name={BASE}"]),  # nor is it here
        (blueprint(renderer_name="chat_template"), [f"model_name={CHAT}"]),  # it happens to suit the new model
    ],
)
def test_no_warning_where_nothing_is_amiss(
    capsys: pytest.CaptureFixture[str], recipe: chz.Blueprint[Config], argv: list[str]
):
    before = recipe.make().dataset_builder.common_config.renderer_name
    assert make(*argv, of=recipe).dataset_builder.common_config.renderer_name == before
    assert capsys.readouterr().err == ""


# ---- help


def help_text(capsys: pytest.CaptureFixture[str], *argv: str, of: Any = None) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.entrypoint(of or blueprint(), argv=list(argv))
    out, err = capsys.readouterr()
    assert (stopped.value.code, err) == (0, "")
    return out


def option(text: str, start: str) -> str:
    """The one line of the help that starts so, its columns separated by one space."""
    [line] = [line for line in text.splitlines() if line.startswith(f"  {start}")]
    return " ".join(line.split())


def test_help_shows_types_docs_and_where_each_value_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "100")
    text = help_text(capsys, "--help", "--max-steps", "1e3", "...batch_size=2", f"model_name={CHAT}")
    assert "Everything about a run." in text
    assert option(text, "model_name=") == f"model_name={CHAT} str (command line)"
    assert option(text, "learning_rate=") == "learning_rate=0.0002 float (default)"
    assert option(text, "lr_schedule=") == "lr_schedule=linear linear | cosine | constant (default)"
    assert option(text, "max_steps=") == "max_steps=1000 int | None (command line)"
    assert option(text, "betas=") == "betas=0.9,0.95 tuple[float, float] (default)"
    assert option(text, "grader=") == "grader=Grader Evaluator (default)"
    assert option(text, "tags=") == "tags={} dict[str, str] (default)"
    assert option(text, "dataset_builder=") == "dataset_builder=FileBuilder Builder (recipe)"
    assert option(text, "dataset_builder.test_size=") == "dataset_builder.test_size=7 int (recipe)"
    common = "dataset_builder.common_config"
    assert option(text, f"{common}.batch_size=") == f"{common}.batch_size=2 int (command line)"
    assert option(text, f"{common}.model_name_for") == f"{common}.model_name_for_tokenizer@=model_name str (model_name)"
    assert option(text, f"{common}.renderer_name=") == f"{common}.renderer_name=chat_template str | None (model_name)"
    assert option(text, f"{common}.train_on_what=").endswith("=all_assistant_messages TrainOnWhat (default)")
    assert "Which messages carry loss. TrainOnWhat: all_assistant_messages, last_assistant_message." in text
    assert "\n      Peak learning rate, reached after the warm-up. Peak learning rate" in text
    assert max(map(len, text.splitlines())) <= 100, "docs are wrapped, nothing overflows"


def test_help_says_recipe_of_what_the_recipe_gave_alone(capsys: pytest.CaptureFixture[str]):
    evaluators = [Evaluator(name="a"), Evaluator(name="b", num_samples=3)]
    text = help_text(capsys, "--help", of=blueprint(evaluators=evaluators, evaluator=Grader(), max_steps=None))
    assert option(text, "evaluators.0.num_samples=") == "evaluators.0.num_samples=1 int (default)"
    assert option(text, "evaluators.1.num_samples=") == "evaluators.1.num_samples=3 int (recipe)"
    assert option(text, "evaluators=") == "evaluators= list[Evaluator] (its items follow)"
    assert option(text, "evaluator=") == "evaluator=Grader Evaluator | None (recipe)"
    assert option(text, "evaluator.name=") == "evaluator.name=grader str (default)"
    assert option(text, "max_steps=") == "max_steps=None int | None (recipe)"
    text = help_text(capsys, "--help", of=suite())
    assert option(text, "suite.limits=") == "suite.limits={'z': 1, 'y': 1, 'x': 1, 'w': 1} dict[str, int] (recipe)"


def test_h_is_help_and_needs_no_required_value(capsys: pytest.CaptureFixture[str]):
    text = help_text(capsys, "-h", of=Config)
    assert option(text, "model_name=") == "model_name= str (required)"
    assert re.fullmatch(r"log_path=runs/\S+-\d{8}-\d{6} str \(default\)", option(text, "log_path="))


# ---- errors


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("learning_rat=3", "learning_rat: no such option; did you mean learning_rate?"),
        ("learning-rate=3", "learning-rate: no such option; did you mean learning_rate?"),
        ("--learning-rat=3", "learning_rat: no such option; did you mean learning_rate?"),
        ("batch_size=3", "batch_size: no such option; did you mean dataset_builder.common_config.batch_size?"),
        (
            "dataset_builder.file_pat=3",
            "dataset_builder.file_pat: no such option; did you mean dataset_builder.file_path?",
        ),
        ("batch_siz=3", "batch_siz: no such option; did you mean dataset_builder.common_config.batch_size?"),
        ("...batch_siz=3", "...batch_siz: no such option; did you mean ...batch_size?"),
        ("qqq=3", "qqq: no such option"),
        ("learning_rate.x=3", "learning_rate.x: no such option; did you mean learning_rate?"),
        ("learning_rate=abc", "learning_rate=abc: not a float"),
        ("max_steps=abc", "max_steps=abc: not an int or None"),
        ("max_steps=15e-1", "max_steps=15e-1: not an int or None"),
        ("max_steps=1.25e1", "max_steps=1.25e1: not an int or None"),
        ("...batch_size=abc", "...batch_size=abc: not an int"),
        ("mirror=maybe", "mirror=maybe: not one of true, false"),
        ("lr_schedule=step", "lr_schedule=step: not one of linear, cosine, constant"),
        (
            "...train_on_what=first",
            "...train_on_what=first: not one of all_assistant_messages, last_assistant_message",
        ),
        ("dataset_builder=Hub", "dataset_builder=Hub: not one of Builder, FileBuilder, HubBuilder, module:Class"),
        ("betas=1", "betas=1: not a tuple[float, float]"),
        ("save=foo", "save=foo: not best, last or an int"),
        ("evaluator=Foo", "evaluator=Foo: not one of Evaluator, Grader, Ablation, module:Class, None"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_remedy(capsys: pytest.CaptureFixture[str], argument: str, message: str):
    assert failure(capsys, argument) == f"{message} (--help lists all)"


def test_a_factory_of_the_fields_own_is_used_and_says_what_it_takes(capsys: pytest.CaptureFixture[str]):
    assert make("grader=grader", "grader.num_samples=1e1").grader == Grader(num_samples=10)
    assert failure(capsys, "grader=foo") == "grader=foo: not one of grader"


def test_of_several_overrides_the_wrong_one_is_named(capsys: pytest.CaptureFixture[str]):
    assert failure(capsys, "max_steps=3", "note=x", "learning_rate=abc", "tags.a=b") == (
        "learning_rate=abc: not a float (--help lists all)"
    )


def test_missing_values_are_named(capsys: pytest.CaptureFixture[str]):
    recipe = chz.Blueprint(Config).apply({"dataset_builder": blueprint().make().dataset_builder})
    assert failure(capsys, of=recipe) == "model_name is required: give model_name=<str> (--help lists all)"
    assert failure(capsys, "evaluator=Evaluator", of=recipe) == (
        "model_name, evaluator.name are required: give model_name=<str> evaluator.name=<str> (--help lists all)"
    )


def test_what_a_validator_refuses(capsys: pytest.CaptureFixture[str]):
    assert failure(capsys, "learning_rate=-1") == "learning_rate=-1.0: must be positive"


def test_a_reference_to_nothing(capsys: pytest.CaptureFixture[str]):
    assert "Invalid reference target 'model_nam' for param note Did you mean 'model_name'?" in failure(
        capsys, "note@=model_nam"
    )


def test_references_in_a_circle(capsys: pytest.CaptureFixture[str]):
    message = failure(capsys, "note@=tracking_uri", "tracking_uri@=note")
    assert message.startswith("Detected cyclic reference: ")


def test_a_value_of_the_wrong_type_in_the_recipe_is_not_blamed_on_an_override(capsys: pytest.CaptureFixture[str]):
    assert "Expected 'max_steps' to be int | None, got str" in failure(capsys, "note=x", of=blueprint(max_steps="3"))


# ---- running


def test_main_is_called_with_the_object_and_its_result_returned():
    assert cli.entrypoint(blueprint(), lambda config: config.max_steps + 1, argv=["max_steps=3"]) == 4


def test_an_async_main_is_run_to_its_end():
    async def main(config: Config) -> int | None:
        await asyncio.sleep(0)
        return config.max_steps

    assert cli.entrypoint(blueprint(), main, argv=["max_steps=3"]) == 3


@chz.chz
class CLIConfig:
    model_name: str = BASE
    log_path: str = "/tmp/training"
    batch_size: int = 128


def test_a_class_is_a_target():
    assert cli.entrypoint(CLIConfig, argv=["--batch-size", "4"]) == CLIConfig(batch_size=4)


def test_a_function_is_a_target_and_its_own_main():
    async def main(config: CLIConfig, suffix: str = "!") -> str:
        return f"{config.batch_size}{suffix}"

    def quoted(config: "CLIConfig") -> int:
        return config.batch_size

    assert cli.entrypoint(main, argv=["batch_size=4"]) == "4!"
    assert cli.entrypoint(quoted, argv=["batch_size=4"]) == 4


def test_a_users_mistake_in_main_is_one_line(capsys: pytest.CaptureFixture[str]):
    async def main(config: Config) -> None:
        raise DataError("data.jsonl:17: no messages")

    with pytest.raises(SystemExit) as stopped:
        cli.entrypoint(blueprint(), main, argv=[])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: data.jsonl:17: no messages\n"


@pytest.mark.parametrize("bug", [ValueError, KeyError, chz.blueprint.InvalidBlueprintArg])
def test_a_bug_in_main_keeps_its_traceback(bug: type[Exception]):
    def main(config: Config) -> None:
        raise bug("oops")

    with pytest.raises(bug, match="oops"):
        cli.entrypoint(blueprint(), main, argv=[])


def test_an_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]):
    def main(config: Any) -> None:
        raise KeyboardInterrupt

    for target, argv, line in (
        (blueprint(), [], "interrupted; the same command with log_path=runs/x resumes the run\n"),
        (blueprint(), ["log_path=my runs"], "interrupted; the same command with log_path='my runs' resumes the run\n"),
        (chz.Blueprint(Evaluator), ["name=a"], "interrupted\n"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.entrypoint(target, main, argv=argv)
        assert stopped.value.code == 130
        assert capsys.readouterr().err == line


# ---- the default log_path

NOW = datetime.datetime(2026, 11, 22, 10, 57)


@pytest.fixture
def as_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ``python -m recipes.sl_basic`` ran here."""
    monkeypatch.chdir(tmp_path)
    spec = type("Spec", (), {"name": "recipes.sl_basic"})()
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)


@pytest.mark.usefixtures("as_recipe")
@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([], ""),
        (["--dataset-builder.common-config.batch-size", "64", "lr=1e-4"], "-batch_size=64,lr=1e-4"),
        (["model_name=Qwen/Qwen3-8B"], "-model_name=Qwen_Qwen3-8B"),
        (["note=../a b\n*é"], "-note=.._a_b_"),
        (["note@=model_name"], "-note=model_name"),
        (["tracking_uri=https://me:secret@host/x"], "-tracking_uri=https_host_x"),
        (["api_key=secret"], "-api_key=_redacted_"),
        ([f"note={'x' * 200}"], f"-note={'x' * 75}"),
    ],
)
def test_the_default_log_path_says_what_differs(argv: list[str], name: str):
    overrides, _ = cli.parse_argv(argv)
    assert cli.default_log_path("sl_basic", overrides, NOW) == f"runs/sl_basic-20261122-105700{name}"


@pytest.mark.usefixtures("as_recipe")
def test_a_default_log_path_that_is_there_is_numbered():
    for expected in ("", "-2", "-3"):
        path = cli.default_log_path("sl_basic", {}, NOW)
        assert path == f"runs/sl_basic-20261122-105700{expected}"
        os.makedirs(path)


@pytest.mark.usefixtures("as_recipe")
def test_a_log_path_that_nothing_sets_is_set():
    recipe = chz.Blueprint(Config).apply({"model_name": BASE, "dataset_builder": blueprint().make().dataset_builder})
    made = make("max_steps=3", of=recipe)
    assert re.fullmatch(r"runs/sl_basic-\d{8}-\d{6}-max_steps=3", made.log_path)
    assert not Path("runs").exists(), "making a config writes nothing"
    assert make("log_path=a", of=recipe).log_path == "a"
    assert make("...log_path=a", of=recipe).log_path == "a"
    assert make().log_path == "runs/x"
    assert cli.entrypoint(CLIConfig, argv=[]).log_path == "/tmp/training", "the field's own default stays"
    assert cli.entrypoint(Evaluator, argv=["name=a"]) == Evaluator(name="a")


# ---- as a process

RECIPE = """
import sys
from harness import cli
from harness.supervised.provenance import command_line, recipe_name
from tests.test_cli import blueprint

if __name__ == "__main__":
    cli.entrypoint(blueprint(), lambda config: print(recipe_name(), command_line()["module"], config.max_steps))
"""


def run(*command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)} | variables
    return subprocess.run([sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True)


def test_a_recipe_as_a_script_and_as_a_module(tmp_path: Path):
    package = tmp_path / "my_recipes" / "chat"
    package.mkdir(parents=True)
    (package / "sl_mine.py").write_text(RECIPE)
    (package / "__main__.py").write_text(RECIPE)
    assert run("my_recipes/chat/sl_mine.py", "--max-steps", "1e1", cwd=tmp_path).stdout == "sl_mine None 10\n"
    assert run("my_recipes/chat", cwd=tmp_path).stdout == "__main__ None None\n"
    said = run("-m", "my_recipes.chat.sl_mine", "max_steps=1", cwd=tmp_path).stdout
    assert said == "sl_mine my_recipes.chat.sl_mine 1\n"
    assert run("-m", "my_recipes.chat", cwd=tmp_path).stdout == "chat my_recipes.chat None\n"
    helped = run("-m", "my_recipes.chat.sl_mine", "--help", cwd=tmp_path)
    assert helped.stdout.startswith("Usage: python -m my_recipes.chat.sl_mine ")
    assert (helped.returncode, helped.stderr) == (0, "")
    failed = run("-m", "my_recipes.chat.sl_mine", "max_step=1", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "error: max_step: no such option; did you mean max_steps? (--help lists all)\n"


def test_importing_it_loads_nothing_heavy():
    heavy = "{'torch', 'mlflow', 'transformers', 'datasets', 'tinker', 'pandas', 'numpy'}"
    loaded = run("-c", f"import harness.cli, sys; print(sorted({heavy} & sys.modules.keys()))", cwd=REPOSITORY)
    assert loaded.stdout == "[]\n"


def test_parse_argv_raises_what_callers_can_catch():
    with pytest.raises(ConfigError, match="not an override"):
        cli.parse_argv(["x"])
