"""The conditional GAN: images of a class, a sentence or its words."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.core import collectives, trees
from xmodal_jax.core.random import example_keys, fold_in_name
from xmodal_jax.core.similarity import l2_normalize
from xmodal_jax.losses import adversarial, penalties, sequence
from xmodal_jax.losses.contrastive import info_nce
from xmodal_jax.losses.word_region import word_region_loss
from xmodal_jax.models.contrastive import text_ids
from xmodal_jax.models.gan.config import GANConfig
from xmodal_jax.models.gan.networks import FrozenCaptioner, Network, View, Watcher, blended
from xmodal_jax.models.towers import presence
from xmodal_jax.nets.spectral import spectral_normalize, spectral_vectors
from xmodal_jax.preprocess.gan_augment import AdaConfig, ada_augment, ada_update, diff_augment
from xmodal_jax.preprocess.image import to_float
from xmodal_jax.types import GAN, Batch, Key, Params


def make_gan(
    config: GANConfig,
    *,
    shape: tuple[int, int, int],
    vocab_size: int = 0,
    length: int = 0,
    classes: int = 0,
    text: Params | None = None,
    captioner: FrozenCaptioner | None = None,
    watcher: Watcher | None = None,
) -> GAN:
    r"""Images of ``shape`` (height, width, channels) as the batch's captions or labels ask for.

    The batch holds ``image`` uint8, and ``text`` ``[B, length]`` with its mask or ``label`` (-1 is unknown) as
    ``config.condition`` has it. An example that lacks one of them has no influence. ``text``: parameters of a text
    encoder that both players use as it is, in place of one of their own. ``captioner``: trained on real images; it is
    shown the generated ones, and what it gives for their captions is added to the generator's loss. ``watcher``: what
    the discriminator sees with (``config.projected``, ``config.perceptual_weight``) in place of the captioner.

    The discriminator minimises, with means over the global batch of the real x, the generated y and their condition c:

    .. math:: L_D(x, y \mid c) + w_p P + w_r \, CE(c \mid x) + w_s \, NCE(x, c) + w_w \, NCE_{words}(x, c)

    and the generator ``L_G`` with the same of y in place of x, where CE is what its reader needs for the condition.

    aux of the discriminator: ``d_loss`` (adversarial part), ``d_real`` and ``d_fake`` (mean logits), ``d_penalty``,
    ``d_read`` (nats per token, or of the class), ``d_sentence``, ``d_word``, ``ada``; of the generator ``g_loss``,
    ``g_read``, ``g_sentence``, ``g_word``, ``g_image``, ``g_kl``, ``g_redescription``,
    ``g_reconstruction`` and ``g_posterior_kl`` (nats per pixel and channel; per image), ``g_perceptual``.

    Raises:
      ValueError: captions without ``vocab_size`` and ``length``, classes without their number, or a configuration whose
        parts do not go together.
    """
    if config.reads and not (vocab_size and length):
        raise ValueError(f"the condition {config.condition!r} needs captions, and the data set has none")
    if captioner is not None and not config.reads:
        raise ValueError(
            f"a captioner describes images of captions, not of the condition {config.condition!r}"
        )
    if config.condition == "class" and not classes:
        raise ValueError("the condition 'class' needs labels, and the data set has none")
    sizes = dict(vocab_size=vocab_size, length=length, classes=classes)
    if watcher is not None and not (config.projected or config.perceptual_weight):
        raise ValueError(
            "a pretrained image encoder needs projected or perceptual_weight: nothing looks with it"
        )
    eyes = captioner if watcher is None else watcher
    if eyes is None:
        config = dataclasses.replace(config, projected=False, perceptual_weight=0.0)
    if config.projected:
        pixels = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        sizes["seen"] = jax.eval_shape(eyes.encode, eyes.params, pixels).shape[1:]
        sizes["attends"] = watcher is None
    network = lambda axis_name=None: Network(config, shape, text is not None, axis_name=axis_name, **sizes)
    modalities = ("image", "text") if config.reads else ("image",)

    def init(key: Key, batch: Batch):
        params, variables = network().init(key)
        if text is not None:
            variables["text"] = jax.tree.map(jnp.asarray, text)
        if captioner is not None:
            variables["captioner"] = jax.tree.map(jnp.asarray, captioner.params)
        if watcher is not None:
            variables["watcher"] = jax.tree.map(jnp.asarray, watcher.params)
        if config.spectral:
            variables["spectral"] = spectral_vectors(
                fold_in_name(key, "spectral"), _judging(params["discriminator"])
            )
        if config.lecam:
            variables["logits"] = {"real": jnp.float32(0.0), "fake": jnp.float32(0.0)}
        if config.augment == "ada":
            variables["ada"] = jnp.float32(0.0)
        return params, variables

    def generate(generator: Params, variables, batch: Batch, key: Key, *, axis_name: str | None = None):
        keys = fold_in_name(example_keys(key, batch["index"]), "generate")
        return make(generator, variables, batch, keys, rebuilt(batch), axis_name)

    def pretrain_generator(
        generator: Params, variables, batch: Batch, key: Key, *, axis_name: str | None = None
    ):
        keys = fold_in_name(example_keys(key, batch["index"]), "rehearse")
        everyone = jnp.ones(len(batch["index"]), bool)
        made, variables = make(generator, variables, batch, keys, everyone, axis_name)
        loss, aux = rebuilding(made, batch, weights(batch), axis_name)
        return loss, (aux, variables)

    def make(generator, variables, batch, keys, again, axis_name):
        """Images of what the batch asks for: of noise, or ``again`` of that which its own images are found to have."""
        net, size = network(axis_name), (config.generator.noise,)
        noise = jax.vmap(lambda k: jax.random.normal(k, size))(fold_in_name(keys, "noise"))
        condition, made = net.asked(generator, variables, batch, keys)
        if config.reconstruction_weight:
            view = pictured(batch, variables)
            found, kl = net.infer(generator, condition, view, noise, fold_in_name(keys, "posterior"))
            noise, made = jnp.where(again[:, None], found, noise), {**made, "posterior_kl": kl}
        image, statistics = net.draw(generator, variables, condition, noise, keys)
        return {**made, "image": image}, {**variables, "generator": statistics}

    def pictured(batch, variables):
        """What the posterior is shown."""
        view = viewed(to_float(batch["image"]), variables)
        if sizes.get("attends") and config.generator.name == "objects" and config.condition == "words":
            view = view._replace(
                attended=captioner.attention(variables["captioner"], view.seen, batch["text"])
            )
        return view

    def rebuilding(made, batch, which, axis_name):
        """The loss of the images of which every one in ``which`` is to be the batch's."""
        of = lambda terms: collectives.batch_mean(terms, which.astype(jnp.float32), axis_name=axis_name)
        apart = jnp.square(made["image"] - to_float(batch["image"])).sum(axis=(1, 2, 3))
        nats = apart / (2.0 * config.pixel_scale**2) + config.kl_weight * made["posterior_kl"]
        aux = {"g_posterior_kl": of(made["posterior_kl"]), "g_reconstruction": of(nats) / math.prod(shape)}
        return config.reconstruction_weight * aux["g_reconstruction"], jax.lax.stop_gradient(aux)

    def rebuilt(batch):
        """Every second example of each part that a step of the discriminator sees."""
        return (batch["index"] // config.d_steps) % 2 == 0

    def augmented(images, variables, keys):
        if config.augment == "diff":
            how = dict(color=config.color, translation=config.translation, cutout=config.cutout)
            return diff_augment(images, fold_in_name(keys, "augment"), **how)
        if config.augment == "ada":
            still = {} if config.color else dict(brightness=0.0, contrast=0.0, hue=0.0, saturation=0.0)
            own = AdaConfig(cutout=config.cutout, **still)
            return ada_augment(images, fold_in_name(keys, "augment"), variables["ada"], config=own)
        return images

    def weights(batch):
        there = presence(batch, modalities)
        ok = there["image"] & there[modalities[-1]]
        return ok & (batch["label"] >= 0) if config.condition == "class" else ok

    def names(batch):
        """Equal numbers for equal conditions."""
        return batch["label"] if config.condition == "class" else text_ids(batch["text"])

    def read(net, params, tokens, batch):
        """Nats for the condition, given the image."""
        logits = net.read(params, tokens, batch)
        if config.condition == "class":
            log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
            return -jnp.take_along_axis(log_p, jnp.maximum(batch["label"], 0)[:, None], axis=1)[:, 0]
        targets, mask = batch["text"][:, 1:], batch.get("text_mask", batch["text"] != 0)[:, 1:]
        return sequence.token_cross_entropy(logits, targets, mask)

    def shown(image, variables, keys):
        """What a discriminator is shown of images."""
        return viewed(augmented(image, variables, keys), variables)

    def viewed(image, variables):
        return View(image, looked(variables, image) if config.projected else None)

    def looked(variables, image):
        """What those trained before see in images, who judge them."""
        return eyes.encode(variables["captioner" if watcher is None else "watcher"], image)

    def agreements(net, params, tokens, condition, batch, ok, axis_name):
        """The losses of image and condition, by name: ``(share, weight)``."""
        found = {}
        mean = lambda terms: collectives.batch_mean(terms, ok.astype(jnp.float32), axis_name=axis_name)
        if config.auxiliary_weight and config.condition != "none":
            found["read"] = mean(read(net, params, tokens, batch)), config.auxiliary_weight
        if config.compares or config.word_weight:
            seen = net.compare(params, tokens, condition)
            alike = dict(present=ok, match=names(batch), duplicates="positive", axis_name=axis_name)
        if config.compares:
            terms = info_nce(seen.image, seen.condition, temperature=config.temperature, **alike)
            found["sentence"] = mean(terms), config.sentence_weight
        if config.word_weight:
            mask = condition.words.mask
            terms = word_region_loss(seen.words, mask, seen.regions, **alike)
            found["word"] = mean(terms), config.word_weight
        return found

    def d_loss(
        params: Params, variables, batch: Batch, made, key: Key, step, *, axis_name: str | None = None
    ):
        net, ok = network(axis_name), weights(batch)
        keys = fold_in_name(example_keys(key, batch["index"]), "discriminate")
        mean = lambda terms, w=ok: collectives.batch_mean(terms, w.astype(jnp.float32), axis_name=axis_name)
        variables = dict(variables)
        if config.spectral:
            normal, variables["spectral"] = spectral_normalize(_judging(params), variables["spectral"])
            params = {**params, **normal}
        condition = net.condition(params, variables, batch, keys)
        of_real, of_made = fold_in_name(keys, "real"), fold_in_name(keys, "made")
        real, fake = (
            shown(to_float(batch["image"]), variables, of_real),
            shown(made["image"], variables, of_made),
        )
        tokens = net.look(params, real, of_real)
        of_real_logits = net.judge(params, tokens, condition.vector)
        of_made_logits = net.judge(params, net.look(params, fake, of_made), condition.vector)
        rolled = None
        if config.matching_aware and condition.vector is not None:
            other = collectives.roll_batch(condition.vector, axis_name=axis_name)
            which = names(batch)
            before = lambda x: collectives.roll_batch(x, axis_name=axis_name)
            rolled = net.judge(params, tokens, other), ok & before(ok) & (which != before(which))
        loss = _discriminator(config, of_real_logits, of_made_logits, rolled, ok, axis_name)
        aux = {"d_loss": loss, "d_real": mean(of_real_logits[:, 0]), "d_fake": mean(of_made_logits[:, 0])}

        def penalty():
            def critic(x, vector=condition.vector, keys=of_real):
                features = net.judge(params, net.look(params, x, keys), vector)
                if config.mmd:
                    kernel = adversarial.KERNELS[config.mmd]
                    pair = dict(kernel=kernel, present=ok, axis_name=axis_name)
                    return adversarial.witness(features, of_real_logits, of_made_logits, **pair)
                return features[:, 0]

            apart = fold_in_name(keys, "penalty")
            if config.penalty == "gp":
                return penalties.gradient_penalty(critic, real, fake, apart)
            if config.penalty == "dragan":
                return penalties.dragan(critic, real, apart, present=ok, axis_name=axis_name)
            if config.penalty == "ma_gp":
                pairs = lambda x, vector: critic(x, vector=vector)
                return penalties.matching_aware_penalty(pairs, real, condition.vector)
            if config.penalty == "r1":
                return penalties.squared_gradient(critic, real)
            return penalties.squared_gradient(lambda x: critic(x, keys=of_made), fake)

        if config.penalty != "none":
            every = config.penalty_every
            if every == 1:
                value = mean(penalty())
            else:
                nothing = lambda: 0.0 * mean(of_real_logits[:, 0])
                value = every * jax.lax.cond(step % every == 0, lambda: mean(penalty()), nothing)
            aux["d_penalty"] = value
            loss = loss + config.penalty_weight * value
        logits = {"real": of_real_logits[:, 0], "fake": of_made_logits[:, 0]}
        if config.lecam:
            held = penalties.lecam(
                logits["real"], logits["fake"], variables["logits"]["real"], variables["logits"]["fake"]
            )
            loss = loss + config.lecam * mean(held)
            now = {k: collectives.psum(mean(v), axis_name) for k, v in logits.items()}
            variables["logits"] = trees.update_ema(variables["logits"], jax.lax.stop_gradient(now), 0.99)
        if config.augment == "ada":
            sign = jax.lax.stop_gradient(collectives.psum(mean(jnp.sign(logits["real"])), axis_name))
            count = len(ok) * collectives.axis_size(axis_name)
            aux["ada"] = variables["ada"] / collectives.axis_size(axis_name)
            how = dict(examples=count, target=config.ada_target, ramp=config.ada_ramp)
            variables["ada"] = ada_update(variables["ada"], sign, **how)
        for name, (value, weight) in agreements(net, params, tokens, condition, batch, ok, axis_name).items():
            aux[f"d_{name}"], loss = value, loss + weight * value
        return loss, (jax.lax.stop_gradient(aux), variables)

    def g_loss(made, params: Params, variables, batch: Batch, key: Key, *, axis_name: str | None = None):
        net, ok = network(axis_name), weights(batch)
        keys = fold_in_name(example_keys(key, batch["index"]), "persuade")
        mean = lambda terms: collectives.batch_mean(terms, ok.astype(jnp.float32), axis_name=axis_name)
        if config.spectral:
            params = {
                **params,
                **spectral_normalize(_judging(params), variables["spectral"], iterations=0)[0],
            }
        condition = net.condition(params, variables, batch, None)
        view = shown(made["image"], variables, keys)
        tokens = net.look(params, view, keys)
        fake = net.judge(params, tokens, condition.vector)
        of_real = fold_in_name(keys, "real")
        # Of use to few objectives; where it is not, the compiler leaves it out.
        real_tokens = net.look(params, shown(to_float(batch["image"]), variables, of_real), of_real)
        real = net.judge(params, real_tokens, condition.vector)
        loss = _generator(config, fake, real, ok, axis_name)
        aux = {"g_loss": loss}
        for name, (value, weight) in agreements(net, params, tokens, condition, batch, ok, axis_name).items():
            aux[f"g_{name}"], loss = value, loss + weight * value
        if captioner is not None or config.perceptual_weight:
            same = config.projected and config.augment == "none"  # then seen already, and differentiated once
            seen = view.seen if same else looked(variables, made["image"])
        if captioner is not None:
            mask = batch.get("text_mask", batch["text"] != 0)
            own = seen if watcher is None else captioner.encode(variables["captioner"], made["image"])
            terms = captioner.cross_entropy(variables["captioner"], own, batch["text"], mask)
            aux["g_redescription"] = mean(terms)
            loss = loss + config.redescription_weight * aux["g_redescription"]
        if config.reconstruction_weight:
            part, found = rebuilding(made, batch, ok & rebuilt(batch), axis_name)
            aux, loss = aux | found, loss + part
        if config.perceptual_weight:
            wanted = looked(variables, to_float(batch["image"]))
            apart = 1.0 - (l2_normalize(seen) * l2_normalize(wanted)).sum(axis=-1).mean(axis=-1)
            again = (ok & rebuilt(batch)).astype(jnp.float32)
            aux["g_perceptual"] = collectives.batch_mean(apart, again, axis_name=axis_name)
            loss = loss + config.perceptual_weight * aux["g_perceptual"]
        if config.image_weight:
            a, b = (net.compare(params, x, condition).image for x in (tokens, real_tokens))
            alike = dict(present=ok, duplicates="ignore", axis_name=axis_name)
            aux["g_image"] = mean(info_nce(a, b, temperature=config.temperature, **alike))
            loss = loss + config.image_weight * aux["g_image"]
        if config.generator.conditioning and condition.vector is not None:
            aux["g_kl"] = mean(made["kl"])
            loss = loss + aux["g_kl"]
        return loss, jax.lax.stop_gradient(aux)

    def constrain(params: Params) -> Params:
        if not config.clip:
            return params
        return {**params, **adversarial.clip_weights(_judging(params), config.clip)}

    def predict(params, batch: Batch) -> Float[Array, "batch height width channels"]:
        variables = {
            "generator": {},
            **params["variables"],
        }  # statistics that there are none of are in no checkpoint
        net, player = network(), params["generator"]
        condition, _ = net.asked(player, variables, batch, None)
        toward = {k.removeprefix("toward_"): v for k, v in batch.items() if k.startswith("toward_")}
        if toward:
            other, _ = net.asked(player, variables, {**batch, **toward}, None)
            condition = blended(condition, other, batch["blend"])
        return net.draw(player, variables, condition, batch["noise"], None)[0]

    alone = pretrain_generator if config.reconstruction_weight else None
    return GAN(init, generate, d_loss, g_loss, constrain, predict, config.d_steps, alone)


def _judging(params: Params) -> dict[str, Any]:
    """What of the discriminator sees images and tells real from generated."""
    return {name: params[name] for name in ("trunk", "critic", "sight") if name in params}


def _discriminator(config: GANConfig, real, fake, rolled, ok, axis_name):
    """The share of the adversarial loss. ``rolled``: logits with another's condition, and where that is another."""
    if config.mmd:
        kernel = adversarial.KERNELS[config.mmd]
        apart = lambda other, present: adversarial.mmd_discriminator(
            real, other, kernel=kernel, present=present, axis_name=axis_name
        )
        value = apart(fake, ok)
        return value if rolled is None else 0.5 * (value + apart(*rolled))
    objective, how = adversarial.OBJECTIVES[config.objective], dict(present=ok, axis_name=axis_name)
    if rolled is None:
        terms = objective.discriminator(real[:, 0], fake[:, 0], **how)
    else:
        other, differs = rolled
        aware = adversarial.matching_aware(objective)
        terms = aware(real[:, 0], fake[:, 0], other[:, 0], mismatched_present=differs, **how)
    return collectives.batch_mean(terms, ok.astype(jnp.float32), axis_name=axis_name)


def _generator(config: GANConfig, fake, real, ok, axis_name):
    how = dict(present=ok, axis_name=axis_name)
    if config.mmd:
        return adversarial.mmd_generator(fake, real, kernel=adversarial.KERNELS[config.mmd], **how)
    terms = adversarial.OBJECTIVES[config.objective].generator(fake[:, 0], real[:, 0], **how)
    return collectives.batch_mean(terms, ok.astype(jnp.float32), axis_name=axis_name)
