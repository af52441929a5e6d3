"""Inference of pretrained encoders at their published sizes, against the originals of ``transformers``."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import numpy as np

from benchmarks.cases.peers import import_torchvision
from benchmarks.cases.sides import Row, Side, Variant, check, jax_flops, size, torch_flops, torch_size
from xmodal_jax.pretrained.encoder import EncoderOptions
from xmodal_jax.pretrained.load import complete_config, make_module

LENGTH, CLIP_LENGTH, IMAGE = 128, 77, 224
BATCHES = (1, 32)
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "bert": (
        {"model_type": "bert"},
        f"BERT-base, {LENGTH} tokens of which a quarter is padding, to its pool",
    ),
    "vit": ({"model_type": "vit"}, f"ViT-B/16, images of {IMAGE} x {IMAGE}, to its pool"),
    "resnet50": ({"model_type": "resnet"}, f"ResNet-50, images of {IMAGE} x {IMAGE}, to its pool"),
    "clip": (
        {"model_type": "clip"},
        f"CLIP ViT-B/32, images of {IMAGE} x {IMAGE} and as many texts of {CLIP_LENGTH} tokens, to their embeddings",
    ),
}
"""Configurations, whose defaults are the published sizes, and descriptions of the work."""

FIELDS = {"text": ("text", "mask"), "image": ("image",)}

ROWS = tuple(
    Row(
        f"{name}_{batch}",
        f"inference: {what}, batch {batch}",
        f"{name}_{batch}",
        (f"eager {name}_{batch}", f"compile {name}_{batch}"),
        goal=1.0,
    )
    for name, (_, what) in MODELS.items()
    for batch in BATCHES
)


def inputs(name: str, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    if name in ("bert", "clip"):
        length = LENGTH if name == "bert" else CLIP_LENGTH
        arrays["text"] = rng.integers(1000, 30000, (batch, length)).astype(np.int32)
        arrays["mask"] = np.broadcast_to(np.arange(length) < length * 3 // 4, (batch, length)).copy()
    if name != "bert":
        arrays["image"] = rng.uniform(-1, 1, (batch, IMAGE, IMAGE, 3)).astype(np.float32)
    return arrays


def jax_side() -> Side:
    variants, sizes, flops = {}, {}, {}
    for name, (config, _) in MODELS.items():
        filled = complete_config(config)
        head = EncoderOptions(head="project" if name == "clip" else "pool")
        modules, params = {}, {}
        for modality in ("text", "image") if name == "clip" else ("text",) if name == "bert" else ("image",):
            modules[modality] = module = make_module(modality, filled, head)
            init = jax.jit(
                lambda key, module=module: module.init(key, *module.example_inputs(), method="embed")
            )
            params[modality] = init(jax.random.key(0))

        def embed(params, batch, modules=modules):
            return {
                m: module.apply(params[m], *(batch[field] for field in FIELDS[m]), method="embed")
                for m, module in modules.items()
            }

        run = jax.jit(embed)
        for batch in BATCHES:
            x = jax.device_put(inputs(name, batch))

            def call(run=run, params=params, x=x):
                check(sum(leaf[0, 0] for leaf in jax.tree.leaves(jax.block_until_ready(run(params, x)))))

            variants[f"{name}_{batch}"] = Variant(call)
            sizes[f"{name}_{batch}"] = size(params)
            flops[f"{name}_{batch}"] = jax_flops(embed, params, x)
    return Side(variants, sizes, flops)


def torch_side() -> Side:
    import torch

    import_torchvision()
    transformers = importlib.import_module("transformers")
    variants, sizes, flops = {}, {}, {}
    for name, (config, _) in MODELS.items():
        torch.manual_seed(0)
        kind = dict(bert="BertModel", vit="ViTModel", resnet50="ResNetModel", clip="CLIPModel")[name]
        config = transformers.AutoConfig.for_model(**config)
        model = getattr(transformers, kind)(config).eval()
        for batch in BATCHES:
            x = inputs(name, batch)
            arguments = {}
            if "text" in x:
                arguments = dict(
                    input_ids=torch.from_numpy(x["text"]).long(), attention_mask=torch.from_numpy(x["mask"])
                )
            if "image" in x:
                arguments["pixel_values"] = torch.from_numpy(x["image"].transpose(0, 3, 1, 2).copy())

            def embed(model=model, arguments=arguments):
                out = model(**arguments)
                # Return both embeddings, as torch.compile removes computations whose results are not used.
                return (
                    (out.text_embeds, out.image_embeds)
                    if "input_ids" in arguments and "pixel_values" in arguments
                    else (out.pooler_output,)
                )

            for variant, function in (("eager", embed), ("compile", torch.compile(embed))):

                def call(function=function):
                    with torch.inference_mode():
                        check(sum(x.flatten()[0].item() for x in function()))

                variants[f"{variant} {name}_{batch}"] = Variant(call)
            sizes[f"{name}_{batch}"] = torch_size(model)
            with torch.inference_mode():
                flops[f"{name}_{batch}"] = torch_flops(embed)
    return Side(variants, sizes, flops)
