"""Teachers in train.py: logits, soft or hard, and tokens; what does not fit is refused, and a stopped run resumes."""

import json
from pathlib import Path
from shlex import split

import pytest
import torch
import train
import validate
from plugin_models import CHEAP
from refusals import refusal
from runs import TINY

WIDER = "--model-kwargs.genotype 4,1,1,1|2,1,1,1|2,1,1,1|2,1,1,1|16,16"
RESNAS = {"network_def": CHEAP["vit_resnas"]["network_def"].replace("(4, 16)", "(0, 16)", 1)}
DISTILLED = ["--model", "vit_resnas", "--model-kwargs", json.dumps(RESNAS | {"distilled": True}), "--img-size", "14"]

TEACHINGS = {
    "soft": "--kd-temperature 2 --task-loss-weight 0.3 --model-ema --model-ema-decay 0.9",
    "hard": "--kd-distill-type hard --distill-loss-weight 1",
    "tokens alone": "--kd-tokens-weight 1 --kd-distill-type none --layer-decay 0.8",
    "tokens of other widths": f"--kd-tokens-weight 1 {WIDER} --freeze stem",
    "mixed images": "--mixup 0.8 --cutmix 1 --bce-loss --kd-tokens-weight 1 --clip-grad 0.02 --clip-mode agc",
    "coarse tokens": "--kd-tokens-weight 1 --progressive-tokenization --phases [[0.5,4],[1,2]]",
    "small images": "--train-img-sizes 8 16 --kd-tokens-weight 1",
}


def teacher(finished: Path) -> list[str]:
    return ["--kd-model-name", f"local-dir:{finished / 'export'}"]


@pytest.mark.parametrize("options", TEACHINGS.values(), ids=TEACHINGS)
def test_learns_from_a_teacher(options: str, finished: Path, tmp_path: Path) -> None:
    history = train.main([*TINY, *teacher(finished), *split(options), "--epochs", "2", "--output", str(tmp_path)])
    assert history[1]["eval_loss"] < history[0]["eval_loss"]
    state = torch.load(tmp_path / "as_vit" / "last.pth.tar", weights_only=True)
    assert ("task_state" in state) is (WIDER in options)
    assert not [name for name in state["state_dict"] if "teacher" in name or "projection" in name]
    assert validate.main(["--checkpoint", str(tmp_path / "as_vit" / "last.pth.tar")])["top1"] == history[1]["top1"]


def test_teacher_weights_from_a_folder(finished: Path, tmp_path: Path) -> None:
    """The same teacher by its name and a folder: the same training, for the folder says how images are normalised."""
    shape = {"genotype": "4,1,1,1|2,1,1,1|2,1,1,1|2,1,1,1|8,8", "stem_stride": 2, "num_classes": 10, "in_chans": 1}
    named = ["--kd-model-name", "as_vit", "--kd-model-kwargs", json.dumps(shape), "--kd-pretrained-path"]
    teachers = {"whole": teacher(finished), "named": [*named, str(finished / "export")]}
    losses = [
        train.main([*TINY, *argv, "--epochs", "1", "--output", str(tmp_path), "--experiment", name])[0]["train_loss"]
        for name, argv in teachers.items()
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", ["hard", "none"])
def test_a_second_head_learns_from_the_teacher(kind: str, finished: Path, tmp_path: Path) -> None:
    argv = [*TINY, *DISTILLED, *teacher(finished), "--kd-distill-type", kind, "--kd-tokens-weight", "0.5"]
    history = train.main([*argv, "--epochs", "2", "--output", str(tmp_path)])
    assert history[1]["train_loss"] < history[0]["train_loss"]
    checkpoint = tmp_path / "vit_resnas" / "last.pth.tar"
    assert validate.main(["--checkpoint", str(checkpoint)])["top1"] == history[1]["top1"]


RUN = [*TINY, *split(f"--epochs 3 --kd-tokens-weight 1 {WIDER} --drop-path 0.2 --mixup 0.4 --model-ema")]


@pytest.fixture(scope="module")
def undisturbed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("taught")
    train.main([*RUN, *teacher(finished), "--output", str(output)])
    return output / "as_vit"


def assert_same(state: dict, other: dict) -> None:
    for key in ("state_dict", "state_dict_ema"):
        assert all(torch.equal(tensor, other[key][name]) for name, tensor in state[key].items()), key
    maps, others = (each["task_state"]["projection"] for each in (state, other))
    assert maps.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in maps.items())
    assert [row["train_loss"] for row in state["history"]] == [row["train_loss"] for row in other["history"]]


