"""XLA's flags for programs that are compiled once and run for a moment, as in tests."""

QUICK_COMPILATION = (
    # Without optimisation, without the emitters of fused loops that are slow to compile (half of all time), and on one
    # thread, since other tests have the other cores.
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
