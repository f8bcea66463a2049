# SPDX-License-Identifier: Apache-2.0
"""The web page: one photograph in, a stereo pair out, with everything one may want to see or take away of it.

    make space                                                      (CPU, the embedded weights, http://127.0.0.1:7860)
    ZEROSTEREO_WEIGHTS=USER/ZEROSTEREO python space/app.py          (a pipeline folder or Hub id of your own)

The folder is complete: uploaded to a Hugging Face Space it runs unchanged, on ZeroGPU too (README.md beside this
file). It loads the pipeline as any outsider does, by `DiffusionPipeline.from_pretrained`, once.
"""

from __future__ import annotations

import spaces  # isort: skip  # first: on ZeroGPU it must come before anything that touches CUDA

import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from diffusers import DiffusionPipeline
from fetching import fetch_file
from generation import FILLS, LONGEST_LOAN_S, MAX_FILE_BYTES, MAX_SIDE, Sessions, Studio
from handlers import DEFAULT_FOV_DEG, DEFAULT_LARGEST_SIDE, DEFAULT_STRENGTH_PERCENT, Handlers
from pictures import ANAGLYPH_METHODS, CLOUD_FORMATS, FRAME_SIZES, LAYOUTS, WIGGLE_FRAME_MS

FOLDER = Path(__file__).resolve().parent
WEIGHTS_VARIABLE = "ZEROSTEREO_WEIGHTS"
SPACE_VARIABLE = "SPACE_ID"  # set where the page runs on the Hub
MCP_TOOLS = ("stereo_pair",)  # the other endpoints work on the last pair of a session, and MCP has one for all
EMBEDDED_WEIGHTS = "weights/zerostereo-tiny"  # below this folder, or below the one above it
EXAMPLES = sorted(path for path in (FOLDER / "examples").iterdir() if path.suffix in (".jpg", ".png"))
FIRST_CONVERGENCE_LIMIT = 100  # px, until there is a picture
QUEUE_LENGTH = 40  # waiting requests; more are told that the queue is full
REMEMBERED_PAGES = 200  # page states of Gradio
FILE_AGE_S = 3600  # uploads are removed after this
SWEEP_S = 60.0
TARGET_CHOICES = [
    ("Right eye (the photograph is the left one)", "right"),
    ("Left eye (the photograph is the right one)", "left"),
    ("Both eyes (the photograph is between them)", "both"),
]
FILL_CHOICES = [("Whole picture at once", "whole"), ("Tiles at full size: more detail, slower", "tiled")]
WELCOME = "Drop a photograph, or choose an example, and press **Make stereo pair**."
TITLE = "ZeroStereo"
INTRODUCTION = f"""# {TITLE}
One photograph in, a stereo pair out. A network estimates the depth, every pixel moves to its place in the other eye's
view, and what no eye has seen is invented. Results are forgotten when you leave, uploads within about an hour."""
# Gradio describes neither the pictures of its slider and examples nor lets the keyboard move the slider; and a phone
# has the results below its screen.
SCRIPT = """() => {
  const describe = () => {
    document.querySelectorAll('#compare img').forEach((image, index) => {
      image.alt = index % 2 ? 'Right eye view' : 'Left eye view';
    });
    document.querySelectorAll('#examples img').forEach((image) => {
      image.alt = 'Example photograph: ' + image.src.split('/').pop().split('.')[0];
    });
    const handle = document.querySelector('#compare [data-testid=slider]');
    if (!handle || handle.tabIndex === 0) return;
    Object.assign(handle, {tabIndex: 0, role: 'slider'});
    handle.setAttribute('aria-label', 'Border between left and right eye view');
    handle.addEventListener('keydown', (event) => {
      const step = {ArrowLeft: -20, ArrowRight: 20}[event.key];
      if (!step) return;
      event.preventDefault();
      const box = handle.getBoundingClientRect();
      const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true, view: window};
      handle.dispatchEvent(new MouseEvent('mousedown', at));
      const moved = {...at, clientX: at.clientX + step};
      window.dispatchEvent(new MouseEvent('mousemove', moved));
      window.dispatchEvent(new MouseEvent('mouseup', moved));
    });
  };
  document.addEventListener('click', (event) => {
    if (!event.target.closest('#make, #examples button')) return;
    const status = document.querySelector('#status');
    if (status.getBoundingClientRect().bottom < window.innerHeight) return;
    const isCalm = window.matchMedia('(prefers-reduced-motion: reduce)').matches;
    status.scrollIntoView({behavior: isCalm ? 'auto' : 'smooth'});
  });
  new MutationObserver(describe).observe(document.body, {childList: true, subtree: true});
  describe();
}"""
CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#intro h1 { font-weight: 600; margin-bottom: 0.2em; }
#intro p { max-width: 60em; color: var(--body-text-color-subdued); }
#status { min-height: 5em; overflow: hidden !important; }
#status:has(> .wrap:not(.hide)) > :last-child { visibility: hidden; } /* progress and errors stand in its place */
#files .label-clear-button { display: none; } /* Gradio offers to take files off the list */
#parameters { max-width: 100%; overflow-x: auto; }
#parameters * { overflow-wrap: anywhere; min-width: 0; }
#tabs .tab-container button { padding: 8px 9px; font-size: 0.92em; }
*:focus-visible { outline: 2px solid var(--color-accent) !important; outline-offset: 2px; }
@media (max-width: 640px) {
  .gradio-container { padding: 8px !important; }
  #wiggle, #anaglyph, #side_by_side, #disparity, #confidence, #invented { height: auto !important; min-height: 200px; }
  footer .divider { display: none !important; } /* Gradio hides what stands before it */
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""


def find_weights(environment: dict[str, str]) -> tuple[str, str]:
    """Return (what to load, how to print it): the variable's value, else the embedded folder.

    A folder is printed as one beside the work, "./NAME": where it lies here is nobody's business, and a name without
    the dot would be taken for one of the Hub, where it is somebody else's.

    Raises:
        FileNotFoundError: no variable, and no embedded folder.
    """
    given = environment.get(WEIGHTS_VARIABLE)
    if given:
        return given, f"./{Path(given).resolve().name}" if Path(given).is_dir() else given
    for folder in (FOLDER, FOLDER.parent):
        if (folder / EMBEDDED_WEIGHTS).is_dir():
            return str(folder / EMBEDDED_WEIGHTS), f"./{EMBEDDED_WEIGHTS}"
    raise FileNotFoundError(
        f"{WEIGHTS_VARIABLE} must name a pipeline folder or Hub id where there is no {EMBEDDED_WEIGHTS}; got neither."
    )


def find_revision(weights: str) -> str | None:
    """Download a pipeline of the Hub and return its commit; None for a folder."""
    if Path(weights).is_dir():
        return None
    return Path(DiffusionPipeline.download(weights, trust_remote_code=True)).name


def python_source(printed: str, revision: str | None, space: str | None) -> str:
    """Write the Python arguments of `from_pretrained` that load the same weights elsewhere.

    Args:
        printed: Hub id, or folder as `find_weights` prints it.
        revision: commit of a Hub id.
        space: Hub id of the Space that runs, which has its folder of weights among its files.
    """
    if revision is not None:
        return f"{printed!r}, revision={revision!r}"
    if space is not None:
        return f"huggingface_hub.snapshot_download({space!r}, repo_type='space') + {printed.removeprefix('.')!r}"
    return repr(printed)


def load_pipeline(weights: str, revision: str | None = None) -> Any:
    """Load the pipeline: in float16 where there is a GPU, but the depth network in float32, for it moves pixels."""
    has_gpu = torch.cuda.is_available()
    dtypes = {"default": torch.float16 if has_gpu else torch.float32, "depth_estimator": torch.float32}
    pipe: Any = DiffusionPipeline.from_pretrained(weights, revision=revision, trust_remote_code=True, dtype=dtypes)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if has_gpu else "cpu")