def test_resumes_exactly(undisturbed: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    resumed = [*RUN, *teacher(finished), "--output", str(tmp_path), "--resume", "auto"]
    monkeypatch.setattr(train.Reporter, "add", stop)
    for _ in range(2):
        with pytest.raises(Stop):
            train.main(resumed)
    monkeypatch.undo()
    train.main(resumed)
    ours, theirs = (
        torch.load(folder / "last.pth.tar", weights_only=True) for folder in (tmp_path / "as_vit", undisturbed)
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize("change", ["missing", "empty", "other"])
def test_refuses_checkpoints_without_the_maps(
    change: str, undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = torch.load(undisturbed / "last.pth.tar", weights_only=True)
    maps = state.pop("task_state")["projection"]
    if change != "missing":
        wrong = {"projection": {name: tensor[:3] for name, tensor in maps.items()}}
        state["task_state"] = {} if change == "empty" else wrong
    torch.save(state, tmp_path / "bad.pth.tar")
    argv = ["--config", str(undisturbed / "args.yaml"), "--resume", str(tmp_path / "bad.pth.tar")]
    message = refusal(capfd, *argv, "--output", str(tmp_path))
    assert "'task_state' in the checkpoint" in message
    assert "is missing or does not fit this run" in message


PATCHED = json.dumps(RESNAS | {"patch_head": True})


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--num-classes", "12"], ["--kd-model-name", "10", "12"]),
        (["--kd-tokens-weight", "-1"], ["--kd-tokens-weight is -1.0"]),
        (["--model", "vit_resnas", "--model-kwargs", PATCHED, "--img-size", "56"], ["--kd-model-name", "patch"]),
        (["--kd-model-kwargs.nosuch", "1"], ["--kd-model-name", "nosuch"]),
        (["--kd-pretrained-path", "weights.pth"], ["--kd-pretrained-path is 'weights.pth'", "give one of them"]),
        (["--kd-model-name", "nosuch"], ["--kd-model-name 'nosuch'"]),
        (["--kd-model-name", "local-dir:nosuch"], ["--kd-model-name 'local-dir:nosuch'"]),
        (["--kd-model-name", "as_vit_small"], ["--kd-model-name 'as_vit_small'", "No pretrained weights"]),
    ],
)
def test_teachers_that_do_not_fit(
    argv: list[str], words: list[str], finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capfd, *TINY, *teacher(finished), "--epochs", "1", *argv, "--output", str(tmp_path))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("sizes", [[], ["--train-img-sizes", "16", "32"]])
def test_a_teacher_of_one_size_is_refused_where_images_have_others(
    sizes: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vit = ["--model", "test_vit", "--model-kwargs", "{dynamic_img_size: false}"]
    train.main([*TINY, *vit, "--img-size", "32", "--epochs", "1", "--output", str(tmp_path)])
    given = ["--kd-model-name", f"local-dir:{tmp_path / 'test_vit' / 'export'}", "--img-size", "32"]
    given += sizes or ["--kd-model-kwargs.img_size", "48"]
    message = refusal(capfd, *TINY, *given, "--epochs", "1", "--output", str(tmp_path))
    assert f"it takes no images of {16 if sizes else 32} px" in message
