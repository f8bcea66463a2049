# SPDX-License-Identifier: Apache-2.0
"""What the events of the page and the endpoints of its API do.

Knows Gradio's requests, errors and progress, but no component: which control feeds which argument says the page.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from generation import (
    DEPTH_FILE,
    CancelledError,
    Depth,
    Photo,
    RefusedError,
    Result,
    Sessions,
    Settings,
    Studio,
    describe_parameters,
    read_depth_map,
    read_photo,
    return_memory,
    upright_size,
)
from pictures import (
    WIGGLE_FRAME_MS,
    PictureSettings,
    convergence_limit,
    encode_disparity,
    encode_png,
    encode_shown_cloud,
    encode_tiff,
    encode_wiggle,
    has_depth,
    make_files,
    overlay_invented,
    write_zip,
)
from PIL import Image

DEFAULT_STRENGTH_PERCENT = 6.0  # comfortable to look at
DEFAULT_LARGEST_SIDE = 1536  # px
DEFAULT_FOV_DEG = 60.0
KEPT_VERSIONS = 2  # of a picture that was made again: a browser may still be fetching the older one
OUTDATED = "The settings changed: make the files again."
SHOWN_COUNT = 13  # components that show a pair
ONE_SESSION_FOR_ALL = ("x-gradio-user", "mcp")  # header of calls that Gradio's MCP server makes for its clients
CANCELLED = "Cancelled."
EXPIRED = "There is no pair to work on: none was made, or it was not used for a while. Press Make stereo pair."


class Shown(NamedTuple):
    """What decides the pictures that the page shows of a pair.

    Attributes:
        method: of the anaglyph.
        layout, size: of the side by side picture.
        cloud_format: of the point cloud.
        pictures: everything that the files depend on too.
    """

    method: str
    layout: str
    size: str
    cloud_format: str
    pictures: PictureSettings


def publish(result: Result, kind: str, files: dict[str, bytes]) -> list[str]:
    """Write files where the page serves them, under names that were never used, and return their paths.

    Raises:
        gr.Error: the result was forgotten meanwhile.
    """
    versions = result.folder / kind
    target = versions / secrets.token_hex(8)
    try:
        if not result.folder.is_dir():
            raise FileNotFoundError
        older = sorted(versions.iterdir(), key=lambda path: path.stat().st_mtime_ns) if versions.is_dir() else []
        for path in older[: len(older) - KEPT_VERSIONS + 1]:
            shutil.rmtree(path)
        target.mkdir(parents=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
    except FileNotFoundError as error:
        raise gr.Error(EXPIRED, print_exception=False) from error
    return [str(target / name) for name in files]


def user_of(request: gr.Request | None) -> str:
    """Return the page or client that a request belongs to.

    A request without a session is a user of its own, and so is each call through MCP: all of them have one session.
    """
    header, value = ONE_SESSION_FOR_ALL
    if request is None or request.headers.get(header) == value:
        return secrets.token_urlsafe(16)
    return request.session_hash or secrets.token_urlsafe(16)


def describe_result(result: Result) -> str:
    """Say in a line what came out."""
    found = result.parameters
    share = max(found["invented_share"])
    made = (
        f"nearest point {found['largest_disparity_px']:.1f} px apart in both views "
        f"({found['largest_disparity_px'] / found['width']:.1%} of {found['width']} px), "
        f"{share:.1%} of the new view invented"
    )
    notes = "".join(f"\n\n*{note}*" for note in result.photo.notes)
    if result.is_preview:
        return f"**Preview**: {made}. The holes are being filled …{notes}"
    steps = result.settings.steps
    return f"**Done**: {made}; {steps} step{'s' * (steps > 1)}, seed {result.settings.seed}.{notes}"


class Handlers:
    """What the events of the page do; each method is one event.

    Args:
        studio: runs the pipeline.
        sessions: remembers each user's result.
    """

    def __init__(self, studio: Studio, sessions: Sessions):
        self.studio, self.sessions = studio, sessions
        self.processor = studio.pipe.image_processor
        self._prepared: dict[tuple[bytes, Settings], tuple[Depth, Any]] = {}  # pairs of the examples

    # --- the pair ---

    def default_settings(self) -> Settings:
        """Return what the page asks for when nobody changed anything."""
        return Settings(
            DEFAULT_STRENGTH_PERCENT, 0.0, "right", "whole", self.studio.default_steps, 0, DEFAULT_LARGEST_SIDE
        )

    def prepare_examples(self, paths: list[Path]) -> None:
        """Make the pairs of the examples, so that they answer at once."""
        folder = self.sessions.make_folder()
        settings = self.default_settings()
        for path in paths:
            photo = read_photo(path, self.processor, settings.largest_side)
            stages = list(self.studio.run(photo.image, None, settings, folder / "cancel"))
            depth = stages[0].depth
            assert depth is not None  # no map was given
            self._prepared[photo.content, settings] = (depth, stages[-1].pair)
        shutil.rmtree(folder)

    def _make(self, user: str, photo: Photo, settings: Settings, depth_map: str | None) -> Iterator[Result]:
        """Yield the preview and then the result of one photograph, each remembered."""
        width, height = upright_size(photo.image)
        own_map = read_depth_map(depth_map, width, height)
        earlier = self.sessions.get(user)
        is_known = earlier is not None and own_map is None and earlier.photo.content == photo.content
        depth = earlier.depth if is_known and earlier is not None else None

        def remember(pair: Any, is_preview: bool) -> Result:
            agreement = None if depth is None else depth.agreement
            parameters = describe_parameters(self.studio, photo, settings, pair, agreement, own_map is not None)
            result = Result(photo, settings, pair, depth, own_map, parameters, folder, is_preview)
            self.sessions.put(user, result)
            return result

        folder = self.sessions.make_folder()
        remembered = False
        try:
            prepared = self._prepared.get((photo.content, settings)) if own_map is None else None
            if prepared is not None:
                depth, remembered = prepared[0], True
                yield remember(prepared[1], is_preview=False)
                return
            inverse_depth = own_map if depth is None else depth.inverse_depth
            with self.sessions.running(user, folder / "cancel"):
                for stage in self.studio.run(photo.image, inverse_depth, settings, folder / "cancel"):
                    if stage.depth is not None:
                        depth = stage.depth
                    else:
                        remembered = True
                        yield remember(stage.pair, stage.is_preview)
        finally:
            if not remembered:
                shutil.rmtree(folder, ignore_errors=True)
            return_memory()

    def _requested(
        self,
        strength_percent: float,
        strength_px: float,
        target_view: str,
        fill: str,
        steps: float,
        seed: float,
        is_random: bool,
        largest_side: float,
    ) -> Settings:
        """Collect what was asked for; the seed is drawn where that is wished."""
        return Settings(
            strength_percent,
            strength_px,
            target_view,
            fill,
            _to_int(steps),
            secrets.randbelow(2**31) if is_random else _to_int(seed),
            _to_int(largest_side),
        )

    def make_pair(
        self,
        photo: str | None,
        depth_map: str | None,
        strength_percent: float,
        strength_px: float,
        target_view: str,
        fill: str,
        steps: float,
        seed: float,
        random_seed: bool,
        largest_side: float,
        convergence: float,
        method: str,
        layout: str,
        size: str,
        frame_ms: float,
        loop: bool,
        fov_deg: float,
        cloud_format: str,
        progress=gr.Progress(),  # noqa: B008
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> Iterator[tuple]:
        """Make a stereo pair and show it: a preview at once, then the result."""
        pictures = picture_settings(convergence, frame_ms, loop, fov_deg)
        shown = Shown(method, layout, size, cloud_format, pictures)
        self.sessions.open_page(user_of(request))
        try:
            progress(0.0, desc="Reading the photograph")
            settings = self._requested(
                strength_percent, strength_px, target_view, fill, steps, seed, random_seed, largest_side
            )
            read = read_photo(photo, self.processor, settings.largest_side)
            for result in self._make(user_of(request), read, settings, depth_map):
                yield self._show(result, shown)
        except RefusedError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        except CancelledError:
            yield (self._describe_cancelled(user_of(request)), *[gr.skip()] * (SHOWN_COUNT - 1))

    def stereo_pair(
        self,
        photo: str,
        depth_map: str | None = None,
        strength_percent: float = DEFAULT_STRENGTH_PERCENT,
        strength_px: float = 0.0,
        target_view: str = "right",
        fill: str = "whole",
        steps: float = 1,
        seed: float = 0,
        random_seed: bool = False,
        largest_side: float = DEFAULT_LARGEST_SIDE,
        convergence: float = 0,
        fov_deg: float = DEFAULT_FOV_DEG,
        progress=gr.Progress(),  # noqa: B008
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> tuple[str, str, str, str, dict]:
        """Make the other eye's view of a photograph: a stereo pair, its disparity, and every file in a ZIP archive.

        Args:
            photo: The photograph: JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF, at most 20 MB and 50 megapixels.
            depth_map: A depth map of your own instead of the network's: grey, brighter = nearer. Optional.
            strength_percent: Largest disparity (shift between both views) in percent of the width, 0.5 to 20.
            strength_px: The same in pixels, used instead of the percentage where it is above 0.
            target_view: "right": the photograph is the left eye. "left": it is the right eye. "both": two new eyes.
            fill: "whole": holes are filled in one go. "tiled": in tiles at full size, with more detail, slower.
            steps: Denoising steps; more is slower.
            seed: Of what is invented; the same seed gives the same pair.
            random_seed: Draw a seed instead; the parameters name it.
            largest_side: Larger photographs are scaled down to this many pixels.
            convergence: Disparity in pixels of what lies in the plane of the screen, in every stereo picture.
            fov_deg: Horizontal field of view of the photograph in degrees, for the point cloud.

        Returns:
            Left view (PNG), right view (PNG), disparity in px as 16-bit PNG (px = (code - 1) / scale, scale in the
            parameters), ZIP of all files, and the parameters with the Python line that makes the pair again.
        """
        try:
            settings = self._requested(
                strength_percent, strength_px, target_view, fill, steps, seed, random_seed, largest_side
            )
            read = read_photo(photo, self.processor, settings.largest_side)
            *_, result = self._make(user_of(request), read, settings, depth_map)
        except RefusedError as error:
            raise gr.Error(str(error), print_exception=False) from error
        except CancelledError as error:
            raise gr.Error(CANCELLED, print_exception=False) from error
        pictures = picture_settings(convergence, fov_deg=fov_deg)
        by_name = {Path(path).name: path for path in self._make_downloads(result, pictures, progress)}
        parameters = json.loads(Path(by_name["parameters.json"]).read_text(encoding="utf-8"))
        return (by_name["left.png"], by_name["right.png"], by_name["disparity.png"], by_name["stereo.zip"], parameters)

    def cancel(self, request: gr.Request) -> str:
        """End your running work; the device is free after the current step.

        What still waits in the queue is not running: a Python client takes it out by `job.cancel()`.
        """
        return CANCELLED if self.sessions.cancel(user_of(request)) else "Nothing is running."

    def cancel_page(self, request: gr.Request) -> str:
        """End the running work of this page, which has taken out of the queue what was waiting."""
        user = user_of(request)
        self.sessions.cancel(user)
        return self._describe_cancelled(user)

    def _describe_cancelled(self, user: str) -> str:
        result = self.sessions.get(user)
        if result is not None and result.is_preview:
            return f"{CANCELLED} What you see is a preview; press **Make stereo pair** for the result."
        return CANCELLED

    def leave(self, request: gr.Request) -> None:
        """Forget a page that was closed, or a client that went away."""
        self.sessions.leave(user_of(request))

    # --- pictures of the remembered pair; no network runs ---

    def _result(self, request: gr.Request) -> Result:
        result = self.sessions.get(user_of(request))
        if result is None:
            raise gr.Error(EXPIRED, print_exception=False)
        return result

    def _show(self, result: Result, wanted: Shown) -> tuple:
        """Make everything that the tabs show of a pair; point cloud and files only of the result."""
        pair = result.pair
        limit = convergence_limit(pair.disparity[0])
        pictures = replace(wanted.pictures, convergence=min(wanted.pictures.convergence, limit))
        is_lowered = pictures != wanted.pictures
        note = f"\n\n*Convergence lowered to {limit} px, the most for this picture.*" if is_lowered else ""
        files = {
            "left.png": encode_png(pair.left_image[0]),
            "right.png": encode_png(pair.right_image[0]),
            "invented.png": encode_png(overlay_invented(pair)),
            "disparity_color.png": encode_png(self.processor.visualize_disparity(pair.disparity[0])[0]),
        }
        if result.depth is not None:
            files["confidence.png"] = encode_png(self.processor.visualize_confidence(result.depth.confidence)[0])
        left, right, invented, disparity, *confidence = publish(result, "views", files)
        is_final = not result.is_preview
        result.shown = wanted._replace(pictures=pictures)
        return (
            describe_result(result) + note,
            (left, right),
            *self._render(result, result.shown),
            disparity,
            confidence[0] if confidence else None,
            invented,
            self._cloud(result, pictures.fov_deg, wanted.cloud_format) if is_final else None,
            None,
            "",
            self._parameters(result, pictures) if is_final else None,
            gr.update(maximum=limit, value=limit) if is_lowered else gr.update(maximum=limit),
        )

    def _render(self, result: Result, wanted: Shown) -> tuple[str, str, str]:
        """Make the pictures that convergence moves: wigglegram, anaglyph, side by side."""
        return (
            self._wiggle(result, wanted.pictures),
            self._anaglyph(result, wanted.method, wanted.pictures),
            self._side_by_side(result, wanted.layout, wanted.size, wanted.pictures),
        )

    def catch_up(
        self,
        convergence: float,
        method: str,
        layout: str,
        size: str,
        frame_ms: float,
        loop: bool,
        fov_deg: float,
        cloud_format: str,
        request: gr.Request,
    ) -> tuple:
        """Make pictures again whose settings were changed while the pair was made, which showed them as they were."""
        pictures = picture_settings(convergence, frame_ms, loop, fov_deg)
        wanted = Shown(method, layout, size, cloud_format, pictures)
        result = self.sessions.get(user_of(request))
        if result is None or result.is_preview or result.shown in (None, wanted):
            return (gr.skip(),) * 5
        result.shown = wanted
        cloud = self._cloud(result, fov_deg, cloud_format)
        return (*self._render(result, wanted), cloud, self._parameters(result, pictures))

    def outdate(self, convergence: float, frame_ms: float, loop: bool, fov_deg: float, request: gr.Request) -> tuple:
        """Take back files that were made with other settings, and show the parameters of the present ones.

        On a busy machine a change is told late, after files were asked for with the very settings: those stay.
        """
        result = self.sessions.get(user_of(request))
        if result is None or result.is_preview:
            return None, "", gr.skip()
        result.wanted = picture_settings(convergence, frame_ms, loop, fov_deg)
        parameters = self._parameters(result, result.wanted)
        return (gr.skip(), gr.skip(), parameters) if result.filed == result.wanted else (None, OUTDATED, parameters)

    def _wiggle(self, result: Result, pictures: PictureSettings) -> str:
        with telling_refusals():
            return publish(result, "wiggle", {"wiggle.gif": encode_wiggle(result.pair, self.processor, pictures)})[0]

    def _anaglyph(self, result: Result, method: str, pictures: PictureSettings) -> str:
        left, right = result.pair.left_image[0], result.pair.right_image[0]
        with telling_refusals():
            picture = self.processor.anaglyph(left, right, method, pictures.convergence)
        return publish(result, "anaglyph", {f"anaglyph_{method}.png": encode_png(picture)})[0]

    def _side_by_side(self, result: Result, layout: str, size: str, pictures: PictureSettings) -> str:
        left, right = result.pair.left_image[0], result.pair.right_image[0]
        with telling_refusals():
            picture = self.processor.side_by_side(left, right, layout, size, pictures.convergence)
        return publish(result, "side_by_side", {f"stereo_{layout}_{size}.png": encode_png(picture)})[0]

    def _cloud(self, result: Result, fov_deg: float, file_format: str) -> str | None:
        if not has_depth(result.pair):
            return None
        with telling_refusals():
            content = encode_shown_cloud(result.pair, self.processor, fov_deg, file_format)
        return publish(result, "cloud", {f"points.{file_format}": content})[0]

    def _parameters(self, result: Result, pictures: PictureSettings) -> dict[str, Any]:
        return {
            **result.parameters,
            "disparity_png_scale": encode_disparity(result.pair, self.processor)[1],
            "convergence": pictures.convergence,
            "fov_deg": pictures.fov_deg,
        }

    def wiggle(self, frame_ms: float, loop: bool, convergence: float, request: gr.Request) -> str:
        """Make a wigglegram (GIF of both views in turn) of your last pair; no network runs.

        Args:
            frame_ms: How long each view is shown, in milliseconds, a multiple of 10.
            loop: Play for ever, else once.
            convergence: Disparity in pixels of what stands still.
        """
        return self._wiggle(self._result(request), picture_settings(convergence, frame_ms, loop))

    def anaglyph(self, method: str, convergence: float, request: gr.Request) -> str:
        """Make an anaglyph for red-cyan glasses of your last pair; no network runs.

        Args:
            method: "dubois", "color", "half_color", "optimized", "gray" or "true".
            convergence: Disparity in pixels of what lies in the plane of the screen.
        """
        return self._anaglyph(self._result(request), method, picture_settings(convergence))

    def side_by_side(self, layout: str, size: str, convergence: float, request: gr.Request) -> str:
        """Put both views of your last pair beside each other; no network runs.

        Args:
            layout: "parallel": left view left. "cross_eyed": right view left.
            size: "full", or "half": each view squeezed to half its width, as players want it.
            convergence: Disparity in pixels of what lies in the plane of the screen.
        """
        return self._side_by_side(self._result(request), layout, size, picture_settings(convergence))

    def point_cloud(self, fov_deg: float, file_format: str, request: gr.Request) -> str | None:
        """Make a point cloud of your last pair; no network runs.

        Args:
            fov_deg: Horizontal field of view of the photograph in degrees; a smaller one makes the scene deeper.
            file_format: "ply" or "glb".
        """
        return self._cloud(self._result(request), fov_deg, file_format)

    def downloads(
        self,
        convergence: float,
        frame_ms: float,
        loop: bool,
        fov_deg: float,
        progress=gr.Progress(),  # noqa: B008
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> tuple[list[str], dict]:
        """Make every file of your last pair, and a ZIP archive of them; no network runs.

        Args:
            convergence: Disparity in pixels of what lies in the plane of the screen, in every stereo picture.
            frame_ms: How long the wigglegram shows each view, in milliseconds, a multiple of 10.
            loop: The wigglegram plays for ever, else once.
            fov_deg: Horizontal field of view of the photograph in degrees, for the point clouds.
        """
        result = self._result(request)
        if result.is_preview:
            raise gr.Error(
                "There is only a preview. Wait for the result, or make the pair again.", print_exception=False
            )
        pictures = picture_settings(convergence, frame_ms, loop, fov_deg)
        result.filed = result.wanted = pictures
        paths = self._make_downloads(result, pictures, progress)
        if result.wanted != pictures:  # changed on the page while the files were written
            raise gr.Error(OUTDATED, print_exception=False)
        return paths, self._parameters(result, pictures)

    def _make_downloads(self, result: Result, pictures: PictureSettings, progress: Any) -> list[str]:
        """Write every file one after the other, then the archive; returns the archive first."""
        confidence = None if result.depth is None else result.depth.confidence
        parameters = json.dumps(self._parameters(result, pictures), indent=2, ensure_ascii=False) + "\n"
        given = {result.photo.file_name: result.photo.content, "parameters.json": parameters.encode()}
        if result.own_map is not None:
            given[DEPTH_FILE] = encode_tiff(Image.fromarray(result.own_map))
        first, *others = publish(result, "downloads", given)
        paths = [Path(first), *map(Path, others)]
        with telling_refusals():
            for name, encode in make_files(result.pair, confidence, self.processor, pictures):
                progress(0.9, desc=f"Writing {name}")
                path = paths[0].with_name(name)
                path.write_bytes(encode())
                paths.append(path)
        archive = paths[0].with_name("stereo.zip")
        write_zip(archive, paths)
        return_memory()
        return [str(path) for path in (archive, *paths)]


@contextlib.contextmanager
def telling_refusals() -> Iterator[None]:
    """Tell the user what the pipeline's functions refuse, and that files of a forgotten result are gone."""
    try:
        yield
    except FileNotFoundError as error:
        raise gr.Error(EXPIRED, print_exception=False) from error
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _to_int(value: float) -> int:
    """Return a whole number as int; others as they are, for `Settings` to refuse."""
    return int(value) if value is not None and value == int(value) else value  # type: ignore[return-value]


def picture_settings(
    convergence: float, frame_ms: float = WIGGLE_FRAME_MS, loop: bool = True, fov_deg: float = DEFAULT_FOV_DEG
) -> PictureSettings:
    """Collect what decides the pictures."""
    return PictureSettings(_to_int(convergence), _to_int(frame_ms), loop, fov_deg)
