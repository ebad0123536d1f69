"""Real engines that die, freeze and return while answers run: `make chaos-engines`."""
