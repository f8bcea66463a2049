# SPDX-License-Identifier: Apache-2.0
"""The evaluation command: figures by hand, every benchmark's folder, resume, refusals, servers' files, Motorcycle."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from tests.stereo_dataset_files import HEIGHT, WIDTH, save_frame, write_samples
from tests.stereo_network_helpers import make_small_raft
from training import evaluate_stereo
from training.disparity_readers import read_kitti, read_pfm
from training.evaluate_stereo import main
from training.stereo_benchmarks import BENCHMARKS
from training.stereo_networks.recurrent_stereo import StereoOutput


class RedChannel(torch.nn.Module):
    """A network whose disparity is a quarter of the left picture's red, so that a test decides what it says."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.iterations: list[int] = []

    def forward(self, left, right, iterations, *, correlation):
        assert left.shape == right.shape and left.shape[:2] == (1, 3)
        self.iterations.append(iterations)
        return StereoOutput(left[:, :1] / 4, [], None, iterations)


@pytest.fixture
def network(monkeypatch) -> RedChannel:
    one = RedChannel()
    monkeypatch.setattr(evaluate_stereo, "load_stereo_network", lambda source, revision: one)
    return one


def save_red(path: Path, disparity: list[list[float]]) -> None:
    """Write a picture for which RedChannel says this disparity."""
    red = 4 * np.array(disparity)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([red, 0 * red, 0 * red], axis=-1).astype(np.uint8)).save(path)


def save_kitti(
    root: Path, frame: str, said: list[list[float]], true: list[list[float]], noc: list[list[float]]
) -> None:
    for folder in ("image_2", "image_3"):
        save_red(root / f"training/{folder}/{frame}_10.png", said)
    for folder, values in (("disp_occ_0", true), ("disp_noc_0", noc)):
        path = root / f"training/{folder}/{frame}_10.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((256 * np.array(values)).astype(np.uint16)).save(path)


def make_kitti(root: Path) -> Path:
    """Two pairs of 2x3 px: errors 4, 2, 0.5, 0 and one unknown pixel; and one pixel of error 1.5."""
    save_kitti(
        root,
        "000000",
        said=[[24, 18, 20.5], [20, 50, 1]],
        true=[[20, 20, 20], [20, 0, 1]],
        noc=[[0, 20, 20], [20, 0, 1]],
    )
    save_kitti(root, "000007", [[11.5, 0, 0], [0, 0, 0]], [[10, 0, 0], [0, 0, 0]], [[10, 0, 0], [0, 0, 0]])
    return root


def run(output: Path, *data: str, options: tuple[str, ...] = ()) -> int:
    return main(["--network", "me/fixed", "--output", str(output), "--device", "cpu", "--data", *data, *options])


def report_of(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())


def test_figures_by_hand(tmp_path, network, capsys):
    assert run(tmp_path / "out", f"kitti2015:{make_kitti(tmp_path / 'kitti')}") == 0
    report = report_of(tmp_path / "out")
    assert report["network"]["name"] == "me/fixed" and report["network"]["class"] == "RedChannel"
    protocol = report["protocol"]
    assert (protocol["iterations"], protocol["dtype"], protocol["max_disparity_px"]) == (32, "float32", None)
    assert network.iterations == [32, 32]
    entry = report["benchmarks"]["kitti2015"]
    assert (entry["pairs"], entry["pairs_of_the_set"]) == (2, 200)
    average, pooled = (entry["figures"]["all"][name] for name in ("image average", "pixel pooled"))
    assert average["end_point_error_px"] == pytest.approx((6.5 / 5 + 1.5) / 2)
    assert pooled["end_point_error_px"] == pytest.approx(8 / 6)
    assert average["bad_percent"]["3"] == pytest.approx(10) and pooled["bad_percent"]["3"] == pytest.approx(100 / 6)
    assert pooled["d1_percent"] == pytest.approx(100 / 6)
    assert entry["figures"]["noc"]["pixel pooled"]["end_point_error_px"] == pytest.approx(4 / 5)
    assert entry["figures"]["occ"]["pixel pooled"]["end_point_error_px"] == pytest.approx(4)
    # 20 beside 1 px in the lower row, whose neighbours are all within four px of it
    assert entry["figures"]["boundary"]["pixel pooled"]["pixels"] == 5
    rows = list(csv.DictReader((tmp_path / "out/kitti2015/per_image.csv").open()))
    assert [row["image"] for row in rows[:4]] == 4 * ["training/image_2/000000_10.png"]
    assert {row["row"] for row in rows} == {"image", "image average", "pixel pooled"}
    shown = capsys.readouterr().out
    assert (tmp_path / "out/results.md").read_text() in shown and "results.json" in shown
    assert "whose protocol differs: pairs 2 here, 200 there" in shown


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_from_its_folder(tmp_path, network, name):
    benchmark = BENCHMARKS[name]
    root = write_samples(tmp_path / "data", benchmark.dataset)  # disparity 8 and 10 px, red 0 and 10
    assert run(tmp_path / "out", f"{name}:{root}") == 0
    figures = report_of(tmp_path / "out")["benchmarks"][name]["figures"]
    has_mask = all(layout.visible for layout in benchmark.dataset.layouts)
    assert list(figures) == (["all", "noc", "occ", "boundary"] if has_mask else ["all", "boundary"])
    assert figures["all"]["image average"]["end_point_error_px"] == pytest.approx((8 + 7.5) / 2, abs=0.3)  # JPEG
    assert figures["all"]["pixel pooled"]["pixels"] == 2 * HEIGHT * WIDTH
    if has_mask:
        assert figures["occ"]["pixel pooled"]["pixels"] == 2 * HEIGHT
    pictures = sorted(path.name for path in (tmp_path / "out" / name / "pictures").rglob("*.png"))
    assert len(pictures) == 6 and sum("error" in picture for picture in pictures) == 2


