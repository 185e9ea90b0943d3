import base64
import http.server
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import sklearn
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import SearchResult, Session, Splits, split_by_query
from embedding_studio.errors import IterationError, MethodError, NotEnoughData
from embedding_studio.labels import LabelledResult
from embedding_studio.training.augmentation import Augmentation
from embedding_studio.training.encoder import embed_frozen, load_encoder
from embedding_studio.training.images import (
    PreparedImages,
    image_of,
    open_image_clicks,
    prepare_image_clicks,
)
from tests.strangers import OK, Server, endless
from tests.training.test_decoding import black as black_png
from tests.training.tiny import WORDS
from tests.training.tiny_clip import SIZE, icon_searches, write_tiny_clip

PHOTO = Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    return load_encoder(write_tiny_clip(tmp_path_factory.mktemp("models") / "clip"))


@pytest.fixture(autouse=True)
def allow_files(monkeypatch: pytest.MonkeyPatch, icons: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("ES_ALLOWED_ROOTS", f"{icons},{tmp_path},s3://shop/photos")


@pytest.fixture(scope="module")
def icons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an icon per word."""
    return tmp_path_factory.mktemp("images") / "some icons"


@pytest.fixture(scope="module")
def sessions(icons: Path) -> Splits[list[Session]]:
    return split_by_query(icon_searches(icons, 3000))


@pytest.fixture(scope="module")
def website(icons: Path, sessions: Splits[list[Session]]) -> Iterator[str]:
    """The icons over HTTP; every path is answered with 503 when it is first asked for."""
    asked: set[str] = set()

    class Flaky(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path in asked:
                super().do_GET()
            else:
                asked.add(self.path)
                self.send_error(503)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Flaky, directory=icons))
    with server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def word_of(result: SearchResult) -> str:
    return result.object_id.split()[0]


def prepared(
    sessions: Splits[list[Session]],
    model: SentenceTransformer,
    folder: Path,
    elsewhere: Mapping[str, str | None],
) -> tuple[PreparedImages, list[str], Mapping[str, float]]:
    """Prepare with some words' images elsewhere; return images, the words in order, figures."""

    def address(result: SearchResult) -> str | None:
        return elsewhere.get(word_of(result), image_of(result))

    folder.mkdir(exist_ok=True)
    figures = prepare_image_clicks(sessions, address, model, folder, allow_private=True)
    everyone = sessions.train + sessions.validation + sessions.test
    words = dict.fromkeys(word_of(r) for session in everyone for r in session.search_results)
    return open_image_clicks(folder).train.images, list(words), figures


def pixels_of(images: PreparedImages, number: int) -> torch.Tensor:
    found: torch.Tensor = images.features(np.array([number]))["pixel_values"][0].cpu()
    return found


def own_pixels(model: SentenceTransformer, image: Image.Image) -> torch.Tensor:
    found: torch.Tensor = model.preprocess([image])["pixel_values"][0]
    return found


@pytest.mark.slow
def test_images_are_what_the_models_own_processor_makes(
    model: SentenceTransformer, icons: Path, sessions: Splits[list[Session]], tmp_path: Path
) -> None:
    """A photograph, grey, palette and transparent images: pixels and vectors as in `encode`."""
    photo = Image.open(PHOTO)
    pictures = {
        "apple": photo,
        "bird": photo.convert("L"),
        "cloud": photo.convert("P"),
        "door": Image.merge("RGBA", (*photo.split(), photo.convert("L"))),
    }
    elsewhere = {word: str(tmp_path / f"{word}.png") for word in pictures}
    for word, picture in pictures.items():
        picture.save(elsewhere[word])
    images, words, _ = prepared(sessions, model, tmp_path / "data", elsewhere)
    vectors = embed_frozen(model, images, np.arange(len(images)))
    for word in (*pictures, "fish"):
        picture = pictures.get(word) or Image.open(icons / f"{word}.png")
        expected = own_pixels(model, picture.convert("RGB"))
        torch.testing.assert_close(pixels_of(images, words.index(word)), expected)
        encoded = model.encode(picture.convert("RGB"), normalize_embeddings=True)
        assert vectors[words.index(word)] == pytest.approx(encoded, abs=1e-5)


def test_a_sideways_photograph_is_set_upright(
    model: SentenceTransformer, sessions: Splits[list[Session]], tmp_path: Path
) -> None:
    """A camera's note on how it was held is obeyed."""
    photo, exif = Image.open(PHOTO), Image.Exif()
    exif[0x0112] = 6  # turn clockwise to view
    photo.save(tmp_path / "held.png", exif=exif)
    elsewhere = {"apple": str(tmp_path / "held.png")}
    images, words, _ = prepared(sessions, model, tmp_path / "data", elsewhere)
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    torch.testing.assert_close(pixels_of(images, words.index("apple")), own_pixels(model, upright))


def test_images_come_from_files_the_web_and_data_uris(
    model: SentenceTransformer,
    icons: Path,
    sessions: Splits[list[Session]],
    website: str,
    tmp_path: Path,
) -> None:
    """An image is the same wherever it lies; an overloaded server is asked again."""
    encoded = base64.b64encode((icons / "cloud.png").read_bytes()).decode()
    elsewhere = {
        "apple": (icons / "apple.png").as_uri(),
        "bird": f"{website}/bird.png",
        "cloud": f"data:image/png;base64,{encoded}",
    }
    images, words, figures = prepared(sessions, model, tmp_path / "data", elsewhere)
    assert figures["unreadable_images"] == 0
    for word in elsewhere:
        expected = own_pixels(model, Image.open(icons / f"{word}.png"))
        torch.testing.assert_close(pixels_of(images, words.index(word)), expected)


def test_unreadable_images_are_left_out_and_counted(
    model: SentenceTransformer, sessions: Splits[list[Session]], website: str, tmp_path: Path
) -> None:
    """No file, no such page, no image, half an image, a protocol that is not spoken, no address."""
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "half.jpg").write_bytes(PHOTO.read_bytes()[:9999])
    elsewhere: dict[str, str | None] = {
        "apple": str(tmp_path / "nowhere.png"),
        "bird": f"{website}/nowhere.png",
        "cloud": str(tmp_path / "text.png"),
        "door": str(tmp_path / "half.jpg"),
        "eagle": f"simplecache::{website}/eagle.png",
        "fish": None,
    }
    images, _, figures = prepared(sessions, model, tmp_path / "data", elsewhere)
    everyone = sessions.train + sessions.validation + sessions.test
    shown = [word_of(result) for session in everyone for result in session.search_results]
    assert figures["unreadable_images"] == 5
    assert figures["results_left_out"] == sum(word in elsewhere for word in shown)
    assert figures["items"] == len(images) == len(WORDS) - 6


