# SPDX-License-Identifier: Apache-2.0
"""How well the autoencoder of a pipeline gives whole photographs back: it bounds what inpainting can show.

    python -m benchmarks.autoencoder                       # embedded weights, four photographs, CPU, seconds
    python -m benchmarks.autoencoder --weights DIR a.jpg   # your own

PSNR = 10 log10(1 / mean squared error) over all pixels and channels of the photograph in [0,1], encoded and decoded as
`ZeroStereoPipeline.inpaint` does it (padded, posterior mean, clamped). Whole photographs, because crops flatter.
"""

import argparse
from pathlib import Path

import PIL.Image
import torch

from benchmarks.contact_sheet import DEFAULT_WEIGHTS, load_photos
from pipeline_zerostereo import ZeroStereoPipeline, decode_latents, encode_latents, pad_to_multiple, unpad


@torch.no_grad()
def round_trip_psnr(pipe: ZeroStereoPipeline, photo: PIL.Image.Image) -> float:
    """Encode and decode one photograph; returns dB."""
    image = pipe.image_processor.preprocess(photo)  # [1,3,H,W] in [0,1]
    padded, padding = pad_to_multiple(2 * image - 1, pipe.vae_scale_factor)
    decoded = unpad(decode_latents(pipe.vae, encode_latents(pipe.vae, padded)), padding)
    error = ((decoded / 2 + 0.5).clamp(0, 1) - image).square().mean()
    return float(-10 * error.log10())


def main(arguments: list[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, help="default: four photographs of scikit-image")
    parser.add_argument("--weights", type=Path, default=DEFAULT_WEIGHTS)
    options = parser.parse_args(arguments)
    pipe = ZeroStereoPipeline.from_pretrained(options.weights)
    print("| Photograph | Round trip, dB |\n| --- | ---: |")
    for name, picture in load_photos(options.photos):
        print(f"| {name} | {round_trip_psnr(pipe, picture):.1f} |")


if __name__ == "__main__":
    main()