def test_one_report_of_several_sets(tmp_path, network):
    eth3d, kitti = BENCHMARKS["eth3d"].dataset, BENCHMARKS["kitti2012"].dataset
    data = (f"eth3d:{write_samples(tmp_path / 'a', eth3d)}", f"kitti2012:{write_samples(tmp_path / 'b', kitti)}")
    assert run(tmp_path / "out", *data, options=("--iterations", "5", "--max-disparity-px", "9")) == 0
    report = report_of(tmp_path / "out")
    assert list(report["benchmarks"]) == ["eth3d", "kitti2012"] and report["protocol"]["max_disparity_px"] == 9
    assert network.iterations == 4 * [5]
    assert report["benchmarks"]["eth3d"]["figures"]["all"]["image average"]["images"] == 1  # 10 px are left out
    assert report["benchmarks"]["eth3d"]["figures"]["all"]["pixel pooled"]["pixels"] == HEIGHT * WIDTH


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, network, monkeypatch):
    root = make_kitti(tmp_path / "kitti")
    assert run(tmp_path / "whole", f"kitti2015:{root}") == 0
    whole = report_of(tmp_path / "whole")["benchmarks"]["kitti2015"]["figures"]

    real, seen = evaluate_stereo.write_pictures, []

    def killed(folder, name, *rest):
        seen.append(name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        real(folder, name, *rest)

    monkeypatch.setattr(evaluate_stereo, "write_pictures", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", f"kitti2015:{root}")
    assert not (tmp_path / "out/results.json").exists()
    kept = [path.name for path in (tmp_path / "out/kitti2015/images").rglob("*") if path.is_file()]
    assert kept == ["000000_10.json"]
    monkeypatch.setattr(evaluate_stereo, "write_pictures", real)
    network.iterations.clear()
    assert run(tmp_path / "out", f"kitti2015:{root}") == 0
    assert network.iterations == [32]
    assert report_of(tmp_path / "out")["benchmarks"]["kitti2015"]["figures"] == whole
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_limit_may_grow(tmp_path, network):
    data = f"kitti2015:{make_kitti(tmp_path / 'kitti')}"
    assert run(tmp_path / "out", data, options=("--limit", "1")) == 0
    assert report_of(tmp_path / "out")["benchmarks"]["kitti2015"]["pairs"] == 1
    assert run(tmp_path / "out", data) == 0
    assert report_of(tmp_path / "out")["benchmarks"]["kitti2015"]["pairs"] == 2 and len(network.iterations) == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--iterations", "31"), "'iterations'"),
        (("--dtype", "bfloat16"), "'dtype'"),
        (("--max-disparity-px", "192"), "'max_disparity_px'"),
        (("--pictures", "3"), "'pictures'"),
        (("--correlation", "on_the_fly"), "'correlation'"),
    ],
)
def test_other_options_are_refused(tmp_path, network, capsys, options, named):
    data = f"kitti2015:{make_kitti(tmp_path / 'kitti')}"
    assert run(tmp_path / "out", data) == 0
    before = (tmp_path / "out/results.json").read_bytes()
    assert run(tmp_path / "out", data, options=options) == 1
    message = capsys.readouterr().err
    assert f"`output` must not hold results made otherwise; {tmp_path}/out/kitti2015 differs in [{named}]" in message
    assert (tmp_path / "out/results.json").read_bytes() == before and len(network.iterations) == 2