# --- the page ---


class Page:
    """The components of the page, in the order in which they are met; built inside a `gr.Blocks`.

    Args:
        default_steps: denoising steps that suit the weights.
    """

    def __init__(self, default_steps: int):
        """Lay the page out."""
        gr.Markdown(INTRODUCTION, elem_id="intro")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                self._build_inputs(default_steps)
            with gr.Column(scale=3, min_width=320):
                self.status = gr.Markdown(WELCOME, elem_id="status")
                self._build_convergence()
                with gr.Tabs(elem_id="tabs"):
                    self._build_stereo_tabs()
                    self._build_map_tabs()
                    self._build_last_tabs()

    def _build_inputs(self, default_steps: int) -> None:
        self.photo = gr.Image(
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard", "webcam"],
            label="Photograph",
            alt_text="The photograph that you chose",
            height=300,
            buttons=[],
            elem_id="photo",
        )
        # Gradio would open the file before our limits are checked, and word its own message where it is damaged.
        self.photo.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
        _fetch_within_limits(self.photo)
        self.examples = gr.Examples(
            [[str(path)] for path in EXAMPLES], [self.photo], label="Examples", elem_id="examples"
        )
        self.strength_percent = gr.Slider(
            0.5,
            20,
            DEFAULT_STRENGTH_PERCENT,
            step=0.5,
            label="Depth strength (% of the width)",
            info="How far the nearest point shifts between both eyes; 3 to 8 is comfortable",
            elem_id="strength",
        )
        self.target_view = gr.Radio(TARGET_CHOICES, value="right", label="New view", elem_id="target")
        with gr.Row():
            self.make = gr.Button("Make stereo pair", variant="primary", elem_id="make", scale=3)
            self.cancel = gr.Button("Cancel", variant="secondary", elem_id="cancel", scale=1, min_width=90)
        with gr.Accordion("Advanced", open=False, elem_id="advanced"):
            self.strength_px = gr.Number(
                0,
                minimum=0,
                label="Depth strength in px",
                info="Used instead of the percentage where it is above 0",
                elem_id="strength_px",
            )
            self.fill = gr.Radio(FILL_CHOICES, value=FILLS[0], label="Holes are filled in")
            self.steps = gr.Slider(
                1, 100, default_steps, step=1, label="Steps", info="More steps take longer", elem_id="steps"
            )
            with gr.Row():
                self.seed = gr.Number(0, minimum=0, precision=0, label="Seed", min_width=120, elem_id="seed")
                self.random_seed = gr.Checkbox(False, label="Random seed", min_width=120)
            self.largest_side = gr.Slider(
                256,
                4096,
                DEFAULT_LARGEST_SIDE,
                step=64,
                label="Largest side (px)",
                info="Larger photographs are scaled",
            )
            self.depth_map = gr.File(
                label="Your own depth map (brighter = nearer)",
                file_types=[".png", ".tif", ".tiff", ".pfm", ".jpg", ".jpeg", ".webp"],
                height=150,
                elem_id="depth_map",
            )
            _fetch_within_limits(self.depth_map)

    def _build_convergence(self) -> None:
        self.convergence = gr.Slider(
            0,
            FIRST_CONVERGENCE_LIMIT,
            0,
            step=1,
            label="Convergence (px)",
            info="What is this many px apart in both views lies in the screen, the nearer before it",
            elem_id="convergence",
        )
        # The control ends where the picture that is shown says; callers of the API may have a wider one.
        self.convergence.preprocess = gr.Number(  # type: ignore[method-assign]
            minimum=0, maximum=MAX_SIDE - 1, precision=0, render=False
        ).preprocess

    def _build_stereo_tabs(self) -> None:
        with gr.Tab("Compare", id="compare"):
            self.compare = gr.ImageSlider(
                type="filepath",
                format="png",
                label="Left eye | right eye: drag the handle",
                interactive=False,
                elem_id="compare",
            )
        with gr.Tab("Wiggle", id="wiggle"):
            self.wiggle = _picture("Wiggle", "Both views in turn, which shows depth without glasses", "gif")
            with gr.Row():
                self.frame_ms = gr.Slider(50, 1000, WIGGLE_FRAME_MS, step=10, label="Time per view (ms)")
                self.loop = gr.Checkbox(True, label="Play for ever")
        with gr.Tab("Anaglyph", id="anaglyph"):
            self.anaglyph = _picture("Anaglyph", "Both views mixed for red-cyan glasses, red before the left eye")
            self.method = gr.Dropdown(_choices(ANAGLYPH_METHODS), value="dubois", label="Method", elem_id="method")
        with gr.Tab("Side by side", id="side_by_side"):
            self.side_by_side = _picture("Side by side", "Both views beside each other")
            with gr.Row():
                self.layout = gr.Radio(_choices(LAYOUTS), value="parallel", label="Eyes")
                self.size = gr.Radio(_choices(FRAME_SIZES), value="full", label="Size")

    def _build_map_tabs(self) -> None:
        with gr.Tab("Disparity", id="disparity"):
            self.disparity = _picture("Disparity", "Shift between both views in px: dark is far, bright is near")
        with gr.Tab("Confidence", id="confidence"):
            self.confidence = _picture(
                "Confidence", "White where the depth of the photograph agrees with that of its mirror image"
            )
            gr.Markdown("White: the depth agrees with that of the mirror image. Black: it does not, most of all here.")
        with gr.Tab("Invented", id="invented"):
            self.invented = _picture("Invented", "The new view; pink where it was invented")
            gr.Markdown("Pink was invented, everything else is a photographed pixel.")

    def _build_last_tabs(self) -> None:
        with gr.Tab("Points", id="cloud"):
            self.cloud = gr.Model3D(
                label="Point cloud",
                display_mode="point_cloud",
                height=420,
                interactive=False,
                elem_id="cloud",
            )
            gr.Markdown("Drag to turn, wheel or pinch to come nearer.")
            self.fov_deg = gr.Slider(
                20, 120, DEFAULT_FOV_DEG, step=1, label="Horizontal field of view of the photograph (degrees)"
            )
            self.cloud_format = gr.Radio(
                _choices(CLOUD_FORMATS), value="ply", label="File format", elem_id="cloud_format"
            )
        with gr.Tab("Files", id="downloads") as self.downloads_tab:
            self.write = gr.Button("Make all files for these settings", elem_id="write")
            self.files = gr.File(
                label="Files",
                file_count="multiple",
                interactive=False,
                height=420,
                elem_id="files",
            )
            self.files_note = gr.Markdown(elem_id="files_note")
            gr.Markdown("The first line of the parameters is the Python that makes this pair again, bit for bit.")
            self.parameters = gr.JSON(label="Parameters", elem_id="parameters")

    def generation_inputs(self) -> list[Any]:
        """Components that decide a pair, in the order of the handlers' arguments."""
        return [
            self.photo,
            self.depth_map,
            self.strength_percent,
            self.strength_px,
            self.target_view,
            self.fill,
            self.steps,
            self.seed,
            self.random_seed,
            self.largest_side,
        ]

    def picture_inputs(self) -> list[Any]:
        """Components that decide the pictures of a pair, in the order of the handlers' arguments."""
        return [
            self.convergence,
            self.method,
            self.layout,
            self.size,
            self.frame_ms,
            self.loop,
            self.fov_deg,
            self.cloud_format,
        ]

    def file_inputs(self) -> list[Any]:
        """Components that decide the files of a pair, in the order of the handlers' arguments."""
        return [self.convergence, self.frame_ms, self.loop, self.fov_deg]

    def outputs(self) -> list[Any]:
        """Components that show a pair, in the order of `Handlers._show`."""
        return [
            self.status,
            self.compare,
            self.wiggle,
            self.anaglyph,
            self.side_by_side,
            self.disparity,
            self.confidence,
            self.invented,
            self.cloud,
            self.files,
            self.files_note,
            self.parameters,
            self.convergence,
        ]


