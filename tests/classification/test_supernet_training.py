"""`--supernet`: nets of a space learn together, resume exactly and stay in step; the largest one is exported."""

import csv
import json
from pathlib import Path
from shlex import split

import pytest
import supernet_training
import timm
import torch
import train
import validate
import yaml
from checkpoints import read_checkpoint
from engine import Training
from refusals import refusal
from runs import finish, launch
from timm.utils import unwrap_model

from asvit_plugin import ViTResNAS
from asvit_plugin.search.architectures import Architectures
from asvit_plugin.search.supernet import MODES, make_supernet

SPACE = {
    "model": "vit_resnas",
    "for_each": {"block": [1, 2]},
    "decisions": {
        "dim_1": [16, 12, 8],
        "dim_2": [24, 20, 16],
        "heads_{block}": [3, 2, 1],
        "mlp_{block}": [32, 16],
        "exists_2": [1, 0],
    },
    "pools": {"exists_2": [2, 2]},
    "arguments": {
        "network_def": "((5, {dim_1}, 8), (1, ({dim_1}, {heads_1}, 8), ({dim_1}, {mlp_1}), 1), "
        "(1, ({dim_1}, {heads_2}, 8), ({dim_1}, {mlp_2}), {exists_2}), (3, {dim_1}, {dim_2}), "
        "(1, ({dim_2}, 3, 8), ({dim_2}, 48), 1), (2, {dim_2}, 10))"
    },
}
DATA = [
    *split("--in-chans 1 --img-size 28 --crop-pct 1 --workers 0 --batch-size 64 --hflip 0 --scale 0.8 1"),
    *split("--color-jitter 0 --warmup-epochs 1 --sched-on-updates --lr 4e-3 --tensorboard false --device cpu"),
]
NETS = split("--examples-per-arch 16 --supernet-warmup-epochs 2 --epochs 3")
# Everything that draws random numbers or keeps a state beside the nets.
ALL = split(
    "--model-ema --model-ema-decay 0.9 --drop-path 0.2 --switch-token-mix --mixup 0.8 --cutmix 1 --sandwich "
    "--inplace-distillation --model-kwargs.patch_head true --grad-accum-steps 2 --clip-grad 1 --holdout per-class 20"
)