def test_another_network_or_root_is_refused(tmp_path, network, capsys):
    root = make_kitti(tmp_path / "kitti")
    assert run(tmp_path / "out", f"kitti2015:{root}") == 0
    shutil.copytree(root, tmp_path / "copy")
    assert run(tmp_path / "out", f"kitti2015:{tmp_path / 'copy'}") == 1
    assert "differs in ['root']" in capsys.readouterr().err
    with torch.no_grad():
        network.weight += 1
    assert run(tmp_path / "out", f"kitti2015:{root}") == 1
    assert "differs in ['weights_sha256']" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_not_touched(tmp_path, network, capsys):
    foreign = tmp_path / "out/kitti2015/thesis.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    assert run(tmp_path / "out", f"kitti2015:{make_kitti(tmp_path / 'kitti')}") == 1
    assert "`output` must hold results of this command or nothing" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["thesis.txt"]


SERVER_FILES = {
    "kitti2012": ["000001_10.png"],
    "kitti2015": ["disp_0/000001_10.png"],
    "middlebury-h": [
        "testH/Crusade/disp0Mine.pfm",
        "testH/Crusade/timeMine.txt",
        "trainingH/ArtL/disp0Mine.pfm",
        "trainingH/ArtL/timeMine.txt",
        "trainingH/Teddy/disp0Mine.pfm",
        "trainingH/Teddy/timeMine.txt",
    ],
    "eth3d": [
        f"low_res_two_view/{scene}.{suffix}"
        for scene in ("Crusade", "forest_2s", "playground_1l")
        for suffix in ("pfm", "txt")
    ],
}


@pytest.mark.parametrize("name", SERVER_FILES)
def test_what_servers_want(tmp_path, network, name):
    benchmark = BENCHMARKS[name]
    root = write_samples(tmp_path / "data", benchmark.dataset)
    assert benchmark.server_pairs is not None
    for pattern in benchmark.server_pairs:
        star = "000001" if name.startswith("kitti") else "Crusade"
        save_frame(root / pattern.replace("*", star), 70)
    options = ("--submission", "--method", "Mine")
    assert run(tmp_path / "out", f"{name}:{root}", options=options) == 0
    folder = tmp_path / "out" / name / "submission"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == SERVER_FILES[name]
    answer = folder / next(file for file in files if "0000" in file or "Crusade" in file)
    disparity = read_kitti(answer).disparity if answer.suffix == ".png" else read_pfm(answer)
    assert disparity.shape == (HEIGHT, WIDTH) and (disparity == 17.5).all()
    assert report_of(tmp_path / "out")["benchmarks"][name]["pairs"] == 2  # the test pair is not measured
    calls = len(network.iterations)
    assert calls == 3 and run(tmp_path / "out", f"{name}:{root}", options=options) == 0
    assert len(network.iterations) == calls


