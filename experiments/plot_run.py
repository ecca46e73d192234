"""How did a run go? ``python experiments/plot_run.py RUN -o out.png``"""

import sys

from polygrad_jax.analysis.reports import exit_code, plot_run_command

if __name__ == "__main__":
    sys.exit(exit_code("plot_run", plot_run_command, sys.argv[1:]))
