"""Pictures as people have them, at every door through which a picture comes in."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from autotelic.types import Rollout, Task

from .cases import Gives, Refuses, Required, case

NOTHING = torch.zeros(1)


# --- the doors: a picture of any kind -> what arrives there, as uint8 [H, W, 3] ---------------------------------------


def by_opener(picture: Any, folder: Path) -> np.ndarray:
    from autotelic.images import as_pil

    return np.asarray(as_pil(picture, "the picture"))


def by_reward(picture: Any, folder: Path) -> np.ndarray:
    from autotelic.rewards.image.images import as_uint8

    return as_uint8([picture])[0]


def by_own_reward(picture: Any, folder: Path) -> np.ndarray:
    """What a reward of one's own finds in the column ``images``: PIL images, as TRL hands them."""
    from autotelic.trainers.scoring import score

    seen: list[Any] = []

    def looks(completions: Any, images: Any, **_: Any) -> list[float]:
        seen.extend(images[0])
        return [1.0] * len(completions)

    task = Task("asked", "what is this?", images=(picture,))
    score([Rollout(task, "a cat", {}, NOTHING, NOTHING.bool(), NOTHING.long())], looks)
    assert isinstance(seen[0], Image.Image), type(seen[0]).__name__
    return np.asarray(seen[0])


def by_judge(picture: Any, folder: Path) -> np.ndarray:
    from autotelic.rewards.models.judge import YesNoJudge
    from autotelic.trainers.scoring import score

    seen: list[Any] = []

    def asker(questions: Any) -> list[float]:
        seen.extend(part for question in questions for part in question if not isinstance(part, str))
        return [0.5] * len(questions)

    task = Task("asked", "what is this?", images=(picture,))
    score([Rollout(task, "a cat", {}, NOTHING, NOTHING.bool(), NOTHING.long())], YesNoJudge(asker=asker))
    return np.asarray(seen[0])


def by_crop(picture: Any, folder: Path) -> np.ndarray:
    from autotelic.vlm.conversation import Turn
    from autotelic.vlm.tools import Crop, ToolBox

    def whole(images: Any) -> Any:
        return Crop(size=8)(images, [0, 0, 10**6, 10**6])

    turn = Turn('<tool_call>{"name": "whole", "arguments": {}}</tool_call>')
    reply = ToolBox({"whole": whole})(Task("asked", "?", images=(picture,)), [turn])
    return np.asarray(reply.images[0])


