"""CLIP from a Hugging Face folder, used as it is."""

import numpy as np
import pytest
from PIL import Image

from tests.pretrained import checkpoints, peers
from xmodal_jax.inference import load

TEXTS = ["a red circle", "two blue rings", "star"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hf")
    checkpoints.write_all(root)
    return root


def pictures():
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 255, size).astype(np.uint8)) for size in ((16, 16, 3), (40, 40, 3))
    ]


def test_clip_gives_the_probabilities_of_transformers(folders):
    torch, transformers = peers.import_transformers()
    folder = folders / "clip"
    clip = transformers.CLIPModel.from_pretrained(folder, trust_remote_code=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    size = {"height": 16, "width": 16}
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
    words = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        pixels = processor(pictures(), return_tensors="pt")["pixel_values"]
        expected = clip(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"], pixel_values=pixels
        ).logits_per_image
    model = load(f"hf:{folder}")
    found = model.scale * model.similarity(model.embed(images=pictures()), model.embed(texts=TEXTS))
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-3)
    probabilities = torch.softmax(expected, dim=1).numpy()
    np.testing.assert_allclose(model.classify(TEXTS, images=pictures()).scores, probabilities, atol=2e-3)


def test_a_folder_without_a_shared_space_is_refused(folders):
    with pytest.raises(ValueError, match="bert"):
        load(f"hf:{folders / 'bert'}")
    with pytest.raises(FileNotFoundError):
        load(f"hf:{folders / 'none'}")
    with pytest.raises(ValueError, match="leave out best and seed"):
        load(f"hf:{folders / 'clip'}", best=True)