def _fetch_within_limits(component: Any) -> None:
    """Have files that a client names by an address fetched within the limits of uploads; Gradio has none for them."""
    move = component.async_move_resource_to_block_cache

    async def move_within_limits(source: str | Path | None) -> str | None:
        if source is not None and str(source).lower().startswith(("http://", "https://")):
            source = await fetch_file(str(source), Path(component.GRADIO_CACHE))
        return await move(source)

    component.async_move_resource_to_block_cache = move_within_limits


def _choices(labels: dict[str, str]) -> list[tuple[str, str]]:
    """Turn value -> label into the (label, value) of Gradio."""
    return [(label, value) for value, label in labels.items()]


def _picture(label: str, description: str, file_format: str = "png") -> gr.Image:
    """Show a picture file as it is, described for those who cannot see it."""
    return gr.Image(
        type="filepath",
        format=file_format,
        label=label,
        alt_text=description,
        interactive=False,
        height=440,
        buttons=["download", "fullscreen"],
        elem_id=label.lower().replace(" ", "_"),
    )


def connect(page: Page, handlers: Handlers, demo: gr.Blocks) -> None:
    """Say which event of the page calls which handler; the named ones are the endpoints of the API."""
    device = {"concurrency_limit": 1, "concurrency_id": "device"}
    light = {"concurrency_limit": 2, "concurrency_id": "pictures", "show_progress": "minimal"}
    make_arguments = {
        "fn": handlers.make_pair,
        "inputs": [*page.generation_inputs(), *page.picture_inputs()],
        "outputs": page.outputs(),
        "api_visibility": "private",
        "show_progress_on": [page.status],
        **device,
    }
    made = page.make.click(**make_arguments)
    chosen = page.examples.load_input_event.then(**make_arguments)
    page.cancel.click(
        handlers.cancel_page,
        None,
        page.status,
        cancels=[made, chosen],
        queue=False,
        api_name="cancel_page",
        api_visibility="private",
    )
    demo.unload(handlers.leave)
    for event in (made, chosen):
        event.then(
            handlers.catch_up,
            page.picture_inputs(),
            [page.wiggle, page.anaglyph, page.side_by_side, page.cloud, page.parameters],
            api_visibility="private",
            **light,
        )
    _connect_pictures(page, handlers, light)
    _connect_files(page, handlers)
    _connect_clients(page, handlers, device)