def test_submission_without_test_pairs(tmp_path, network, capsys):
    root = make_kitti(tmp_path / "kitti")
    assert run(tmp_path / "out", f"kitti2015:{root}", options=("--submission",)) == 1
    assert "`submission` needs the test pairs of KITTI 2015; " in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and network.iterations == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "kitti2015"], "`data` must be NAME:ROOT, with a name of kitti2012, .*; got 'kitti2015'"),
        (["--data", "kitti:root"], "`data` must be NAME:ROOT, .*; got 'kitti:root'"),
        (["--data", "eth3d:a", "eth3d:b"], "`data` must name each benchmark once; got eth3d twice"),
        (["--data", "eth3d:a", "--iterations", "0"], "`iterations` must be at least 1; got 0"),
        (["--data", "eth3d:a", "--limit", "0"], "`limit` must be at least 1; got 0"),
        (["--data", "eth3d:a", "--pictures", "-1"], "`pictures` must be at least 0; got -1"),
        (["--data", "eth3d:a", "--max-disparity-px", "0"], "`max_disparity_px` must be above 0; got 0.0"),
        (["--data", "eth3d:a", "--method", "a b"], "`method` must be 1 to 40 letters, digits, - and _; got 'a b'"),
        (
            ["--data", "booster:a", "--submission"],
            "`submission` must be of benchmarks .*booster has none",
        ),
        (["--data", "eth3d:a", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_options_that_make_no_sense(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        main(["--network", "me/fixed", "--output", str(tmp_path / "out"), *words])
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--network", "n", "--output", str(tmp_path), "--data", "eth3d:a", "--device", "cuda"])
    assert "`device` must be there; got cuda, and this torch sees no CUDA device" in capsys.readouterr().err


def test_what_is_missing_is_said_before_any_work(tmp_path, network, capsys):
    good = f"kitti2015:{make_kitti(tmp_path / 'kitti')}"
    assert run(tmp_path / "out", good, f"eth3d:{tmp_path / 'gone'}") == 1
    assert "evaluate_stereo: `root` must be the folder of ETH3D; there is no folder" in capsys.readouterr().err
    assert main(["--network", str(tmp_path), "--output", str(tmp_path / "out"), "--data", good]) == 0
    (tmp_path / "kitti/training/image_3/000007_10.png").unlink()
    assert run(tmp_path / "other", good) == 1
    assert "without partner: training/image_2/000007_10.png" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_network_that_cannot_be_loaded(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    data = f"kitti2015:{make_kitti(tmp_path / 'kitti')}"
    assert main(["--network", str(tmp_path), "--output", str(tmp_path / "out"), "--data", data]) == 1
    assert "must hold a config of RAFTStereo or IGEVStereo" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_broken_pair_is_named_and_what_is_done_is_kept(tmp_path, network, capsys):
    root = make_kitti(tmp_path / "kitti")
    (root / "training/image_3/000007_10.png").write_bytes(b"foreign")
    assert run(tmp_path / "out", f"kitti2015:{root}") == 1
    assert "image_3/000007_10.png: must be an 8-bit picture" in capsys.readouterr().err
    shutil.copy(root / "training/image_2/000007_10.png", root / "training/image_3/000007_10.png")
    assert run(tmp_path / "out", f"kitti2015:{root}") == 0 and len(network.iterations) == 2


def test_a_disparity_that_is_no_number_is_named(tmp_path, network, monkeypatch, capsys):
    nothing = StereoOutput(torch.full((1, 1, 2, 3), float("nan")), [], None, 1)
    monkeypatch.setattr(RedChannel, "forward", lambda *arguments, **options: nothing)
    assert run(tmp_path / "out", f"kitti2015:{make_kitti(tmp_path / 'kitti')}") == 1
    assert "training/image_2/000000_10.png: `disparity` must be finite where" in capsys.readouterr().err


def make_motorcycle(root: Path) -> Path:
    """Write the real pair as the one scene of Middlebury at half size; both views see what is in the right frame."""
    left, right, disparity = skimage.data.stereo_motorcycle()
    scene = root / "trainingH/Motorcycle"
    scene.mkdir(parents=True)
    Image.fromarray(left).save(scene / "im0.png")
    Image.fromarray(right).save(scene / "im1.png")
    height, width = disparity.shape
    body = disparity[::-1].astype("<f4").tobytes()
    (scene / "disp0GT.pfm").write_bytes(f"Pf\n{width} {height}\n-1\n".encode() + body)
    columns = np.arange(width) - np.where(np.isfinite(disparity), disparity, 0)
    mask = np.where(columns >= 0, 255, 128)  # pixels left of the right view's frame
    mask[~np.isfinite(disparity)] = 0
    Image.fromarray(mask.astype(np.uint8)).save(scene / "mask0nocc.png")
    return root


@pytest.mark.slow
def test_motorcycle_with_a_network_from_a_folder(tmp_path, capsys):
    make_small_raft().save_pretrained(tmp_path / "net")
    root = make_motorcycle(tmp_path / "MiddEval3")
    words = ["--network", str(tmp_path / "net"), "--output", str(tmp_path / "out"), "--iterations", "2"]
    assert main([*words, "--device", "cpu", "--data", f"middlebury-h:{root}"]) == 0
    report = report_of(tmp_path / "out")
    assert report["network"]["class"] == "RAFTStereo" and report["protocol"]["device"] == "cpu"
    figures = report["benchmarks"]["middlebury-h"]["figures"]
    _, _, disparity = skimage.data.stereo_motorcycle()
    pixels = {region: averages["pixel pooled"]["pixels"] for region, averages in figures.items()}
    assert pixels["all"] == np.isfinite(disparity).sum() == pixels["noc"] + pixels["occ"]
    assert 0.1 * pixels["all"] < pixels["boundary"] < 0.6 * pixels["all"] and pixels["occ"] > 0
    # untrained, its disparity is next to nothing: it is wrong by nearly all of the true one
    assert figures["all"]["pixel pooled"]["end_point_error_px"] == pytest.approx(
        disparity[np.isfinite(disparity)].mean(), rel=0.1
    )
    with Image.open(tmp_path / "out/middlebury-h/pictures/trainingH/Motorcycle/im0.error.png") as picture:
        assert picture.width == 741 and picture.height > 500
