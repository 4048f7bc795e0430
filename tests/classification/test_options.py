"""Options: both spellings, flags with and without a value, recipes, and one sentence for every mistake."""

from dataclasses import asdict
from pathlib import Path

import options
import parsing
import pytest
import train
import yaml
from runs import SCRIPTS, TINY, start


def parse(*argv: str) -> options.TrainOptions:
    return parsing.parse_options(options.TrainOptions, list(argv))


def test_both_spellings_and_bare_booleans():
    assert parse("--drop-path", "0.1").drop_path == parse("--drop_path", "0.1").drop_path == 0.1
    assert parse("--amp").amp is parse("--amp", "true").amp is parse("--amp=true").amp is True
    assert parse("--amp", "false").amp is parse().amp is False
    assert parse("--model-ema", "--mean", "0.5", "0.4", "0.3").mean == [0.5, 0.4, 0.3]
    assert parse("--model-kwargs", "{img_size: 32}", "--model_kwargs.a", "x").model_kwargs == {"img_size": 32, "a": "x"}


def test_phases_turn_progressive_tokenization_on_unless_told_otherwise():
    phases = ["--phases", "[[0.5, 4], [1, 1, 1]]"]
    assert parse(*phases).phases == [[0.5, 4], [1, 1, 1]]
    assert parse(*phases).progressive_tokenization is True
    assert parse("--progressive-tokenization").progressive_tokenization is True
    assert parse(*phases, "--progressive-tokenization", "false").progressive_tokenization is False
    assert parse().progressive_tokenization is False


def test_command_line_wins_over_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr: 0.5\namp: true\nmodel_kwargs: {a: 1}\n")
    parsed = parse("--config", str(recipe), "--lr", "0.25", "--model-kwargs.b", "2")
    assert (parsed.lr, parsed.amp, parsed.model_kwargs) == (0.25, True, {"a": 1, "b": 2})


def test_written_options_are_a_recipe(tmp_path):
    lists = ["--freeze", "stem", "blocks.0", "--train-img-sizes", "8", "16", "--train-batch-sizes", "4", "2"]
    teacher = ["--kd-model-name", "vit", "--kd-model-kwargs.depth", "2", "--kd-tokens-weight", "0.5"]
    first = parse("--lr", "0.3", "--scale", "0.5", "1", "--model-kwargs.img_size", "32", *lists, *teacher)
    assert (first.freeze, first.train_img_sizes, first.kd_model_kwargs) == (["stem", "blocks.0"], [8, 16], {"depth": 2})
    recipe = tmp_path / "args.yaml"
    recipe.write_text(yaml.safe_dump(asdict(first)))
    assert parse("--config", str(recipe)) == first


