"""The engine: trains any `types.Method` or `types.GAN` on one device or many, with checkpoints that resume exactly.

::

    from xmodal_jax.core import Timer, configure
    from xmodal_jax.train import Optimizer, Run, RunConfig, fit, restore_run

    configure()
    config = RunConfig(steps=1000, run_dir="runs/mine")
    run = Run.create(config.run_dir, config)
    result = fit(method, loader, config, Optimizer(learning_rate=1e-3), run, Timer())
    params = result.params[0]  # or later, in another process: restore_run("runs/mine").params
"""

from xmodal_jax.core.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "checkpoint": "Checkpoints CheckpointMismatch DamagedCheckpoint RestoredCheckpoint restore_run "
        "newest_checkpoint read_state",
        "command_line": "parse choose_class run_script",
        "config": "RunConfig PretrainedConfig StartConfig RecipeFlags shrink",
        "feed": "BatchFeed",
        "gan_step": "GANOptimizer GANState",
        "loop": "fit TrainingResult TrainingLoop NonFiniteError Preempted",
        "muon": "scale_by_muon newton_schulz",
        "optim": "Optimizer make_optimizer learning_rate_schedule resolve_lr_multipliers trainable",
        "owner": "DirectoryInUse",
        "parallel": "Engine DeviceData make_engine make_mesh over_seeds",
        "recipes": "RECIPES Recipe Setting TrainingSet resolve_recipe",
        "run": "Run to_json from_json stack_scores format_value summary_line write_atomic",
        "schedule": "StepPlan",
        "step": "TrainState Training make_training make_init make_step make_initial_step",
    },
)