def by_pairs(picture: Any, folder: Path) -> np.ndarray:
    from autotelic.diffusion.offline import read_pairs

    Image.new("RGB", (4, 8)).save(folder / "other.png")
    row = {"prompt": "a cat", "chosen": Path(picture).name, "rejected": "other.png"}
    (folder / "pairs.jsonl").write_text(json.dumps(row))
    _, chosen, _ = read_pairs(folder / "pairs.jsonl", (8, 4))[0]
    return (chosen.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


DOORS: dict[str, tuple[str, Callable[[Any, Path], np.ndarray]]] = {
    "opener": ("core", by_opener),
    "reward": ("core", by_reward),
    "own reward": ("vlm", by_own_reward),
    "judge": ("vlm", by_judge),
    "crop": ("vlm", by_crop),
    "pairs": ("diffusion", by_pairs),
}


# --- the pictures: 4 wide, 8 high -------------------------------------------------------------------------------------


def saved(folder: Path, image: Image.Image, name: str, **options: Any) -> str:
    image.save(folder / name, **options)
    return str(folder / name)


def plain(folder: Path) -> str:
    return saved(folder, Image.new("RGB", (4, 8), (250, 100, 0)), "plain.png")


def lying(folder: Path) -> str:
    """A phone's photograph: stored 8 wide and 4 high, with the word that it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (8, 4), (200, 0, 0))
    image.paste((10, 200, 30), (0, 0, 4, 4))  # on the left as it is stored, above as it is meant
    return saved(folder, image, "lying.png", exif=exif)


def deep(folder: Path) -> str:
    return saved(folder, Image.fromarray(np.full((8, 4), 32896, np.uint16)), "deep.png")


def floating(folder: Path) -> str:
    return saved(folder, Image.fromarray(np.full((8, 4), 0.2, np.float32)), "float.tiff")


def whole_numbers(folder: Path) -> str:
    return saved(folder, Image.fromarray(np.full((8, 4), 32896, np.int32)), "numbers.tiff")


def see_through(folder: Path) -> str:
    return saved(folder, Image.new("RGBA", (4, 8), (0, 0, 0, 0)), "clear.png")


def half_clear(folder: Path) -> str:
    return saved(folder, Image.new("LA", (4, 8), (0, 51)), "half.png")


def clear_colour(folder: Path) -> str:
    """A palette whose colour 0, black, is declared transparent."""
    image = Image.new("P", (4, 8), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return saved(folder, image, "palette.png", transparency=0)


def four_inks(folder: Path) -> str:
    return saved(folder, Image.new("CMYK", (4, 8), (0, 255, 255, 0)), "inks.tiff")


def bilevel(folder: Path) -> str:
    return saved(folder, Image.new("1", (4, 8), 1), "bits.png")


PICTURES: dict[str, tuple[Callable[[Path], str], tuple[int, int, int]]] = {
    "a plain file": (plain, (250, 100, 0)),
    "EXIF orientation": (lying, (10, 200, 30)),
    "16-bit grey": (deep, (128, 128, 128)),
    "floats in a TIFF": (floating, (51, 51, 51)),
    "32-bit grey": (whole_numbers, (128, 128, 128)),
    "transparency": (see_through, (255, 255, 255)),
    "grey with transparency": (half_clear, (204, 204, 204)),
    "a transparent palette": (clear_colour, (255, 255, 255)),
    "CMYK": (four_inks, (255, 0, 0)),
    "one bit": (bilevel, (255, 255, 255)),
}


def _state(door: str, picture: str) -> None:
    modality, enter = DOORS[door]
    make, colour = PICTURES[picture]

    @case(
        f"vlm A5, A13: {picture} at the {door}",
        kind="two doors",
        modality=modality,
        entry=door,
        required=Gives([8, 4, *colour]),
        by="user",
    )
    def entered(folder: Path) -> object:
        seen = enter(make(folder), folder)
        return [*seen.shape[:2], *(int(value) for value in seen[1, 3])]


for _door in DOORS:
    for _picture in PICTURES:
        _state(_door, _picture)


# --- what is no picture -----------------------------------------------------------------------------------------------


def truncated(folder: Path) -> str:
    rough = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = Path(saved(folder, Image.fromarray(rough), "cut.jpg"))
    path.write_bytes(path.read_bytes()[:1500])
    return str(path)


def hostile(folder: Path) -> str:
    """A PNG whose header is right and whose data is noise."""
    path = Path(plain(folder))
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT") + 4
    data[start:-12] = np.random.default_rng(0).integers(0, 256, len(data) - 12 - start, np.uint8).tobytes()
    (folder / "hostile.png").write_bytes(bytes(data))
    return str(folder / "hostile.png")


def bomb(folder: Path) -> str:
    """Few bytes that promise 900 million pixels."""
    file = io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bytes(data))
    return str(folder / "bomb.png")


def program(folder: Path) -> str:
    """PostScript is a program: an opener that draws it runs it."""
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 setgray\nshowpage\n%%EOF\n"
    (folder / "program.eps").write_text(text)
    return str(folder / "program.eps")


def text_file(folder: Path) -> str:
    (folder / "words.png").write_text("no picture")
    return str(folder / "words.png")


def nothing_there(folder: Path) -> str:
    return str(folder / "absent.png")


def a_folder(folder: Path) -> str:
    return str(folder)


def loud(folder: Path) -> Any:
    return np.full((8, 4, 3), 37.0, np.float32)


def not_finite(folder: Path) -> Any:
    return np.full((8, 4, 3), np.nan, np.float32)


def deep_heat(folder: Path) -> str:
    """Degrees in a float TIFF: no brightness in 0..1."""
    return saved(folder, Image.fromarray(np.full((8, 4), 36.6, np.float32)), "heat.tiff")


def nan_file(folder: Path) -> str:
    return saved(folder, Image.fromarray(np.full((8, 4), np.nan, np.float32)), "nan.tiff")


def number(folder: Path) -> Any:
    return 7


NO_PICTURES: dict[str, tuple[Callable[[Path], Any], Required]] = {
    "a truncated file": (truncated, Refuses("the picture cannot be decoded.*cut.jpg")),
    "a hostile file": (hostile, Refuses("the picture cannot be decoded.*hostile.png")),
    "a decompression bomb": (bomb, Refuses("the picture.*pixels.*make it smaller")),
    "a program": (program, Refuses("the picture.*EPS")),
    "a text": (text_file, Refuses("the picture cannot be decoded.*words.png")),
    "nothing": (nothing_there, Refuses("the picture.*no file.*absent.png")),
    "a folder": (a_folder, Refuses("the picture.*no file")),
    "floats up to 37": (loud, Refuses("the picture.*37")),
    "NaN": (not_finite, Refuses("the picture.*not finite")),
    "degrees": (deep_heat, Refuses("the picture.*36.6")),
    "NaN in a file": (nan_file, Refuses("the picture.*not finite")),
    "a number": (number, Refuses("the picture.*no image but int")),
}


def _refuse(name: str) -> None:
    make, required = NO_PICTURES[name]

    @case(
        f"vlm A13: {name} is no picture",
        kind="two doors",
        modality="core",
        entry="opener",
        required=required,
        by="user",
    )
    def entered(folder: Path) -> object:
        return by_opener(make(folder), folder)[0, 0].tolist()


for _name in NO_PICTURES:
    _refuse(_name)


ARRAYS: dict[str, Callable[[], Any]] = {
    "uint8 [H, W, 3]": lambda: np.full((8, 4, 3), 51, np.uint8),
    "uint8 [3, H, W]": lambda: np.full((3, 8, 4), 51, np.uint8),
    "uint16 [H, W, 3]": lambda: np.full((8, 4, 3), 13107, np.uint16),
    "float64 [H, W, 3]": lambda: np.full((8, 4, 3), 0.2),
    "a tensor [3, H, W]": lambda: torch.full((3, 8, 4), 0.2),
    "a half tensor [H, W, 3]": lambda: torch.full((8, 4, 3), 0.2, dtype=torch.bfloat16),
    "a tensor with gradient": lambda: torch.full((3, 8, 4), 0.2, requires_grad=True),
    "bytes": lambda: _png(Image.new("RGB", (4, 8), (51, 51, 51))),
    "a row of datasets": lambda: {"bytes": _png(Image.new("RGB", (4, 8), (51, 51, 51))), "path": None},
}


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _array(name: str) -> None:
    @case(
        f"vlm A13: {name} as a picture",
        kind="two doors",
        modality="core",
        entry="opener",
        required=Gives([8, 4, 51, 51, 51]),
        by="user",
    )
    def entered(folder: Path) -> object:
        seen = by_opener(ARRAYS[name](), folder)
        return [*seen.shape[:2], *(int(value) for value in seen[1, 3])]


for _name in ARRAYS:
    _array(_name)
