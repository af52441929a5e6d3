"""What every layer uses: random keys, reductions over devices, trees of parameters, decoding, and the set-up of JAX."""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "alignment": "monotonic_alignment expand_durations FrameTokens ctc_alignment CTCAlignment",
        "checks": "check_shapes",
        "cluster": "Cluster detect is_writer agree",
        "collectives": "psum all_gather axis_index axis_size batch_mean global_mean share shard_examples mesh_size "
        "global_index roll_batch",
        "decoding": "GeneratedTokens sample beam_search ctc_greedy filter_logits length_norm",
        "language_model": "NGramModel fit_ngrams LanguageModelFusion",
        "nesting": "nested value_at",
        "parts": "is_part parts_of is_optional choose options_of",
        "random": "fold_in_name named_keys example_keys batch_index batch_keys",
        "runtime": "configure cache_root free_memory jit_once Timer CompileClock",
        "schedules": "half_cosine batch_progress",
        "similarity": "l2_normalize squared_distances",
        "trees": "leaf_names flat map_with_name match_names count global_norm finite_leaves update_ema",
    },
)
