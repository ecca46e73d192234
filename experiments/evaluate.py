"""How good is the policy of a run? ``python experiments/evaluate.py RUN --episodes 20 --video out.mp4``"""

import sys

from polygrad_jax.analysis.reports import evaluate_command, exit_code

if __name__ == "__main__":
    sys.exit(exit_code("evaluate", evaluate_command, sys.argv[1:]))