def _connect_pictures(page: Page, handlers: Handlers, light: dict[str, Any]) -> None:
    """Make one picture again when what decides it changes."""
    pictures: tuple[tuple[Any, list[Any], list[Any], Any], ...] = (
        (handlers.wiggle, [page.frame_ms.change, page.loop.change], [page.frame_ms, page.loop], page.wiggle),
        (handlers.anaglyph, [page.method.change], [page.method], page.anaglyph),
        (
            handlers.side_by_side,
            [page.layout.change, page.size.change],
            [page.layout, page.size],
            page.side_by_side,
        ),
    )
    for handler, triggers, inputs, output in pictures:
        gr.on(
            [*triggers, page.convergence.change],
            handler,
            [*inputs, page.convergence],
            output,
            trigger_mode="always_last",
            api_name=handler.__name__,
            **light,
        )
    gr.on(
        [page.fov_deg.change, page.cloud_format.change],
        handlers.point_cloud,
        [page.fov_deg, page.cloud_format],
        page.cloud,
        trigger_mode="always_last",
        api_name="point_cloud",
        **light,
    )


def _connect_files(page: Page, handlers: Handlers) -> None:
    """Make all files when asked, and take them back when what decides them changes."""
    written = page.write.click(
        handlers.downloads,
        page.file_inputs(),
        [page.files, page.parameters],
        api_name="downloads",
        concurrency_limit=1,
        concurrency_id="files",
    )
    written.success(None, None, page.files_note, js="() => ''", api_visibility="private")
    gr.on(
        [component.change for component in page.file_inputs()],
        handlers.outdate,
        page.file_inputs(),
        [page.files, page.files_note, page.parameters],
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )


def _connect_clients(page: Page, handlers: Handlers, device: dict[str, Any]) -> None:
    """Add the endpoints that no button of the page calls."""
    with gr.Row(visible=False):
        trigger, stop = gr.Button("stereo_pair"), gr.Button("cancel")
        left = gr.Image(type="filepath", format="png", label="Left view")
        right = gr.Image(type="filepath", format="png", label="Right view")
        disparity, archive = gr.File(label="Disparity, 16-bit PNG"), gr.File(label="ZIP archive of all files")
        parameters, answer = gr.JSON(label="Parameters"), gr.Textbox(label="Answer")
    trigger.click(
        handlers.stereo_pair,
        [*page.generation_inputs(), page.convergence, page.fov_deg],
        [left, right, disparity, archive, parameters],
        api_name="stereo_pair",
        **device,
    )
    stop.click(handlers.cancel, None, answer, queue=False, api_name="cancel")


def build_app(studio: Studio, max_memory_bytes: int = 1_000_000_000) -> tuple[gr.Blocks, Handlers]:
    """Build the page around a pipeline.

    Args:
        studio: runs the pipeline.
        max_memory_bytes: of all users' results together.

    Returns:
        (page, not launched; its handlers).
    """
    demo = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(FILE_AGE_S // 6, FILE_AGE_S))
    handlers = Handlers(studio, Sessions(Path(demo.GRADIO_CACHE), max_memory_bytes))
    with demo:
        connect(Page(studio.default_steps), handlers, demo)
    demo.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=1)
    return demo, handlers