def test_mostly_unreadable_images_are_an_error(
    model: SentenceTransformer, sessions: Splits[list[Session]], tmp_path: Path
) -> None:
    """The message names one of them: what it belongs to, where it should be, what happened."""
    gone: dict[str, str | None] = {word: f"{tmp_path}/{word}.png" for word in WORDS[:16]}
    with pytest.raises(
        NotEnoughData,
        match=r"16 of 30 images .* object_id '(\w+) \1', /.*/\1.png: FileNotFoundError",
    ):
        prepared(sessions, model, tmp_path / "data", gone)


def test_files_are_read_below_allowed_roots_only(
    model: SentenceTransformer,
    icons: Path,
    sessions: Splits[list[Session]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without one, those that are there and those that are not are refused for one reason."""
    monkeypatch.delenv("ES_ALLOWED_ROOTS")
    reasons = set()
    for folder in (icons, Path("/nowhere")):

        def address(shown: SearchResult, folder: Path = folder) -> str:
            return f"{folder}/{word_of(shown)}.png"

        with pytest.raises(NotEnoughData, match="30 of 30 images") as refused:
            prepare_image_clicks(sessions, address, model, tmp_path)
        reasons.add(str(refused.value).rpartition("ForbiddenAddress")[2])
    assert reasons == {": it is not below one of ES_ALLOWED_ROOTS"}


def test_images_that_would_take_too_long_are_left_out(
    model: SentenceTransformer,
    sessions: Splits[list[Session]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half of the time that the preparation has is for images; the refusal says so."""
    monkeypatch.setenv("ES_MAX_JOB_MINUTES", "1e-9")
    with pytest.raises(NotEnoughData, match=r"30 of 30 .* half of ES_MAX_JOB_MINUTES"):
        prepared(sessions, model, tmp_path / "data", {})


def test_images_that_would_fill_the_disk_are_not_begun(
    model: SentenceTransformer,
    sessions: Splits[list[Session]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few bytes of an address become 150 kB of pixels: half of what is free is left to others."""
    needed = 30 * 3 * SIZE * SIZE
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * needed - 1))
    with pytest.raises(IterationError, match=rf"{needed:,} bytes .* smaller batches"):
        prepared(sessions, model, tmp_path / "data", {})


def test_images_that_cost_too_much_are_left_out(
    model: SentenceTransformer, sessions: Splits[list[Session]], tmp_path: Path
) -> None:
    """A device, a FIFO, a server that drips, one without end, a picture of too many pixels."""
    os.mkfifo(tmp_path / "fifo")
    dripping, endless_one = Server(), Server()
    dripping.answer = endless(OK, b"a", pause=0.02)
    endless_one.answer = endless(OK + b"\r\n", b"x" * 100_000)
    black = base64.b64encode(black_png(13_350, 13_350)).decode()
    elsewhere: dict[str, str | None] = {
        "apple": "/dev/zero",
        "bird": str(tmp_path / "fifo"),
        "cloud": dripping.url,
        "door": endless_one.url,
        "eagle": f"data:image/png;base64,{black}",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ES_ALLOWED_ROOTS", f"/dev,{os.environ['ES_ALLOWED_ROOTS']}")
        patch.setenv("ES_MAX_ITEM_SECONDS", "0.3")
        patch.setenv("ES_MAX_ITEM_MB", "1")
        _, _, figures = prepared(sessions, model, tmp_path / "data", elsewhere)
    assert figures["unreadable_images"] == len(elsewhere)
    dripping.close()
    endless_one.close()


def test_results_without_images_are_an_error_that_says_what_to_do(
    model: SentenceTransformer, sessions: Splits[list[Session]], tmp_path: Path
) -> None:
    """The message names an object and the key that is missing."""
    with pytest.raises(NotEnoughData, match=r'object_id .* meta \{"image"'):
        prepare_image_clicks(sessions, lambda result: None, model, tmp_path)


def test_images_in_private_networks_are_not_fetched(
    model: SentenceTransformer, sessions: Splits[list[Session]], tmp_path: Path
) -> None:
    """Who posts sessions cannot make the worker ask its neighbours, unless the operator allows."""
    with pytest.raises(NotEnoughData, match=r"ForbiddenAddress: 127\.0\.0\.1 .* private network"):
        prepare_image_clicks(
            sessions, lambda shown: f"http://127.0.0.1:9/{shown.object_id}.png", model, tmp_path
        )


def test_a_text_model_is_refused(
    tiny_model_folder: Path, sessions: Splits[list[Session]], tmp_path: Path
) -> None:
    """The message names the setting."""
    with pytest.raises(MethodError, match="ES_INITIAL_IMAGE_MODEL"):
        prepare_image_clicks(sessions, image_of, load_encoder(tiny_model_folder), tmp_path)


def test_images_of_one_content_are_one_item(
    model: SentenceTransformer, icons: Path, sessions: Splits[list[Session]], tmp_path: Path
) -> None:
    """A copy at another address adds nothing."""
    copy = tmp_path / "copy.png"
    copy.write_bytes((icons / "apple.png").read_bytes())
    images, _, figures = prepared(sessions, model, tmp_path / "data", {"bird": str(copy)})
    assert figures["items"] == len(images) == len(WORDS) - 1
    assert figures["unreadable_images"] == figures["results_left_out"] == 0


def test_labelled_images_are_items(
    sessions: Splits[list[Session]], model: SentenceTransformer, tmp_path: Path
) -> None:
    """Without any session: what results show may be labelled, too."""
    first: dict[str, SearchResult] = {}
    for session in sessions.train:
        for result in session.search_results:
            first.setdefault(word_of(result), result)

    def labels(begin: int, count: int) -> list[LabelledResult]:
        numbered = [(n, WORDS[n % len(WORDS)]) for n in range(begin, begin + count)]
        return [LabelledResult(f"{word} {n}", first[word], 1.0) for n, word in numbered]

    taught = Splits(labels(0, 30), labels(30, 9), labels(39, 9))
    none: Splits[list[Session]] = Splits([], [], [])
    figures = prepare_image_clicks(none, image_of, model, tmp_path, labels=taught)
    lists = open_image_clicks(tmp_path)
    assert (len(lists.train), len(lists.test), figures["unreadable_images"]) == (30, 9, 0)
    assert len(np.unique(lists.train.items)) == 30


def test_pixels_are_memory_mapped_without_pickle(
    model: SentenceTransformer, sessions: Splits[list[Session]], tmp_path: Path
) -> None:
    """A byte per value; nothing on disk but plain arrays and JSON."""
    images, words, _ = prepared(sessions, model, tmp_path / "data", {})
    assert isinstance(images.pixels, np.memmap)
    assert images.pixels.shape == (len(words), 3, SIZE, SIZE)
    assert images.pixels.dtype == np.uint8
    assert images.lengths(np.arange(3)).tolist() == [17, 17, 17]
    assert {file.suffix for file in (tmp_path / "data").iterdir()} == {".npy", ".json"}


def by_hand() -> PreparedImages:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, SIZE, SIZE), dtype=np.uint8)
    return PreparedImages(pixels, np.array([2, 0]), (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), 17)


def test_pixels_are_normalised_at_use() -> None:
    """(value / 255 - mean) / std of each channel, in the order of the rows."""
    images = by_hand()
    red, green, _ = pixels_of(images, 0)
    assert float(red[0, 0]) == pytest.approx((images.pixels[2, 0, 0, 0] / 255 - 0.5) / 0.1)
    assert float(green[3, 4]) == pytest.approx((images.pixels[2, 1, 3, 4] / 255 - 0.4) / 0.2)


def test_only_training_sees_augmented_images() -> None:
    """Without gradients images are as they are; with them they differ from call to call."""
    images = by_hand()
    augmented = images.augmented(Augmentation(chance=0.9), seed=0)
    with torch.no_grad():
        assert pixels_of(augmented, 0).equal(pixels_of(images, 0))
    with torch.inference_mode():
        assert pixels_of(augmented, 0).equal(pixels_of(images, 0))
    first, second = pixels_of(augmented, 0), pixels_of(augmented, 0)
    assert not first.equal(pixels_of(images, 0))
    assert not first.equal(second)
    again = images.augmented(Augmentation(chance=0.9), seed=0)
    assert first.equal(pixels_of(again, 0))


def test_images_that_nothing_befalls_are_fixed() -> None:
    """What frozen layers make of them may be kept; of augmented ones it may not."""
    images = by_hand()
    assert images.is_fixed
    assert images.augmented(Augmentation(chance=0.0), seed=0) is images
    assert not images.augmented(Augmentation(), seed=0).is_fixed


def test_images_in_s3_may_be_named_by_bucket_and_file(
    model: SentenceTransformer,
    icons: Path,
    sessions: Splits[list[Session]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """meta {"bucket", "file"} is the address of the object in S3; {"image"} goes before it."""
    photo = PHOTO.read_bytes()
    in_memory = SimpleNamespace(
        cat_file=lambda path, **bounds: {"shop/photos/a b.jpg": photo}[path]
    )
    own = fsspec.filesystem
    monkeypatch.setattr(fsspec, "filesystem", lambda name: in_memory if name == "s3" else own(name))
    result = SearchResult("apple", meta={"bucket": "shop", "file": "/photos/a b.jpg"})
    images, words, figures = prepared(sessions, model, tmp_path, {"apple": image_of(result)})
    assert figures["unreadable_images"] == 0
    own_look = own_pixels(model, Image.open(PHOTO))
    torch.testing.assert_close(pixels_of(images, words.index("apple")), own_look)
    here = SearchResult("apple", meta={**result.meta, "image": "here.png"})
    assert image_of(here) == "here.png"


@pytest.mark.parametrize("meta", [{"bucket": "b"}, {"file": "f"}, {"bucket": 1, "file": "f"}, {}])
def test_half_an_address_is_none(meta: dict[str, object]) -> None:
    """Without both bucket and file a result has no image."""
    assert image_of(SearchResult("a", meta=meta)) is None