@pytest.mark.parametrize("recipe", sorted((SCRIPTS / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_parse(recipe):
    given = yaml.safe_load(recipe.read_text())
    parsed = asdict(parse("--config", str(recipe)))
    assert {name: parsed[name] for name in given} == given


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--learning-rate", "1"], ["--learning-rate"]),
        (["--lr", "fast"], ["--lr", "fast", "float"]),
        (["--lr", "-1"], ["--lr", "-1", "above 0"]),
        (["--drop-path", "x"], ["--drop-path", "x", "float"]),
        (["--amp", "perhaps"], ["--amp", "perhaps", "bool"]),
        (["--amp-dtype", "int8"], ["--amp-dtype", "int8", "bfloat16"]),
        (["--opt", "nosuch"], ["--opt", "nosuch"]),
        (["--sched", "plateau"], ["--sched", "plateau", "cosine"]),
        (["--interpolation", "nosuch"], ["--interpolation", "nosuch", "bicubic"]),
        (["--config", "nosuch.yaml"], ["nosuch.yaml"]),
        (["--mixup", "0.5", "--batch-size", "63"], ["--batch-size", "63", "even"]),
        (["--model", "nosuch"], ["nosuch"]),
        (["--model", "test_vit", "--model-kwargs.nosuch", "1"], ["test_vit", "nosuch"]),
        (["--model", "test_vit", "--pretrained", "--initial-checkpoint", "nosuch.pth"], ["test_vit"]),
        (["--model-kwargs.genotype", "4,2"], ["genotype"]),
        (["--data", "nosuch/folder"], ["nosuch/folder", "does not exist"]),
        (["--dataset", "wds/nosuch"], ["wds/nosuch"]),
        (["--batch-size", "2000"], ["--batch-size", "2000", "1437"]),
        (["--num-classes", "3"], ["--num-classes", "3", "10 classes"]),
        (["--device", "nosuch"], ["--device", "nosuch"]),
        (["--mean", "0.1", "0.2", "--in-chans", "1"], ["mean"]),
        (["--progressive-tokenization", "--phases", "[[0.5, 4], [0.2, 2]]"], ["phases"]),
        (["--progressive-tokenization", "--model", "test_resnet", "--img-size", "32"], ["ResNet"]),
        (["--progressive-tokenization", "--epochs", "1"], ["--epochs", "last phase"]),
        (["--resume", "nosuch.pth.tar"], ["nosuch.pth.tar"]),
        (["--output", "/dev/null/x"], ["--output", "/dev/null/x", "Not a directory"]),
        (["--aa", "nonsense"], ["--aa", "nonsense", "rand-m9"]),
        (["--aa", "rand-m9-q5"], ["--aa", "rand-m9-q5"]),
        (["--train-interpolation", "foo"], ["--train-interpolation", "foo", "random"]),
        (["--scale", "-1", "-0.5"], ["--scale", "[-1.0, -0.5]", "above 0"]),
        (["--scale", "1", "0.5"], ["--scale", "[1.0, 0.5]", "rising"]),
        (["--ratio", "0", "0"], ["--ratio", "[0.0, 0.0]", "above 0"]),
        (["--ratio", "1"], ["--ratio", "[1.0]", "two"]),
        (["--aug-repeats", "3"], ["--aug-repeats", "3", "single process"]),
        (["--model", "vgg11", "--img-size", "32", "--grad-checkpointing"], ["--grad-checkpointing", "vgg11"]),
        (["--opt", "adahessian"], ["--opt", "adahessian", "first derivatives"]),
        (["--model-kwargs.num_classes", "3"], ["--model-kwargs.num_classes", "3", "--num-classes"]),
        (["--model-kwargs.in_chans", "3"], ["--model-kwargs.in_chans", "3", "--in-chans"]),
        (["--model-kwargs.img_size", "32"], ["--model-kwargs.img_size", "32", "--img-size"]),
        (["--model-kwargs.stem_stride", "0"], ["as_vit", "stem_stride", "0"]),
        (["--device", "meta"], ["--device", "meta"]),
        (["--class-map", "nofile.txt"], ["--class-map", "nofile.txt"]),
        (["--dataset", "foo/bar"], ["--dataset", "foo/bar", "hfds/NAME"]),
        (["--lr", "nan"], ["--lr", "nan", "finite"]),
        (["--min-lr", "inf"], ["--min-lr", "inf", "finite"]),
        (["--mean", "nan"], ["--mean", "nan", "finite"]),
        (["--kd-model-name", "x", "--kd-tokens-weight", "-1"], ["--kd-tokens-weight", "-1", "from 0 up"]),
        (["--kd-temperature", "0"], ["--kd-temperature", "0", "above 0"]),
        (["--kd-temperature", "nan"], ["--kd-temperature", "nan", "finite"]),
        (["--kd-distill-type", "both"], ["--kd-distill-type", "both", "soft", "hard", "none"]),
        (["--kd-tokens-weight", "1"], ["--kd-tokens-weight", "--kd-model-name"]),
        (["--kd-distill-type", "hard"], ["--kd-distill-type", "hard", "needs a teacher", "--kd-model-name"]),
        (["--task-loss-weight", "0.2"], ["--task-loss-weight", "0.2", "--kd-model-name"]),
        (["--train-size-random-mix", "0.3"], ["--train-size-random-mix", "0.3", "--train-img-sizes"]),
        (["--switch-token-mix", "--mixup", "1", "--mixup-mode", "elem"], ["--mixup-mode", "--switch-token-mix"]),
        (["--pretrained-path", "x", "--initial-checkpoint", "y"], ["--pretrained-path", "--initial-checkpoint"]),
        (
            ["--train-img-sizes", "8", "16", "--train-batch-sizes", "7", "8", "--mixup", "1"],
            ["--train-batch-sizes", "[7, 8]", "even"],
        ),
        (["--kd-pretrained-path", "x"], ["--kd-pretrained-path", "--kd-model-name"]),
        (["--kd-model-kwargs.depth", "1"], ["--kd-model-kwargs", "--kd-model-name"]),
        (["--kd-model-name", "x", "--kd-distill-type", "none"], ["--kd-distill-type", "none", "--kd-tokens-weight"]),
        (["--task-loss-weight", "-1"], ["--task-loss-weight", "-1", "from 0 up"]),
        (["--distill-loss-weight", "-0.5"], ["--distill-loss-weight", "-0.5", "from 0 up"]),
        (["--sync-bn", "perhaps"], ["--sync-bn", "perhaps", "bool"]),
        (["--freeze"], ["--freeze"]),
        (["--train-img-sizes", "8", "half"], ["--train-img-sizes", "half", "int"]),
        (["--train-img-sizes", "8", "-16"], ["--train-img-sizes", "[8, -16]", "from 1 up"]),
        (["--train-img-sizes", "8", "16", "--train-batch-sizes", "0", "1"], ["--train-batch-sizes", "[0, 1]"]),
        (["--train-size-schedule", "falling"], ["--train-size-schedule", "falling", "progressive"]),
        (["--train-size-schedule-spread", "-1"], ["--train-size-schedule-spread", "-1", "from 0 up"]),
        (["--train-size-random-mix", "1.5"], ["--train-size-random-mix", "1.5", "from 0 to 1"]),
        (["--switch-token-mix"], ["--switch-token-mix", "--mixup", "--cutmix"]),
        (["--switch-token-mix", "--mixup", "-1"], ["--mixup", "-1", "from 0 up"]),
        (["--switch-token-mix", "--mixup", "1", "--bce-loss"], ["--bce-loss", "--switch-token-mix"]),
        (["--pretrained-path", "nosuch"], ["--pretrained-path", "nosuch", "hf-hub:ID"]),
    ],
)
def test_mistakes_give_one_sentence(
    argv: list[str],
    words: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    base = [] if "--model" in argv else TINY
    with pytest.raises(SystemExit) as stopped:
        train.main([*base, "--output", str(tmp_path), "--epochs", "2", *argv])
    *_, message = capfd.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert all(word in message for word in ("error: ", *words)), message


def test_mistake_from_the_shell():
    process = start("train.py", "--lr", "fast")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (2, "", "train.py: error: --lr is fast; allowed is float\n")
