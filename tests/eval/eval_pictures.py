"""Small pictures for the tests of `lalic.eval`."""

from importlib import resources

from PIL import Image


def crop(left: int, top: int, width: int = 192, height: int = 176) -> Image.Image:
    """A part of the picture that ships, large enough for five scales of MS-SSIM."""
    with Image.open(resources.files("lalic").joinpath("assets", "astronaut.png").open("rb")) as picture:
        return picture.convert("RGB").crop((left, top, left + width, top + height))