def write_space(folder: Path, name: str = "space.yaml", **changes: object) -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(SPACE | {"decisions": SPACE["decisions"] | changes}, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a space and of a finished run with everything on."""
    folder = tmp_path_factory.mktemp("supernet")
    train.main(command(folder, *ALL, "--supernet-mode", "slices"))
    return folder


def command(folder: Path, *more: str) -> list[str]:
    return [*DATA, *NETS, "--supernet", write_space(folder), "--output", str(folder), "--experiment", "run", *more]


def assert_same(state: dict, other: dict) -> None:
    for key in ("state_dict", "state_dict_ema"):
        assert all(torch.equal(tensor, other[key][name]) for name, tensor in state.get(key, {}).items()), key
    for index, moments in state["optimizer"]["state"].items():
        assert all(torch.equal(value, other["optimizer"]["state"][index][name]) for name, value in moments.items())
    for row, other_row in zip(state["history"], other["history"], strict=True):
        assert all(row[key] == other_row[key] for key in ("train_loss", "eval_loss", "top1", "smallest_top1"))


# A run ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_learns(mode: str, tmp_path: Path) -> None:
    history = train.main(command(tmp_path, "--epochs", "6", "--supernet-mode", mode, "--holdout", "per-class", "20"))
    assert history[-1]["top1"] > 65  # measured 82; chance is 10
    assert history[-1]["smallest_top1"] > 65  # measured 82
    state = read_checkpoint(tmp_path / "run" / "last.pth.tar")
    assert state["supernet_mode"] == mode


def test_reports_the_smallest_net(base: Path) -> None:
    history = read_checkpoint(base / "run" / "last.pth.tar")["history"]
    with open(base / "run" / "summary.csv", newline="") as file:
        assert [float(row["smallest_top1"]) for row in csv.DictReader(file)] == [
            row["smallest_top1"] for row in history
        ]


def test_smallest_net_is_the_one_of_the_space(base: Path, tmp_path: Path) -> None:
    """The averaged weights, sliced and measured as a stand-alone net."""
    state = read_checkpoint(base / "run" / "last.pth.tar")
    supernet = make_supernet(str(base / "space.yaml"), in_chans=1, img_size=28, patch_head=True)
    supernet.load_state_dict(state["state_dict_ema"])
    small = supernet.extract(supernet.networks.smallest_choice())
    torch.save(small.state_dict(), tmp_path / "small.pth")
    kwargs = json.dumps({"network_def": str(supernet.networks.smallest), "patch_head": True})
    model = ["--model", "vit_resnas", "--model-kwargs", kwargs, "--checkpoint", str(tmp_path / "small.pth")]
    data = split("--in-chans 1 --img-size 28 --crop-pct 1 --workers 0 --holdout per-class 20")
    assert validate.main([*model, *data])["top1"] == state["history"][-1]["smallest_top1"]


def test_exports_the_largest_net(base: Path) -> None:
    state = read_checkpoint(base / "run" / "best.pth.tar")
    model = timm.create_model(f"local-dir:{base / 'run' / 'export'}", pretrained=True)
    assert type(model) is ViTResNAS
    assert model.pretrained_cfg["architecture"] == state["arch"] == "vit_resnas"
    assert all(torch.equal(tensor, state["state_dict_ema"][name]) for name, tensor in model.state_dict().items())
    result = validate.main(["--checkpoint", str(base / "run" / "best.pth.tar")])
    assert (result["images"], result["top1"]) == (200, state["metric"])


@pytest.mark.parametrize(
    "extra",
    [
        "--mixup 0.8 --cutmix 1",
        "--amp --amp-dtype bfloat16 --channels-last",
        "--grad-checkpointing --supernet-mode masks",
        "--train-img-sizes 28 56 --train-batch-sizes 64 32 --opt sgd",
        "--layer-decay 0.8 --freeze patch_embed --gp avg --drop 0.1",
        "--kd-model-name vit_resnas --kd-model-kwargs.network_def TEACHER --model-kwargs.distilled true",
    ],
)
def test_options_work(extra: str, tmp_path: Path) -> None:
    teacher = "((5,16,8),(1,(16,2,8),(16,16),1),(3,16,24),(1,(24,2,8),(24,16),1),(2,24,10))"
    if "TEACHER" in extra:
        model = timm.create_model("vit_resnas", network_def=teacher, num_classes=10, in_chans=1, img_size=28)
        torch.save(model.state_dict(), tmp_path / "teacher.pth")
        extra += f" --kd-pretrained-path {tmp_path / 'teacher.pth'} --kd-model-kwargs.in_chans 1"
    options = [each.replace("TEACHER", teacher) for each in split(extra)]
    history = train.main(command(tmp_path, "--epochs", "2", *options))
    assert history[-1]["eval_loss"] < history[0]["eval_loss"]


def test_starts_from_the_weights_of_a_plain_net(base: Path, tmp_path: Path) -> None:
    start = ["--initial-checkpoint", str(base / "run" / "best.pth.tar"), *split("--lr 1e-7 --warmup-epochs 0")]
    patches = split("--model-kwargs.patch_head true --holdout per-class 20 --epochs 1")
    history = train.main(command(tmp_path, *start, *patches))
    assert history[0]["top1"] == pytest.approx(read_checkpoint(base / "run" / "best.pth.tar")["metric"], abs=15)


# Nets of a step -------------------------------------------------------------------------------------------------------


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list]]:
    """The nets of every step to come."""
    steps, step = [], Architectures.step
    monkeypatch.setattr(
        Architectures, "step", lambda self, size: steps.append((size, step(self, size))) or steps[-1][1]
    )
    return steps


def test_every_step_draws_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = recorded(monkeypatch)
    train.main(command(tmp_path, "--mixup", "0.8", "--supernet-mode", "masks", "--supernet-warmup-epochs", "0"))
    assert len(steps) == 3 * 22  # 1437 images, 64 a step
    assert all(size == 64 and len(nets) == 4 for size, nets in steps)
    assert len({str(nets) for _, nets in steps}) > 60


def test_units_are_sorted_while_nets_are_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model, its average and the optimizer's state, at the start of epochs 0, 1 and 2."""
    calls, reorder = [], supernet_training.reorder
    monkeypatch.setattr(
        supernet_training,
        "reorder",
        lambda model, optimizer, copies: (
            calls.append((len(optimizer.state), len(copies))) or reorder(model, optimizer, copies)
        ),
    )
    train.main(command(tmp_path, "--epochs", "4", "--model-ema", "--supernet-mode", "masks"))
    parameters = len(read_checkpoint(tmp_path / "run" / "last.pth.tar")["optimizer"]["state"])
    assert calls == [(0, 1), (parameters, 1), (parameters, 1)]


# Resuming -------------------------------------------------------------------------------------------------------------


def test_every_epoch_resumes_exactly(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after each epoch's checkpoint, with the mode left to a clock that always finds the other one faster."""

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(train.Reporter, "add", stop)
    run = [each.replace(str(base), str(tmp_path)) for each in command(base, *ALL, "--resume", "auto")]
    write_space(tmp_path)
    monkeypatch.setattr(supernet_training, "faster_mode", lambda *_: "slices")
    for _ in range(3):
        with pytest.raises(Stop):
            train.main(run)
        monkeypatch.setattr(supernet_training, "faster_mode", lambda *_: "masks")
    state = read_checkpoint(tmp_path / "run" / "last.pth.tar")
    assert state["supernet_mode"] == "slices"
    assert_same(read_checkpoint(base / "run" / "last.pth.tar"), state)


def test_timing_leaves_no_trace(base: Path, tmp_path: Path) -> None:
    """A mode that was measured and one that was given end in the same weights."""
    measured = [each.replace(str(base), str(tmp_path)) for each in command(base, "--epochs", "1")]
    write_space(tmp_path)
    train.main([*measured, "--experiment", "measured"])
    state = read_checkpoint(tmp_path / "measured" / "last.pth.tar")
    train.main([*measured, "--experiment", "given", "--supernet-mode", state["supernet_mode"]])
    assert_same(state, read_checkpoint(tmp_path / "given" / "last.pth.tar"))


def test_space_may_move_but_not_change(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = command(base, *ALL, "--supernet-mode", "slices", "--resume", "auto")
    assert len(train.main([*run, "--supernet", write_space(tmp_path, "elsewhere.yaml")])) == 3
    for changes in ({"dim_1": [16, 12]}, {"dim_1": [20, 12, 8], "dim_2": [24, 20]}):
        message = refusal(capfd, *run, "--supernet", write_space(tmp_path, **changes))
        assert "belongs to a different run: it trained a supernet of the space" in message
    assert "--supernet-mode was 'slices' and is 'masks'" in refusal(capfd, *run, "--supernet-mode", "masks")


def test_supernets_and_plain_nets_do_not_mix(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    net = str(make_supernet(str(base / "space.yaml")).networks.largest)
    plain = [
        *DATA,
        "--epochs",
        "3",
        "--model",
        "vit_resnas",
        "--model-kwargs.network_def",
        net,
        "--output",
        str(tmp_path),
    ]
    train.main([*plain, "--experiment", "run"])
    state = torch.load(tmp_path / "run" / "last.pth.tar", weights_only=True)
    assert "space" not in state
    torch.save(state | {"space": "0" * 16, "supernet_mode": "masks"}, tmp_path / "space.pth")
    message = refusal(capfd, *plain, "--resume", str(tmp_path / "space.pth"))
    assert f"it trained a supernet of the space {'0' * 16}, and this one trains no supernet" in message


@pytest.mark.parametrize("mode", [None, "both"])
def test_checkpoints_without_a_mode(mode: str | None, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    state = torch.load(base / "run" / "last.pth.tar", weights_only=True) | {"supernet_mode": mode}
    torch.save(state, tmp_path / "bad.pth.tar")
    message = refusal(capfd, "--config", str(base / "run" / "args.yaml"), "--resume", str(tmp_path / "bad.pth.tar"))
    assert "'supernet_mode' in the checkpoint" in message


# Several processes ----------------------------------------------------------------------------------------------------


def test_processes_draw_different_nets_and_stay_in_step(tmp_path: Path) -> None:
    more = [
        *split("--sandwich --inplace-distillation --model-kwargs.patch_head true --epochs 2 --batch-size 16"),
        *NETS[:2],
    ]
    (tmp_path / "runs.json").write_text(json.dumps([command(tmp_path, *more, "--examples-per-arch", "4")]))
    launcher = launch(str(Path(__file__).with_name("supernet_ranks.py")), str(tmp_path / "runs.json"))
    output, errors = finish(launcher, 180)
    assert launcher.returncode == 0, errors
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["mode"] == second["mode"] == read_checkpoint(tmp_path / "run" / "last.pth.tar")["supernet_mode"]
    assert output.count("nets of a step are computed with") == 1
    ends, drawn = (
        [[step[part] for step in each["steps"]] for each in (first, second)] for part in (slice(2), slice(2, 4))
    )
    assert ends[0] == ends[1]
    late = range(len(drawn[0]) // 2, len(drawn[0]))  # in the first epoch there is the largest net alone
    assert sum(drawn[0][step] != drawn[1][step] for step in late) > 0.8 * len(late)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, words",
    [
        ("--supernet nosuch", ["cannot build --supernet 'nosuch': space is 'nosuch'; it must be one of"]),
        ("--supernet nosuch.yaml", ["there is no such file"]),
        ("--supernet as_vit", ["as_vit", "'vit_resnas'"]),
        ("--supernet x --model vit_tiny_patch16_224", ["--model is 'vit_tiny_patch16_224'", "vit_resnas"]),
        ("--supernet x --compile", ["--compile is True; it does not go with --supernet"]),
        ("--supernet x --pretrained", ["--pretrained is True"]),
        ("--supernet x --pretrained-path p", ["--pretrained-path is 'p'"]),
        ("--supernet x --progressive-tokenization", ["--progressive-tokenization is True"]),
        ("--supernet x --phases [[1,2]]", ["--progressive-tokenization is True"]),
        ("--supernet x --attention-switching", ["--attention-switching is True"]),
        ("--supernet x --model-kwargs.network_def n", ["--model-kwargs.network_def"]),
        ("--supernet x --examples-per-arch 48", ["--examples-per-arch is 48; it must divide the batch of 128 images"]),
        ("--supernet x --examples-per-arch 0", ["--examples-per-arch is 0"]),
        ("--supernet x --batch-size 64 --sandwich", ["and leave two nets or more for --sandwich"]),
        ("--supernet x --train-img-sizes 28 56 --train-batch-sizes 64 32", ["must divide the batch of 32 images"]),
        ("--supernet x --supernet-warmup-epochs -1", ["--supernet-warmup-epochs is -1"]),
        ("--supernet x --supernet-mode fast", ["--supernet-mode", "fast"]),
        ("--supernet x --inplace-distillation", ["needs --sandwich"]),
        ("--supernet x --sandwich --inplace-distillation --bce-loss", ["--bce-loss and --inplace-distillation"]),
        ("--supernet x --sandwich --inplace-distillation --kd-model-name m", ["--kd-model-name and --inplace"]),
        ("--supernet x --kd-model-name m --kd-tokens-weight 1", ["--kd-tokens-weight"]),
        ("--sandwich", ["--sandwich is True; it needs a space: --supernet"]),
        ("--examples-per-arch 8", ["--examples-per-arch is 8; it needs a space: --supernet"]),
        ("--supernet sr_tiny_mh --model-kwargs.nosuch 1", ["cannot build --supernet 'sr_tiny_mh'", "nosuch"]),
        (
            "--supernet digits_vit_resnas --sandwich --inplace-distillation --model-kwargs.distilled true",
            ["--inplace-distillation is on; distilled is True"],
        ),
    ],
)
def test_mistakes_give_one_sentence(
    argv: str, words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capfd, "--output", str(tmp_path), "--workers", "0", *split(argv))
    assert all(word in message for word in words), message


def test_space_whose_widths_do_not_chain(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    space = write_space(tmp_path, dim_2=[24, 12])
    assert "(3, 16, D_out) with D_out of at least 16" in refusal(capfd, *DATA, *NETS, "--supernet", space)


def test_supernet_is_what_trains(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole net is in place again when an epoch is over, in the model and in its average."""
    seen = []

    def look(training: Training) -> None:
        seen.extend([unwrap_model(training.model).nets, training.ema.module.nets])

    monkeypatch.setattr(train, "measure_smallest", look)
    train.main([*command(base, *ALL, "--epochs", "1", "--experiment", "other")])
    assert seen == [(), ()]