def launch_arguments() -> dict[str, Any]:
    """Return how the page is served: nothing from other hosts, no error texts of ours, MCP where it is installed."""
    return {
        "css": CSS,
        "theme": gr.themes.Base(
            primary_hue="indigo",
            secondary_hue="indigo",
            neutral_hue="slate",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        "max_file_size": MAX_FILE_BYTES,
        "footer_links": ["api", "settings"],
        "js": SCRIPT,
        "run_history": False,
        "enable_monitoring": False,
        "state_session_capacity": REMEMBERED_PAGES,
        "ssr_mode": False,
        "pwa": False,
        "share": False,
        "mcp_server": importlib.util.find_spec("mcp") is not None,
    }


def offer_tools(demo: gr.Blocks) -> None:
    """Leave MCP clients the tools that need no session."""
    server = demo.mcp_server_obj
    if server is not None:
        server.tool_to_endpoint = {name: server.tool_to_endpoint[name] for name in MCP_TOOLS}


def sweep_for_ever(sessions: Sessions) -> None:
    """Forget unused results every minute, also when nobody comes."""
    while True:
        threading.Event().wait(SWEEP_S)
        sessions.sweep()


def main() -> None:
    """Load the pipeline and serve the page."""
    weights, printed = find_weights(dict(os.environ))
    revision = find_revision(weights)
    is_lent = "SPACES_ZERO_GPU" in os.environ  # a shared GPU is lent to visitors only
    studio = Studio(
        load_pipeline(weights, revision),
        printed,
        source=python_source(printed, revision, os.environ.get(SPACE_VARIABLE)),
        report=lambda share, text: gr.Progress()(share, desc=text),
        on_device=spaces.GPU,
        longest_loan_s=LONGEST_LOAN_S if is_lent else None,
    )
    demo, handlers = build_app(studio)
    if not is_lent:
        handlers.prepare_examples(EXAMPLES)
    threading.Thread(target=sweep_for_ever, args=[handlers.sessions], daemon=True).start()
    demo.launch(**launch_arguments(), prevent_thread_lock=True)
    offer_tools(demo)
    demo.block_thread()


if __name__ == "__main__":
    main()
