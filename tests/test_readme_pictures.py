# SPDX-License-Identifier: Apache-2.0
"""The pictures of the README: what they show, and that those in the repository are what the command makes."""

import io
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from benchmarks import readme_pictures
from benchmarks.contact_sheet import GAP, LABEL_HEIGHT
from benchmarks.readme_pictures import PANEL_WIDTH, SHEET, WIGGLEGRAM_HEIGHT, Views
from pipeline_zerostereo import StereoImageProcessor, ZeroStereoPipeline
from tests.tiny_components import embedded_pipeline, make_photos

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"


def striped_views() -> Views:
    """A white column at x = 20 of the photograph stands at x = 14 of the right view: 6 px, as the disparity says."""
    photo, right = np.zeros((30, 60, 3), np.uint8), np.zeros((30, 60, 3), np.uint8)
    photo[:, 20] = right[:, 14] = 255
    disparity = np.full((30, 60), 6.4, np.float32)
    disparity[:14] = 9.0  # 14 of 30 rows: the median stays that of the others
    return Views("stripe", PIL.Image.fromarray(photo), PIL.Image.fromarray(right), disparity, 0.0417)


def frames_of(gif: bytes) -> list[np.ndarray]:
    with PIL.Image.open(io.BytesIO(gif)) as opened:
        frames = []
        for number in range(opened.n_frames):
            opened.seek(number)
            frames.append(np.asarray(opened.convert("RGB"), np.float32))
        return frames


def test_row_says_what_came_in_and_what_came_out():
    views = striped_views()
    labels = [panel.label for panel in readme_pictures.make_row(views)]
    assert labels[0] == "before: stripe" and labels[1] == "disparity, 6 to 9 px"
    assert labels[2] == "after: right view, 4.2% invented" and labels[3] == "after: for red-cyan glasses"
    before, _, after, anaglyph = (panel.picture for panel in readme_pictures.make_row(views))
    assert before is views.photo and after is views.right
    assert anaglyph.getpixel((14, 3)) == (255, 255, 255), "converged at 6 px, the stripe has no coloured edge"
    assert anaglyph.size == (60 - 6, 30)


def test_wigglegram_stands_still_at_the_median_disparity():
    views = striped_views()
    first, second = frames_of(readme_pictures.make_wigglegram(views._replace(right=shifted(views.right))))
    assert first.shape == (WIGGLEGRAM_HEIGHT, round(54 * WIGGLEGRAM_HEIGHT / 30), 3)
    brightest = [int(frame[100, :, 0].argmax()) for frame in (first, second)]
    scale = WIGGLEGRAM_HEIGHT / 30
    assert brightest[0] == pytest.approx(14.5 * scale, abs=scale)
    assert brightest[0] - brightest[1] == pytest.approx(scale, abs=2), "1 px farther than the median: it moves by 1 px"


def shifted(right: PIL.Image.Image) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.roll(np.asarray(right), -1, axis=1))


def test_sheet_has_panels_of_one_width():
    views = striped_views()
    tall = Views("tall", views.photo.resize((20, 50)), views.right.resize((20, 50)), np.ones((50, 20)), 0.0)
    sheet = readme_pictures.make_sheet([views, tall])
    heights = [PANEL_WIDTH // 2, PANEL_WIDTH * 50 // 20]
    assert sheet.height == sum(2 * GAP + LABEL_HEIGHT + height for height in heights)
    anaglyph_width = round(54 * heights[0] / 30)  # 6 of 60 columns are lost by converging, in the other row 1 of 20
    assert sheet.width == GAP + 3 * (PANEL_WIDTH + GAP) + max(anaglyph_width, round(19 * heights[1] / 50)) + GAP


def test_command_writes_whole_pictures(tmp_path, monkeypatch, capsys):
    weights, output = tmp_path / "weights", tmp_path / "new" / "pictures"
    embedded_pipeline().save_pretrained(weights)
    photo = StereoImageProcessor.postprocess(make_photos(1, 28, 42), "pil")[0]
    monkeypatch.setattr(readme_pictures, "load_photos", lambda: {"gate": photo})
    assert readme_pictures.main(["--output", str(output), "--weights", str(weights)]) == 0
    assert sorted(path.name for path in output.iterdir()) == [SHEET, "gate.gif"]
    assert len(frames_of((output / "gate.gif").read_bytes())) == 2
    assert f"{output / 'gate.gif'}: " in capsys.readouterr().out


def test_command_refuses_weights_that_are_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        readme_pictures.main(["--weights", str(tmp_path / "none")])
    assert "--weights must be a pipeline folder; got" in capsys.readouterr().err


def test_the_readme_shows_every_picture_and_they_are_small():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"docs/pictures/([\w.-]+)", text))
    wanted = {SHEET, *(f"{name}.gif" for name in readme_pictures.PHOTOS)}
    assert wanted <= shown and all((PICTURES / name).is_file() for name in shown)
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 1_500_000


@pytest.mark.slow
def test_pictures_in_the_repository_are_what_the_command_makes():
    """Machines differ by rounding, hence the tolerance; other weights or another picture are far beyond it."""
    pipe = ZeroStereoPipeline.from_pretrained(readme_pictures.DEFAULT_WEIGHTS)
    pipe.set_progress_bar_config(disable=True)
    made = readme_pictures.make_pictures(pipe, readme_pictures.load_photos())
    assert len(made) == 4
    for name, data in made.items():
        stored = (PICTURES / name).read_bytes()
        if name == SHEET:
            pairs = [[np.asarray(PIL.Image.open(io.BytesIO(one)), np.float32) for one in (data, stored)]]
        else:
            pairs = list(zip(frames_of(data), frames_of(stored), strict=True))
        for new, old in pairs:
            assert new.shape == old.shape and np.abs(new - old).mean() < 2.0, name
