"""How far one quota carries, by simulation and by runs: ``python -m tests.benchmarks.scaling``."""
