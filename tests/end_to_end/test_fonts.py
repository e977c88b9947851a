"""Text in pictures: fontconfig finds the fonts of the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.container import Container, pull
from tests.support.server import Server

pytestmark = pytest.mark.xdist_group("debian")

_PICTURE = """<svg xmlns="http://www.w3.org/2000/svg" width="200" height="50">
<text x="5" y="35" font-family="{family}" font-size="30">{word}</text></svg>
"""


@pytest.fixture(scope="module")
def fonts(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    name = "bash/coreutils/librsvg2-bin/fonts-dejavu-core"
    return pull(server.port, name, "latest", tmp_path_factory.mktemp("fonts"))


def pictures(
    container: Container, directory: Path, user: int, files: Mapping[str, Path], family: str = "sans-serif"
) -> list[str]:
    """Render two words of different letters."""
    files = dict(files)
    for word in ("Hello", "World"):
        picture = directory / f"{word}.svg"
        picture.write_text(_PICTURE.format(word=word, family=family))
        files[f"/srv/{word}.svg"] = picture
    script = "rsvg-convert /srv/$0.svg | base64 --wrap=0"
    return [
        container.run("bash", "-c", script, word, user=user, files=files, env={"HOME": "/"})
        for word in ("Hello", "World")
    ]


@pytest.mark.parametrize("user", [0, 1000])
def test_text_is_rendered_with_the_fonts_of_the_image(fonts: Container, tmp_path: Path, user: int) -> None:
    first, second = pictures(fonts, tmp_path, user, {})
    # fontconfig would report errors, such as a cache that it cannot write to, in the same output.
    assert first.startswith("iVBORw0KGgo")
    assert first != second
    # Without a font, all letters are the same box.
    empty = tmp_path / "empty"
    empty.mkdir()
    first, second = pictures(fonts, tmp_path, user, {"/usr/share/fonts": empty})
    assert first == second


def test_fonts_of_the_closure_are_found_without_a_request(server: Server, tmp_path: Path) -> None:
    container = pull(server.port, "bash/coreutils/librsvg2-bin/poster", "latest", tmp_path)
    first, second = pictures(container, tmp_path, 1000, {}, "Inconsolata")
    assert first != second
    assert first != pictures(container, tmp_path, 1000, {})[0]


@pytest.mark.parametrize("user", [0, 1000])
def test_imagemagick_writes_text(magick: Container, user: int) -> None:
    script = "convert -size 200x50 label:$0 png:- | base64 --wrap=0"
    first, second = (magick.run("bash", "-c", script, word, user=user) for word in ("Hello", "World"))
    assert first.startswith("iVBORw0KGgo")
    assert first != second


@pytest.fixture(scope="module")
def magick(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Container:
    name = "bash/coreutils/imagemagick/fonts-urw-base35"
    return pull(server.port, name, "latest", tmp_path_factory.mktemp("magick"))
