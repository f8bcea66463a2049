# SPDX-License-Identifier: Apache-2.0
"""Colour maps and error maps: colours of known errors, unknown pixels, sparse maps, narrow maps."""

import numpy as np
import pytest

from training.disparity_pictures import ERROR_COLORS, ERROR_EDGES_PX, UNKNOWN_COLOR, paint_disparity, paint_error


def test_colours_of_errors_double():
    truth = np.full((3, 340), 50, dtype=np.float32)
    errors = [0, 0.25, 0.26, -0.5, 0.75, -1.5, 3, 4, -4.01, 16, 100]
    disparity = truth.copy()
    disparity[1, : len(errors)] += np.array(errors, dtype=np.float32)
    picture = np.asarray(paint_error(disparity, truth))
    steps = [ERROR_COLORS.index(tuple(color)) for color in picture[1, : len(errors)].tolist()]
    assert steps == [0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 7]
    assert len(ERROR_COLORS) == len(ERROR_EDGES_PX) + 1 and picture.shape[0] > 3 and picture.shape[1] == 340


def test_what_is_not_known_is_black_whatever_stands_there():
    truth = np.full((4, 400), 9, dtype=np.float32)
    truth[2, 5], truth[3, 7] = np.inf, np.nan
    disparity = np.full_like(truth, 9)
    disparity[2, 5] = np.nan
    picture = np.asarray(paint_error(disparity, truth))
    black = (picture[:4] == UNKNOWN_COLOR).all(-1)
    assert np.argwhere(black).tolist() == [[2, 5], [3, 7]]
    known = np.ones((4, 400), dtype=bool)
    known[0, 399] = False
    black = (np.asarray(paint_error(np.zeros_like(truth), np.full_like(truth, 9), known))[:4] == UNKNOWN_COLOR).all(-1)
    assert np.argwhere(black).tolist() == [[0, 399]]


def test_points_of_a_sparse_map_are_drawn_larger():
    truth = np.full((9, 330), np.inf, dtype=np.float32)
    truth[4, 10], truth[4, 12] = 20, 20
    disparity = np.full_like(truth, 20)
    disparity[4, 12] += 3
    picture = np.asarray(paint_error(disparity, truth))[:9]
    drawn = (picture != UNKNOWN_COLOR).any(-1)
    assert np.argwhere(drawn).min(0).tolist() == [3, 9] and np.argwhere(drawn).max(0).tolist() == [5, 13]
    assert tuple(picture[3, 10]) == ERROR_COLORS[0] and tuple(picture[4, 11]) == ERROR_COLORS[4]  # the larger on top

    sparse = np.asarray(paint_disparity(np.where(np.isfinite(truth), truth, 99), np.isfinite(truth), 40))[:9]
    assert ((sparse != UNKNOWN_COLOR).any(-1) == drawn).all()


def test_narrow_maps_stand_in_white_margins():
    picture = np.asarray(paint_error(np.zeros((5, 20)), np.zeros((5, 20))))
    assert picture.shape[1] == 320 and (picture[2, 140] == 255).all()
    assert tuple(picture[2, 155]) == ERROR_COLORS[0]
    assert (picture[2] != 255).any(-1).sum() == 20


def test_bar_of_errors_shows_every_colour():
    for size in ((3, 10), (500, 700), (375, 1242)):
        picture = np.asarray(paint_error(np.full(size, 5.0), np.full(size, 5.0)))
        bar = {tuple(color) for color in picture[size[0] :].reshape(-1, 3).tolist()}
        assert {*ERROR_COLORS, UNKNOWN_COLOR} <= bar


def test_two_disparities_share_their_colours():
    low, high = np.full((6, 200), 10.0), np.full((6, 200), 10.0)
    high[:, 100:] = 40
    first, second = (np.asarray(paint_disparity(one, highest_px=40)) for one in (low, high))
    assert (first[2, 50] == second[2, 50]).all() and (second[2, 150] != second[2, 50]).any()
    alone = np.asarray(paint_disparity(low))
    assert (alone[2, 50] == second[2, 150]).all()  # the highest of its own map


def test_negative_disparity_is_painted_as_zero_and_unknown_as_black():
    disparity = np.array([[-5.0, 0.0, 8.0, np.nan, 8.0]]).repeat(3, 0)
    known = np.array([[True, True, True, True, False]]).repeat(3, 0)
    known[:, 3] = False
    picture = np.asarray(paint_disparity(disparity, known))
    middle = picture[1, (picture.shape[1] - 5) // 2 :][:5]
    assert (middle[0] == middle[1]).all() and (middle[2] != middle[1]).any()
    assert middle[3].tolist() == middle[4].tolist() == [0, 0, 0]


def test_shapes_that_disagree():
    with pytest.raises(
        ValueError, match=r"`true_disparity` must have the shape of `disparity` \[2, 3\]; got \[3, 2\]"
    ):
        paint_error(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"`known` must have the shape of the disparity \[2, 3\]"):
        paint_disparity(np.zeros((2, 3)), np.ones((2, 2), dtype=bool))
